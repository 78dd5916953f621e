"""``alignlab runs``: what is in the store, and what of it can go."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignlab import seal
from alignlab.commands.study import store_root
from alignlab.commands.text import columns, count
from alignlab.engine.progress import clock
from alignlab.errors import ConfigError
from alignlab.launch.scheduler import Submission
from alignlab.run import Run, Store
from alignlab.upstream import upstreams


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
    if not runs and not upstreams():
        print(f"no runs in {store.root}")
        return 0
    head = ("run", "state", "label", "seed", "study", "time", "size", "last change", "from")
    rows: list[tuple[str, ...]] = [head, *(_row(run) for run in runs), *_elsewhere(runs)]
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    print(columns(rows, right=(3, 5, 6)))
    return 0


def _elsewhere(here: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    """Finished runs of the places in $ALIGNLAB_UPSTREAM that the store does not have."""
    seen = {run.name for run in here if run.done}
    for place in upstreams():
        try:
            place.check()
        except ConfigError as error:
            print(str(error), file=sys.stderr)
            continue
        if place.listed is None:
            print(f"{place.where} shows no list of its runs; a plan finds them.", file=sys.stderr)
        for name in sorted((place.listed or frozenset()) - seen):
            if (said := place.seal_of(name)) is not None:
                seen.add(name)
                when = datetime.datetime.fromtimestamp(said["finished"]).astimezone()
                yield (name, "done", "", "", "", "", "", f"{when:%Y-%m-%d %H:%M}", place.where)


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
    if origin := seal.read(run.path).get("upstream"):
        left = f"; not here: {', '.join(missing)}" if (missing := run.missing()) else ""
        print(f"{'brought from':<18} {origin}{left}")
    for key, value in run.record.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"{key:<18} {text}")
    for name, text in _execution(run):
        print(f"{name:<18} {text}")
    last = run.metrics()[-1:]
    if last:
        print(f"{'last metrics':<18} {json.dumps(last[0])}")
    files = [file for file in sorted(run.path.rglob("*")) if file.is_file()]
    print()
    for file in files:
        print(f"{count(file.stat().st_size, 'B'):>8}  {file.relative_to(run.path)}")
    return 0


def _execution(run: Run) -> Iterator[tuple[str, str]]:
    """The job of a cluster that executed a run last, and the logs of what it printed."""
    folder = Store(run.path.parent).studies / str(run.record.get("study"))
    submission = Submission.read(folder)
    if submission is not None and run.name in submission.jobs:
        yield "job", f"{submission.cluster} {submission.jobs[run.name].id}"
    for log in sorted((folder / "logs").glob(f"{run.name}.*log")):
        yield "log", str(log)


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
        str(seal.read(run.path).get("upstream", "")) if run.done else "",
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
