"""What a scheduler says of the stages of a study that were handed to it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from alignlab import files
from alignlab.errors import AlignlabError
from alignlab.launch.scheduler import (
    Job,
    JobState,
    Submission,
    how_it_ended,
    scheduler_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.report.live import StageState
    from alignlab.run import Store

WORDS = {  # of Slurm, said more plainly
    "Dependency": "its inputs are not done (Dependency)",
    "Priority": "others come first (Priority)",
    "Resources": "nothing free (Resources)",
    "BeginTime": "requeued, starts again soon (BeginTime)",
}
EVERY = 10.0  # seconds between two questions: a scheduler serves all users of a cluster


@dataclass
class Queue:
    """The jobs of one study; asks the scheduler now and then."""

    store: Store
    study: str
    every: float = EVERY
    trouble: str = ""  # why the scheduler cannot be asked
    goes_on: bool = False  # whether a last job will submit more, or write the report
    _states: Mapping[str, JobState] = field(default_factory=dict)  # by run
    _asked: float = float("-inf")
    _read: tuple[int, Submission | None] = (0, None)

    def look(
        self, stages: Sequence[StageState], started: float
    ) -> tuple[list[StageState], dict[str, dict[str, Any]]]:
        """Stages with what is known of their jobs, and what became of those whose job has ended.

        Of jobs that ended before ``started`` nothing is said: a newer command begins anew.
        """
        submission = self._submission()
        if submission is None:
            return list(stages), {}
        open_stages = [s for s in stages if s.status in ("waiting", "stopped")]
        self._ask(submission, waiting=bool(open_stages))
        said: dict[str, dict[str, Any]] = {}
        found = []
        for stage in stages:
            job = submission.jobs.get(stage.run)
            if job is None:
                found.append(stage)
                continue
            log = self._folder(job) / "logs" / f"{stage.run}.log"
            found.append(replace(stage, job=job.id, log=str(log)))
            if stage.status in ("waiting", "stopped"):
                state = self._states.get(stage.run)
                if state is not None and state.live:
                    found[-1] = _live(found[-1], state)
                elif job.time >= started and (end := self._end(stage.run, job, state)):
                    said[stage.run] = end
        return found, said

    def _folder(self, job: Job) -> Path:
        return self.store.studies / job.study

    def _submission(self) -> Submission | None:
        file = self.store.studies / self.study / "submission.json"
        stamp = file.stat().st_mtime_ns if file.is_file() else 0
        if stamp != self._read[0]:
            self._read = (stamp, Submission.read(file.parent))
            self._asked = float("-inf")
        return self._read[1]

    def _ask(self, submission: Submission, *, waiting: bool) -> None:
        if time.monotonic() - self._asked < self.every:
            return
        self._asked = time.monotonic()
        if not waiting:  # what runs or is done is seen in the files
            self._states, self.goes_on = {}, False
            return
        try:
            scheduler = scheduler_of(submission.cluster)
            self._states = submission.states(scheduler)
            last = scheduler.states({submission.last}) if submission.last else {}
            self.goes_on = any(state.live for state in last.values())
            self.trouble = ""
        except AlignlabError as error:
            self.trouble = f"{error} What is queued cannot be told from here."

    def _end(self, run: str, job: Job, state: JobState | None) -> dict[str, Any] | None:
        """What became of a stage whose job is over."""
        told = files.read_json(self._folder(job) / "outcomes" / f"{run}.json")
        if state is None and self.trouble and told is None:
            return None
        found = how_it_ended(job, state, told)
        words = {"failed": "failed", "cancelled": "stopped"}
        return None if found is None else {"status": words[found[0]], "reason": found[1]}


def _live(stage: StageState, state: JobState) -> StageState:
    if state.state == "running":
        return replace(stage, status="running", reason="")
    expected = f", expected to start {state.starts.replace('T', ' ')}" if state.starts else ""
    why = WORDS.get(state.reason, state.reason)
    return replace(stage, status="queued", reason=f"{why}{expected}")
