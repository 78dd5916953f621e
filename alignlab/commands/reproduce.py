"""``alignlab reproduce``: the same run again from its record, and what differs."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignlab.commands.study import store_root
from alignlab.environment import environment
from alignlab.errors import ConfigError, DataError
from alignlab.launch.execute import execute
from alignlab.launch.task import Place, Task
from alignlab.plan import build_stage, stage_key
from alignlab.run import Run, Store

VOLATILE = ("metrics.jsonl", "record.json", "env.json", "config.json")  # hold times, not results


def reproduce(name: str) -> int:
    """Execute a finished run once more, beside the store, and compare.

    The copy reads the same input runs and goes to ``<store>/reproductions/<run>-<time>/``. Exit
    code 0 when every number and every file of the result is the same, else 1.
    """
    store = Store(store_root())
    run = store.find(name)
    if not run.done:
        raise ConfigError(f"{run.name} is not finished, so there is nothing to compare with.")
    task = _task(run, store)
    for line in [*_key_difference(run, task), *_environment_differences(run)]:
        print(line, flush=True)
    execute(task, lambda text: print(text, file=sys.stderr, flush=True))
    again = Store(Path(task.place.store)).run(run.kind, run.key)
    differences = [*_file_differences(run, again), *_summary_differences(run, again)]
    for line in differences:
        print(line)
    verdict = "differs from" if differences else "is the same as"
    print(f"{again.path} {verdict} {run.name}")
    return 1 if differences else 0


def _task(run: Run, store: Store) -> Task:
    record = run.record
    root = store.root / "reproductions" / f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    root.mkdir(parents=True)
    store.cache.mkdir(exist_ok=True)
    (root / "cache").symlink_to(store.cache.resolve(), target_is_directory=True)
    for parent in set(record["inputs"].values()):  # read where they are, never copied
        if not (store.root / parent / "DONE").is_file():
            raise DataError(f"{run.name} reads {parent}, which is no longer in {store.root}.")
        (root / parent).symlink_to((store.root / parent).resolve(), target_is_directory=True)
    place = Place(
        store=str(root),
        study="reproduction",
        engine={**record["engine"], "threads": record.get("threads")},
        tracking={**record["tracking"], "mode": "disabled"},
    )
    return Task(
        name=record["name"],
        kind=run.kind,
        key=run.key,
        config=json.loads((run.path / "config.json").read_text(encoding="utf-8")),
        parents=record["inputs"],
        place=place,
    )


def _key_difference(run: Run, task: Task) -> list[str]:
    stage = build_stage(task.config, f"stages.{task.name}")
    key = stage_key(stage, stage.fingerprint(), task.parents)
    if key == run.key:
        return []
    return [f"key: {run.key} then, {key} now: the stage's code version, fields or data changed."]


def _environment_differences(run: Run) -> list[str]:
    file = run.path / "env.json"
    then = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    now = environment()
    lines = []
    for part in ("git", "python", "packages", "hardware"):
        before, after = _flat(then.get(part), part), _flat(now.get(part), part)
        lines += [
            f"{key}: {before.get(key)} then, {after.get(key)} now"
            for key in sorted({*before, *after})
            if before.get(key) != after.get(key)
        ]
    return lines


def _flat(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    return {k: v for name, part in value.items() for k, v in _flat(part, f"{path}.{name}").items()}


def _file_differences(run: Run, again: Run) -> list[str]:
    before, after = (
        json.loads((each.path / "DONE").read_text(encoding="utf-8"))["files"]
        for each in (run, again)
    )
    return [
        f"{name}: {'differs' if name in before and name in after else 'is on one side only'}"
        for name in sorted({*before, *after})
        if name not in VOLATILE and before.get(name) != after.get(name)
    ]


def _summary_differences(run: Run, again: Run) -> list[str]:
    before, after = run.summary(), again.summary()
    lines = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if old != new and not (_nan(old) and _nan(new)):
            lines.append(f"summary.{key}: {old} then, {new} now")
    return lines


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
