"""Which job of a scheduler executes which run of a study, and how such jobs stand.

``studies/NAME/submission.json`` names the scheduler and the job of every run that was handed to it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from alignlab import files

FILE = "submission.json"
State = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class JobState:
    """How a job stands, in our words and in the scheduler's."""

    state: State
    reason: str = ""  # why it waits, or how it ended
    starts: str = ""  # when the scheduler expects to start it

    @property
    def live(self) -> bool:
        """Whether it still stands in the queue, or runs."""
        return self.state in ("queued", "running")


class Scheduler(Protocol):
    """What a study asks of a scheduler after it has handed its stages to it."""

    def states(self, jobs: Collection[str]) -> dict[str, JobState]:
        """How these jobs stand; one that the scheduler has forgotten is not in the answer."""
        ...

    def cancel(self, jobs: Collection[str]) -> None:
        """End these jobs, whether they wait or run."""
        ...


@dataclass(frozen=True)
class Job:
    """One job, as it was submitted."""

    id: str  # with the index in its array: 123_4
    time: float  # epoch of the submission
    study: str  # which submitted it


@dataclass
class Submission:
    """What of a study was handed to a scheduler."""

    cluster: str  # which kind of launch: slurm
    jobs: dict[str, Job] = field(default_factory=dict)  # by run
    last: str = ""  # the job that writes the report when the others have ended

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read that of the study in ``folder``; None where nothing was submitted."""
        content = files.read_json(folder / FILE)
        if content is None:
            return None
        jobs = {run: Job(**job) for run, job in content["jobs"].items()}
        return cls(content["cluster"], jobs, content["last"])

    def write(self, folder: Path) -> None:
        """Write it into the folder of the study, as it is now: others may be adding to it."""
        jobs = {run: vars(job) for run, job in self.jobs.copy().items()}
        content: dict[str, Any] = {"cluster": self.cluster, "time": time.time()}
        files.write_atomically(folder / FILE, {**content, "last": self.last, "jobs": jobs})

    def states(self, scheduler: Scheduler) -> Mapping[str, JobState]:
        """How the jobs stand, by run; a forgotten one is left out."""
        known = scheduler.states({job.id for job in self.jobs.values()})
        return {run: known[job.id] for run, job in self.jobs.items() if job.id in known}


def how_it_ended(
    job: Job, state: JobState | None, told: Mapping[str, Any] | None
) -> tuple[Literal["failed", "cancelled"], str] | None:
    """What became of a stage that is not done and whose job is not live, and why.

    ``told`` is the outcome file of the stage, if there is one. None where the job ended well: the
    files of a network arrive late.
    """
    late = told is not None and float(told.get("time") or 0.0) >= job.time
    word = told["status"] if told is not None and late else ""
    if told is not None and word in ("failed", "blocked"):
        return "failed", str(told["reason"])
    if state is None:
        gone = "is no longer in the queue and left no word, as if cancelled before it began"
        return "cancelled", f"its job {job.id} {gone}"
    if state.state == "cancelled":
        return "cancelled", f"its job {job.id} was cancelled ({state.reason})"
    if told is not None and word == "interrupted":
        return "failed", f"{told['reason']} It was not requeued again (launch.max_requeues)."
    if state.state == "failed":
        return "failed", f"its job {job.id} ended: {state.reason}"
    return None


def scheduler_of(cluster: str) -> Scheduler:
    """The scheduler that a submission names, as this machine reaches it."""
    from alignlab.launch.slurm.client import Client

    if cluster != "slurm":
        raise ValueError(f"no scheduler is called {cluster!r}")
    return Client()
