"""``alignlab reproduce STUDY``: a whole study again from its record, and whether its numbers agree.

The record alone suffices: a copied study folder is run again on a machine that has no store of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab import files, typed
from alignlab.commands import study_record
from alignlab.commands.differences import Differences, differences, same_machine
from alignlab.commands.study import Session, Settings, execute
from alignlab.commands.study_record import is_path
from alignlab.commands.text import columns
from alignlab.errors import ConfigError
from alignlab.launch.task import Place, usable_cores
from alignlab.plan import Plan
from alignlab.report.agreement import Agreement, Cell, agreements
from alignlab.run import Store, content_key

HEADLINE = {"evaluate": ("gold",), "judge": ("win_rate",)}  # other kinds that measure: every number
MEASURED = ("evaluate", "judge", "benchmark", "reward_benchmark")
LEVEL = 0.05
AGAIN = "-again"  # ends the name of the study that is run again
COMPARED = "agreement.json"  # in the folder of the study that was run again


@dataclass(frozen=True)
class Moved:
    """Paths of the recorded machine, and where the same files are here."""

    pairs: tuple[tuple[str, str], ...]
    directory: str  # where the study was started: what its relative paths are relative to

    def __call__(self, config: Any, key: str = "") -> Any:
        """Return a configuration with its paths as they are here."""
        if isinstance(config, Mapping):
            return {k: self(v, f"{key}.{k}" if key else str(k)) for k, v in config.items()}
        if isinstance(config, list):
            return [self(v, f"{key}.{i}") for i, v in enumerate(config)]
        return self.path(config) if is_path(key, config) else config

    def path(self, text: str) -> str:
        """One path: as it was moved, as it is here, or below the directory of then."""
        for old, new in self.pairs:
            if text == old or text.startswith(old.rstrip("/") + "/"):
                return new + text[len(old.rstrip("/")) :]
        below = Path(self.directory) / text
        return str(below) if not Path(text).expanduser().exists() and below.exists() else text


def moved(pairs: Sequence[str], directory: str) -> Moved:
    """Read ``OLD=NEW`` words.

    Raises:
        ConfigError: a word without ``=``, or a new path where nothing is.
    """
    found = []
    for pair in pairs:
        old, sign, new = pair.partition("=")
        if not (sign and old and new):
            raise ConfigError(f"--data {pair}: give it as OLD=NEW, the path of then and that here.")
        if not Path(new).expanduser().exists():
            raise ConfigError(f"--data {pair}: there is no {new}.")
        found.append((old, new))
    return Moved(tuple(found), directory)


def reproduce_study(
    file: Path, store: Store, *, check: bool, data: Sequence[str], to: str | None
) -> int:
    """Run the study of a record again and compare; ``check`` only says what differs here.

    Exit code 0 when all numbers agree (``check``: nothing differs), 1 when not, 2 when the study
    cannot be run here.

    Raises:
        DataError: ``file`` is no record.
        ConfigError: a moved path that is none.
    """
    record = study_record.read(file)
    elsewhere = moved(data, record.get("directory", "."))
    configs = {run: elsewhere(config_of(record, run)) for run in record["stages"]}
    found = differences(record, configs)
    _say_differences(record, found)
    if found.data:
        print("cannot be reproduced here: with other data it would be another study.")
        return 2
    if check:
        return 1 if found.lines else 0
    root = Path(to).expanduser().resolve() if to else _place(store, record)
    words = ["alignlab", "reproduce", str(file.parent), *(f"--data={d}" for d in data)]
    again = shlex.join([*words, *(["--to", str(root)] if to else [])])
    share_models(store, Store(root))
    session = session_of(record, configs, root)
    execute(session, [], again)
    return compare(record, session.store.studies / session.study)


def config_of(record: Mapping[str, Any], run: str) -> dict[str, Any]:
    """Configuration of a recorded stage; its inputs are run names."""
    stage = record["stages"][run]
    return {**record["configs"][stage["config"]], "seed": stage["seed"], "inputs": stage["inputs"]}


def _say_differences(record: Mapping[str, Any], found: Differences) -> None:
    runs, finished = record["stages"], [s for s in record["stages"].values() if s["result"]]
    print(f"study {record['name']}: {len(runs)} stages, {len(finished)} with recorded results")
    for line in found.lines:
        print(f"  {line}")
    if not found.lines:
        print("  nothing differs: code, versions, hardware and data are those of then")


def _place(store: Store, record: Mapping[str, Any]) -> Path:
    """A store of its own beside the runs; the newest one goes on if it was interrupted."""
    folder = store.root / "reproductions"
    number = 1
    name = record["name"]
    while (folder / f"{name}-{number}" / "studies" / f"{name}{AGAIN}" / COMPARED).is_file():
        number += 1
    return folder / f"{name}-{number}"


def share_models(store: Store, other: Store) -> None:
    """Let another store read the models that were fetched; all else there is made anew."""
    here, there = store.cache / "models", other.cache / "models"
    if here.is_dir() and not there.exists():
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(here.resolve(), target_is_directory=True)


def session_of(
    record: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]], root: Path
) -> Session:
    """Plan a record's stages, configured as they run here, over the store ``root``."""
    store = Store(root)
    jobs = []
    for job in record["jobs"]:
        names = {run: name for name, run in reversed(job["stages"].items())}
        stages = {}
        for name, run in job["stages"].items():
            inputs = {role: names[parent] for role, parent in configs[run]["inputs"].items()}
            stages[name] = {**configs[run], "inputs": inputs}
        jobs.append({"seed": job["seed"], "stages": stages})
    plan = Plan.from_configs(jobs, store, [job["overrides"] for job in record["jobs"]])
    engine = {**record["engine"], **_threads(record)}
    name = f"{record['name']}{AGAIN}"  # never the study's own name: its files stay what they are
    where: dict[str, Any] = {
        "study": name,
        "store": str(root),
        "report": True,
        "engine": engine,
        "launch": _here(record["launch"]),
        "tracking": {"mode": "disabled", "project": "alignlab", "entity": None},
    }
    settings = typed.build(Settings, where)
    place = Place(store=str(root), study=record["name"], engine=engine, tracking=where["tracking"])
    return Session(plan, settings, store, name, place)


