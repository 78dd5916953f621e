"""Execute a plan in this process, or in each of several, one stage after another."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.errors import AlignlabError, Interrupted, TrainingError
from alignlab.launch.board import Board
from alignlab.launch.execute import execute, failure
from alignlab.launch.ranks import Ranks, led
from alignlab.launch.task import Outcome, Place, Task
from alignlab.run import Store

if TYPE_CHECKING:
    from alignlab.plan import Plan


def run_here(
    plan: Plan,
    place: Place,
    logs: Path,
    note: Callable[[str], None],
    settled: Callable[[Outcome], None],
) -> list[Outcome]:
    """Execute all nodes of ``plan`` that are not done; a failed stage blocks only its descendants.

    ``settled`` hears of every outcome as it happens; the traceback of an unexpected error goes to a
    file in ``logs``.

    Raises:
        Interrupted: a signal came.
        TrainingError: of several processes one is gone, so that no further stage can begin.
    """
    board, ranks = Board(plan), led()
    while ready := board.ready():
        node = ready[0]
        task = Task.of(node, place)
        board.start(node.run)
        ranks.say({"task": task.to_json()})
        found = attempt(task, logs, note, ranks)
        for outcome in board.settle(found):
            settled(outcome)
        if not ranks.sound:
            raise TrainingError(f"{node.name}: {found.reason}")
    return board.results()


def follow(ranks: Ranks, note: Callable[[str], None]) -> int:
    """Take part in what the main process executes, until it says with which code all end."""
    while "end" not in (word := ranks.hear()):
        task = Task.from_json(word["task"])
        logs = Store(Path(task.place.store)).studies / task.place.study / "logs"
        outcome = attempt(task, logs, note, ranks)
        if not ranks.sound:
            raise TrainingError(f"{task.name}: {outcome.reason}")
    return int(word["end"])


def attempt(task: Task, logs: Path, note: Callable[[str], None], ranks: Ranks) -> Outcome:
    """Execute one stage and turn whatever it raises, but an interruption, into an outcome."""
    began = time.monotonic()
    try:
        return execute(task, note, ranks)
    except Interrupted:
        raise
    except AlignlabError as error:
        return failure(task, error, time.monotonic() - began)
    except Exception as error:
        logs.mkdir(parents=True, exist_ok=True)
        which = "" if ranks.is_main else f".rank{ranks.rank}"
        log = logs / f"{task.run}{which}.error.log"
        log.write_text(traceback.format_exc(), encoding="utf-8")
        outcome = failure(task, error, time.monotonic() - began)
        return replace(outcome, reason=f"{outcome.reason} (traceback: {log})", exit_code=1)
