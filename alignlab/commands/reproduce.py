"""``alignlab reproduce``: the same run or study again from its record, and what differs."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignlab.commands import study_record
from alignlab.commands.differences import state_lines
from alignlab.commands.reproduce_study import reproduce_study, share_models
from alignlab.commands.study import store_root
from alignlab.commands.study_record import STATE, VOLATILE, environment_state
from alignlab.errors import ConfigError, DataError, did_you_mean
from alignlab.files import read_json
from alignlab.keys import stage_key
from alignlab.launch.execute import execute
from alignlab.launch.task import Place, Task
from alignlab.plan import build_stage
from alignlab.run import Run, Store


def reproduce(name: str, *, check: bool, data: Sequence[str], to: str | None) -> int:
    """Execute a run or a study once more and compare; ``check`` only says what differs here.

    Raises:
        ConfigError: ``name`` is no run, study or folder, or an option does not fit it.
        DataError: a study without a record.
    """
    store = Store(store_root())
    found = _found(name, store)
    if isinstance(found, Path):
        return reproduce_study(found, store, check=check, data=data, to=to)
    if data or to:
        raise ConfigError("--data and --to are for studies; a run is made again beside its store.")
    return reproduce_run(found, Store(found.path.parent), check=check)


def _found(name: str, store: Store) -> Run | Path:
    """Tell a folder, a study and a run from each other; a study comes before a run's prefix."""
    folder = Path(name).expanduser()
    for place in (folder, store.studies / name):
        file = place / study_record.FILE
        if file.is_file():
            record = read_json(file) or {}
            return Run(place.resolve()) if "key" in record else file
    if (store.studies / name / "study.json").is_file():
        return store.studies / name / study_record.FILE  # reading it says what is missing
    studies = sorted(file.parent.name for file in store.studies.glob("*/study.json"))
    try:
        return store.find(name)
    except ConfigError as error:
        hint = did_you_mean(name, studies)
        if not hint:
            raise
        raise ConfigError(f"no study or run '{name}' in {store.root}.{hint}") from error


def reproduce_run(run: Run, store: Store, *, check: bool) -> int:
    """Execute a finished run once more, beside the store, and compare.

    The copy reads the same input runs and goes to ``<store>/reproductions/<run>-<time>/``. Exit
    code 0 when every number and every file of the result is the same, else 1.
    """
    if not run.done:
        raise ConfigError(f"{run.name} is not finished, so there is nothing to compare with.")
    config = read_json(run.path / "config.json") or {}
    lines = [*_key_difference(run, config), *_environment_differences(run)]
    for line in lines:
        print(line, flush=True)
    if check:
        return 1 if lines else 0
    task = _task(run, store, config)
    execute(task, lambda text: print(text, file=sys.stderr, flush=True))
    again = Store(Path(task.place.store)).run(run.kind, run.key)
    differences = [*_file_differences(run, again), *_summary_differences(run, again)]
    for line in differences:
        print(line)
    verdict = "differs from" if differences else "is the same as"
    print(f"{again.path} {verdict} {run.name}")
    return 1 if differences else 0


def _task(run: Run, store: Store, config: dict[str, Any]) -> Task:
    record = run.record
    root = store.root / "reproductions" / f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    root.mkdir(parents=True)
    share_models(store, Store(root))
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
        config=config,
        parents=record["inputs"],
        place=place,
    )


def _key_difference(run: Run, config: dict[str, Any]) -> list[str]:
    record = run.record
    stage = build_stage(config, f"stages.{record['name']}")
    key = stage_key(stage, stage.fingerprint(), record["inputs"])
    if key == run.key:
        return []
    return [f"key: {run.key} then, {key} now: the stage's code version, fields or data changed."]


def _environment_differences(run: Run) -> list[str]:
    then = read_json(run.path / "env.json") or {}
    known = {part: then[part] for part in STATE if part in then}
    now = environment_state()
    return state_lines([known], {part: now[part] for part in known})


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
