"""The record of a study: one small file that suffices to run the study again elsewhere.

``studies/NAME/record.json`` holds every stage with its configuration, edges and key, what it read
(fingerprints, and the files behind them), code, versions and hardware of every run, and what came
out of it. It is written when the study starts and again when it has ended; a copy lies in
``report/``. Nothing that is long is stored twice, and no text of the data is in it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignlab import files
from alignlab.environment import environment
from alignlab.errors import DataError
from alignlab.plan import Plan
from alignlab.run import Run, Store, content_key

FILE = "record.json"
FORMAT = 1
VOLATILE = ("metrics.jsonl", "record.json", "env.json", "config.json")  # hold times, not results
STATE = ("git", "sources", "python", "packages", "hardware")  # of env.json: where numbers are from
LARGE = 64 << 20  # bytes; larger files of a model folder are told by their size alone
OUTCOME = ("state", "label", "result", "summary", "error", "seconds")
FILES = 1000  # of one path at most


def study_record(
    plan: Plan, store: Store, stated: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Make the record of a plan, with what the store holds of its runs.

    ``stated`` are the fields that say what was asked for: name, command, engine and so on. What
    ``before``, an earlier record, knows of finished runs is not read again: they do not change.
    """
    known = (before or {}).get("stages", {})
    known_texts: dict[str, str] = {}
    configs: dict[str, Any] = {}
    reads: dict[str, Any] = {}
    states: dict[str, Any] = dict((before or {}).get("states", {}))
    stages = {}
    for run, node in plan.nodes.items():
        config = {k: v for k, v in node.config.items() if k not in ("seed", "inputs")}
        text = json.dumps(config, sort_keys=True)  # of thousands of stages only a few are distinct
        if text not in known_texts:
            known_texts[text] = content_key(config)
        config_id = known_texts[text]
        data_id = f"{config_id}-{hashlib.sha256(node.data.encode()).hexdigest()[:12]}"
        configs.setdefault(config_id, config)
        if data_id not in reads:
            reads[data_id] = {"fingerprint": node.data, "paths": paths_of(config)}
        stages[run] = {
            "name": node.name,
            "kind": node.kind,
            "seed": node.stage.seed,
            "version": node.stage.version,
            "inputs": dict(node.parents),
            "config": config_id,
            "reads": data_id,
            **_outcome(store.run(node.kind, node.key), known.get(run, {}), states),
        }
    return {
        "format": FORMAT,
        **stated,
        "directory": str(Path.cwd()),
        "jobs": jobs_of(plan),
        "stages": stages,
        "configs": configs,
        "reads": reads,
        "states": {i: s for i, s in states.items() if i in {x["state"] for x in stages.values()}},
    }


def updated(record: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """A record with what the store holds of its runs by now."""
    states = dict(record["states"])
    stages = {
        run: {**stage, **_outcome(Run(store.root / run), stage, states)}
        for run, stage in record["stages"].items()
    }
    return {**record, "stages": stages, "states": states}


def jobs_of(plan: Plan) -> list[dict[str, Any]]:
    """Jobs of a plan: their overrides, seed, and the run of each of their stages."""
    return [
        {"overrides": list(job.overrides), "seed": job.seed, "stages": dict(job.stages)}
        for job in plan.jobs
    ]


def _outcome(run: Run, known: Mapping[str, Any], states: dict[str, Any]) -> dict[str, Any]:
    """What came out of a run, and where; nothing of one that is not finished."""
    if not run.done:
        return {"state": None, "result": None}
    if known.get("result"):
        return {key: known[key] for key in OUTCOME}
    written = files.read_json(run.path / "env.json") or {}
    record = run.record
    state = {part: written.get(part) for part in STATE} | {"threads": record.get("threads")}
    state_id = content_key(state)
    states.setdefault(state_id, state)
    return {
        "state": state_id,
        "label": record.get("label"),
        "result": result_of(run),
        "summary": record.get("summary", {}),
        "error": standard_errors(run),
        "seconds": record.get("seconds"),
    }


def result_of(run: Run) -> str:
    """Hash of all files of a finished run that hold results, as DONE lists them."""
    done = (files.read_json(run.path / "DONE") or {}).get("files", {})
    kept = {name: digest for name, digest in done.items() if name not in VOLATILE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def standard_errors(run: Run) -> dict[str, float]:
    """Standard error over prompts of the scores in a run's rows: sd of prompt means / √prompts."""
    if run.kind not in ("evaluate", "judge"):
        return {}
    by_prompt: dict[str, dict[str, list[float]]] = {"gold": {}, "win": {}}
    for row in files.rows(run.path / "samples.jsonl"):
        for name, prompts in by_prompt.items():
            value = row.get(name)
            if isinstance(value, int | float):
                prompts.setdefault(str(row.get("prompt_id")), []).append(float(value))
    names = {"gold": "gold", "win": "win_rate"}
    return {names[n]: _error(p) for n, p in by_prompt.items() if len(p) > 1}


def _error(prompts: Mapping[str, list[float]]) -> float:
    means = [sum(values) / len(values) for values in prompts.values()]
    middle = sum(means) / len(means)
    variance = sum((m - middle) ** 2 for m in means) / (len(means) - 1)
    return float((variance / len(means)) ** 0.5)


def paths_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Local files and folders that a configuration names: key → path and its files' hashes."""
    return {
        key: {"path": value, "files": describe(Path(value).expanduser())}
        for key, value in leaves(config)
        if is_path(key, value) and Path(value).expanduser().exists()
    }


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value of a configuration with its dotted key."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from leaves(part, f"{path}.{index}")
    else:
        yield path, value


def is_path(key: str, value: Any) -> bool:
    """Whether a value can be a local path, by its look or by the name of its key."""
    if not isinstance(value, str) or not 0 < len(value) < 1024 or "\n" in value or "://" in value:
        return False
    return "/" in value or key.rpartition(".")[2].endswith(("path", "file", "folder"))


def describe(path: Path) -> list[dict[str, Any]]:
    """Name, size and hash of a file, or of the files in a folder."""
    found = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return [
        {
            "name": file.name if file == path else file.relative_to(path).as_posix(),
            "bytes": file.stat().st_size,
            "sha256": files.sha256(file) if file.stat().st_size <= LARGE or file == path else None,
        }
        for file in found[:FILES]
    ]


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a study into its folder, and beside its page if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomically(folder / FILE, record)
    if (folder / "report").is_dir():
        shutil.copyfile(folder / FILE, folder / "report" / FILE)


def read(file: Path) -> dict[str, Any]:
    """Read a study's record.

    Raises:
        DataError: there is none, or it is none of this format.
    """
    found = files.read_json(file)
    if found is None:
        raise DataError(
            f"{file.parent} has no {FILE}: the study was run before studies kept one. The command "
            "in its study.json, given again, finds all runs in the store and writes it."
        )
    if found.get("format") != FORMAT or "stages" not in found:
        raise DataError(
            f"{file} is no record of a study (format {found.get('format')}, known: {FORMAT})."
        )
    return found


def environment_state() -> dict[str, Any]:
    """State of this process, as far as it can change a number."""
    now = environment()
    return {part: now.get(part) for part in STATE}
