"""``alignlab runs``: what is in the store, and what of it can go."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from alignlab.commands.study import store_root
from alignlab.commands.text import columns, count
from alignlab.engine.progress import clock
from alignlab.errors import ConfigError
from alignlab.run import Run, Store


def act(action: str, name: str | None, *, delete: bool) -> int:
    """Do one of ls, show, gc and prune; gc and prune only list unless ``delete`` is set."""
    store = Store(store_root())
    if action == "show":
        if name is None:
            raise ConfigError("alignlab runs show needs the name or key of a run; see runs ls.")
        return show(store.find(name))
    if name is not None:
        raise ConfigError(f"alignlab runs {action} takes no run, and got '{name}'.")
    if action == "ls":
        return ls(store)
    runs = store.gc() if action == "gc" else store.prune()
    return _remove(store, runs, "unfinished" if action == "gc" else "unneeded", delete)


def ls(store: Store) -> int:
    """Print a line per run, the newest last."""
    runs = sorted(store.runs(), key=lambda run: run.path.stat().st_mtime)
    if not runs:
        print(f"no runs in {store.root}")
        return 0
    rows: list[tuple[str, ...]] = [
        ("run", "state", "label", "seed", "study", "time", "size", "last change")
    ]
    rows += [_row(run) for run in runs]
    print(columns(rows, right=(3, 5, 6)))
    return 0


def state(run: Run) -> str:
    """Say in a word how a run stands: done, running, failed or stopped."""
    if run.done:
        return "done"
    if run.live:
        return "running"
    return "failed" if run.record.get("error") else "stopped"


def show(run: Run) -> int:
    """Print a run's record, and what it wrote."""
    print(f"{run.name}  {state(run)}  {run.path}\n")
    for key, value in run.record.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"{key:<18} {text}")
    last = run.metrics()[-1:]
    if last:
        print(f"{'last metrics':<18} {json.dumps(last[0])}")
    files = [file for file in sorted(run.path.rglob("*")) if file.is_file()]
    print()
    for file in files:
        print(f"{count(file.stat().st_size, 'B'):>8}  {file.relative_to(run.path)}")
    return 0


def _row(run: Run) -> tuple[str, ...]:
    record = run.record
    changed = datetime.datetime.fromtimestamp(run.path.stat().st_mtime).astimezone()
    return (
        run.name,
        state(run),
        str(record.get("label") or record.get("name") or ""),
        str(record.get("seed", "")),
        str(record.get("study") or ""),
        clock(float(record.get("seconds") or 0.0)),
        count(size(run.path), "B"),
        f"{changed:%Y-%m-%d %H:%M}",
    )


def size(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _remove(store: Store, runs: list[Run], what: str, delete: bool) -> int:
    freed = sum(size(run.path) for run in runs)
    for run in runs:
        print(f"{'deleted' if delete else 'would delete'}  {run.name}  {state(run)}")
        if delete:
            store.delete(run)
    hint = "" if delete or not runs else "; add --yes to delete"
    print(f"{len(runs)} {what} runs, {count(freed, 'B')}{hint}")
    return 0
