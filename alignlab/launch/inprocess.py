"""Execute a plan in this process, one stage after another."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.errors import AlignlabError, Interrupted
from alignlab.launch.board import Board
from alignlab.launch.execute import execute, failure
from alignlab.launch.task import Outcome, Place, Task

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
        Interrupted: SIGINT or SIGTERM came.
    """
    board = Board(plan)
    while ready := board.ready():
        node = ready[0]
        task = Task.of(node, place)
        board.start(node.run)
        for outcome in board.settle(attempt(task, logs, note)):
            settled(outcome)
    return board.results()


def attempt(task: Task, logs: Path, note: Callable[[str], None]) -> Outcome:
    """Execute one stage and turn whatever it raises, but an interruption, into an outcome."""
    began = time.monotonic()
    try:
        return execute(task, note)
    except Interrupted:
        raise
    except AlignlabError as error:
        return failure(task, error, time.monotonic() - began)
    except Exception as error:
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{task.run}.error.log"
        log.write_text(traceback.format_exc(), encoding="utf-8")
        outcome = failure(task, error, time.monotonic() - began)
        return replace(outcome, reason=f"{outcome.reason} (traceback: {log})", exit_code=1)
