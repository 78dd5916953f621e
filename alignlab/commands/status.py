"""``alignlab status``: a study as it is now: what is queued and why, how far it is, what failed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignlab.commands.study import store_root
from alignlab.commands.watch import in_unicode, study_named
from alignlab.commands.watch_text import Style, draw
from alignlab.report.live import Snapshot, StageState, Watcher
from alignlab.report.pace import factors, remaining, stage_left
from alignlab.run import Store

LINES = 8  # of the log of a stage that failed
SHOWN = 5  # failed stages whose log is shown
TAIL = 8192  # bytes of a log that are looked at


def status(study: str | None, *, as_json: bool) -> int:
    """Print how a study stands; exit with 0 whatever that is.

    Raises:
        DataError: there is no such study.
    """
    store = Store(store_root())
    name = study_named(study, store)
    seen = Watcher(name, store).look()
    if as_json:
        print(json.dumps(to_json(seen, store.studies / name), indent=1))
        return 0
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    style = Style(colour=colour, unicode=in_unicode(sys.stdout))
    print("\n".join([*draw(seen, style), *_logs(seen, store.studies / name)]))
    page = store.studies / name / "report" / "index.html"
    if not seen.active and page.is_file():
        print(f"\nreport: {page}")
    return 0


def to_json(seen: Snapshot, folder: Path) -> dict[str, Any]:
    """The snapshot as one JSON object; seconds that nothing is known of are null."""
    corrections = factors(seen)
    live = seen.live()
    return {
        "study": seen.study,
        "command": seen.command,
        "active": seen.active,
        "done": live.done,
        "total": live.total,
        "seconds": seen.elapsed,
        "seconds_left": remaining(seen) if seen.active else None,
        "trouble": seen.trouble or None,
        "stages": [
            {
                "run": stage.run,
                "name": stage.name,
                "kind": stage.kind,
                "seed": stage.seed,
                "inputs": dict(stage.inputs),
                "status": stage.status,
                "reason": stage.reason or None,
                "job": stage.job or None,
                "log": str(log) if (log := log_of(stage, folder)) else None,
                "step": stage.step if stage.steps else None,
                "steps": stage.steps,
                "seconds": stage.spent,
                "seconds_left": stage_left(stage, corrections)
                if stage.status in ("running", "queued", "waiting")
                else None,
                "last_lines": list(last_lines(log)) if stage.status == "failed" and log else None,
            }
            for stage in seen.stages
        ],
    }


def log_of(stage: StageState, folder: Path) -> Path | None:
    """The file with what a stage printed; None without one."""
    found = (Path(stage.log or folder / "logs" / f"{stage.run}.log"),
             folder / "logs" / f"{stage.run}.error.log")  # fmt: skip
    return next((file for file in found if file.is_file()), None)


def last_lines(file: Path) -> Iterator[str]:
    """The last lines of a log; a line that was drawn over again and again counts once."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL))
        text = stream.read().decode("utf-8", errors="replace")
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    yield from [line for line in lines if line][-LINES:]


def _logs(seen: Snapshot, folder: Path) -> Iterator[str]:
    """The last lines of what failed, and where the others' logs are."""
    failed = seen.of("failed")
    for stage in failed[:SHOWN]:
        if log := log_of(stage, folder):
            yield f"\n{stage.name}  {log}"
            yield from (f"    {line}" for line in last_lines(log))
    if len(failed) > SHOWN:
        yield f"\n… and {len(failed) - SHOWN} more that failed"
    if (folder / "logs").is_dir():
        yield f"\nlogs: {folder / 'logs'}"
