"""Waiting for the jobs of a study: what became of each stage, told as it becomes known."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alignlab import files, interruption
from alignlab.launch.board import Board
from alignlab.launch.outcomes import outcome_file
from alignlab.launch.scheduler import Job, JobState, Scheduler, Submission, how_it_ended
from alignlab.launch.task import Outcome, Place
from alignlab.run import Store

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.plan import Node, Plan

GRACE = 60.0  # seconds until a job that left no word is taken for lost: files come late over NFS


@dataclass
class Waiter:
    """Looks at the queue and at the files until every stage has an outcome."""

    plan: Plan
    place: Place
    folder: Path  # of the study
    scheduler: Scheduler
    more: Callable[[], bool]  # submits what is left to submit; whether something still is
    every: float  # seconds between two looks
    grace: float = GRACE
    _missed: dict[str, float] = field(default_factory=dict)  # since when a run's job says nothing

    def __post_init__(self) -> None:
        self.store = Store(self.folder.parents[1])
        self.board = Board(self.plan)

    def wait(self, settled: Callable[[Outcome], None]) -> list[Outcome]:
        """Return what became of every stage.

        Raises:
            Interrupted: a signal came; the jobs go on.
        """
        with interruption.heeding():
            while True:
                left = self.more()
                submission = Submission.read(self.folder) or Submission("slurm")
                states = submission.states(self.scheduler)
                for run, node in self.plan.nodes.items():
                    if run in self.board.outcomes or (run not in submission.jobs and left):
                        continue
                    outcome = self.ended(node, submission.jobs.get(run), states.get(run))
                    for each in self.board.settle(outcome) if outcome else ():
                        settled(each)
                if self.board.finished:
                    return self.board.results()
                time.sleep(self.every)

    def ended(self, node: Node, job: Job | None, state: JobState | None) -> Outcome | None:
        """What became of a stage; None while its job waits or runs."""
        if state is not None and state.live:
            self._missed.pop(node.run, None)
            return None
        run = self.store.run(node.kind, node.key)
        if run.done:
            return Outcome(node.run, node.name, "done", float(run.record.get("seconds") or 0.0))
        told = files.read_json(outcome_file(self.place, node.run))
        found = how_it_ended(job, state, told) if job else ("failed", "it was not submitted")
        since = self._missed.setdefault(node.run, time.monotonic())
        late = time.monotonic() - since >= self.grace
        if (state is None and told is None and not late) or (found is None and not late):
            return None  # a short while: files come late over a network
        reason = found[1] if found else "its job ended well, but its run is not done"
        own = told if told is not None and told["reason"] == reason else {}
        kind, code = own.get("error_kind") or "failed", own.get("exit_code") or 1
        return Outcome(node.run, node.name, "failed", 0.0, reason, int(code), str(kind))