def _here(launch: Mapping[str, Any]) -> Mapping[str, Any]:
    """As it was executed then; what a cluster did, this machine does alone."""
    alone = launch["kind"] in ("inprocess", "local")
    return launch if alone else {"kind": "local", "jobs": "auto"}


def _threads(record: Mapping[str, Any]) -> dict[str, Any]:
    """The threads of then, where all runs had as many and this machine has them: same bits."""
    used = {state.get("threads") for state in record["states"].values()} - {None}
    return {"threads": used.pop()} if len(used) == 1 and max(used) <= usable_cores() else {}


def compare(then: Mapping[str, Any], folder: Path) -> int:
    """Print how the numbers of a record stand to those of the study in ``folder``."""
    now = study_record.read(folder / study_record.FILE)
    pairs = [
        (old, new["stages"][name])
        for job, new in zip(then["jobs"], now["jobs"], strict=True)
        for name, old in job["stages"].items()
    ]
    runs = {
        old: (then["stages"][old], now["stages"][new])
        for old, new in pairs
        if then["stages"][old]["result"]
    }
    lost = [then["name"] for then, now in runs.values() if not now["result"]]
    if not runs or lost:
        why = f"{', '.join(lost)} could not be run" if runs else "the record holds no results"
        print(f"cannot be compared: {why}.")
        return 2
    equal = [old for old, (a, b) in runs.items() if a["result"] == b["result"]]
    print(f"\n{len(equal)} of {len(runs)} runs came out the same, file by file")
    found = agreements(cells(then, runs))
    if found:
        print(f"\n{_table(found)}\n")
        print(
            "p: for no true difference, adjusted over all rows (Holm). noticed from: the smallest"
            " true difference that is found four times in five."
        )
    apart = [each for each in found if each.holm < LEVEL]
    machine = same_machine(then["states"].values())
    verdict = _verdict(len(equal) == len(runs), apart, found, machine)
    print(f"\n{verdict}")
    numbers = [typed.to_mapping(each) for each in found]
    files.write_atomically(folder / COMPARED, {"verdict": verdict, "numbers": numbers})
    return 1 if apart or (not found and len(equal) < len(runs)) else 0


def cells(
    record: Mapping[str, Any], runs: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> list[Cell]:
    """Numbers of the methods, each over the seeds of one and the same chain of configurations."""
    known: dict[str, str] = {}
    sides: dict[tuple[str, str], tuple[dict[int, float], ...]] = {}
    labels: dict[str, str] = {}
    for run, (then, now) in runs.items():
        if then["kind"] not in MEASURED:
            continue
        method = _method(record, run, known)
        labels.setdefault(method, then.get("label") or then["name"])
        for metric in HEADLINE.get(then["kind"], tuple(then["summary"])):
            values = [files.number(side["summary"].get(metric)) for side in (then, now)]
            if any(value is None for value in values):
                continue
            found = sides.setdefault((method, metric), ({}, {}, {}, {}))
            for place, side, value in zip((0, 1), (then, now), values, strict=True):
                found[place][then["seed"]] = value
                if metric in side["error"]:
                    found[place + 2][then["seed"]] = side["error"][metric]
    names = _distinct(labels)
    return [Cell(names[method], metric, *found) for (method, metric), found in sides.items()]


def _method(record: Mapping[str, Any], run: str, known: dict[str, str]) -> str:
    """Name of a run up to its seed: its configuration, and those of what it reads."""
    if run not in known:
        stage = record["stages"][run]
        inputs = {
            r: _method(record, source, known) for r, source in sorted(stage["inputs"].items())
        }
        known[run] = content_key([stage["config"], inputs])
    return known[run]


def _distinct(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels without hyperparameters where that keeps methods apart; equal ones are numbered."""
    short = {method: label.partition(" (")[0] for method, label in labels.items()}
    kept = [s if list(short.values()).count(s) == 1 else labels[m] for m, s in short.items()]
    return {
        method: label if kept.count(label) == 1 else f"{label} #{kept[: i + 1].count(label)}"
        for i, (method, label) in enumerate(zip(labels, kept, strict=True))
    }


def _table(found: Sequence[Agreement]) -> str:
    header = (
        "method",
        "number",
        "seeds",
        "then",
        "now",
        "difference",
        "±",
        "p (Holm)",
        "noticed from",
        "",
    )
    rows: list[tuple[str, ...]] = [header]
    for each in found:
        word = "equal" if each.equal else "agrees" if each.holm >= LEVEL else "DIFFERS"
        rows.append((
            each.method, each.metric, str(each.seeds), f"{each.then:.4f}", f"{each.now:.4f}",
            f"{each.difference:+.4f}", f"{each.error:.4f}", f"{each.holm:.3f}",
            f"{each.noticeable:.3f}", word,
        ))  # fmt: skip
    return columns(rows, right=range(2, 9))


def _verdict(
    identical: bool, apart: Sequence[Agreement], found: Sequence[Agreement], machine: bool
) -> str:
    if identical:
        return "reproduced: every run is the same, bit for bit."
    if apart:
        names = ", ".join(f"{each.method} ({each.metric})" for each in apart)
        return f"NOT reproduced: beyond the noise of the seeds differ {names}."
    if not found:
        return "NOT reproduced: the files differ, and the study has no measured numbers to test."
    more = "" if not machine else (
        " Code, versions and hardware are the same, so the same bits were to be expected: another "
        "number of threads changes them, and so does a stage that was resumed under other code."
    )  # fmt: skip
    return f"reproduced within the noise of the seeds: no number differs significantly.{more}"
