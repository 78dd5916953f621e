"""Submitting the stages of a study: each once, whoever submits them and however often.

What is queued or running is left alone, also where another study of the store submitted it; what
failed, was cancelled or is forgotten is submitted again. A lease lets one submitter of a store work
at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from alignlab import files, typed
from alignlab.launch.scheduler import Job, Submission
from alignlab.launch.slurm.arrays import Batch, Item, Spot, arranged
from alignlab.launch.slurm.client import Client
from alignlab.launch.slurm.known import LAST, job_name, last_jobs, live_jobs
from alignlab.launch.slurm.sending import Sender
from alignlab.lease import Lease, wait
from alignlab.run import Store

REST = "rest.json"  # in jobs/: what Slurm did not take yet
SHARE = 0.8  # of the jobs that the controller keeps, for one study
NAMED = 2000  # jobs that the last one waits for by name


@dataclass
class Count:
    """What one submission came to."""

    submitted: int = 0
    attached: int = 0
    calls: int = 0
    rest: list[Item] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.submitted} stages submitted with {self.calls} calls of sbatch"]
        if self.attached:
            parts.append(f"{self.attached} were queued or running already")
        if self.rest:
            parts.append(f"{len(self.rest)} follow when Slurm takes more")
        return f"slurm: {', '.join(parts)} ({self.seconds:.1f} s)"


@dataclass
class Submitter:
    """Submits stages of one study."""

    store: Store
    study: str
    client: Client
    note: Callable[[str], None]
    last: str | None  # script of the job that comes after all others
    max_queued: int | None = None
    max_array: int | None = None

    def __post_init__(self) -> None:
        self.folder = self.store.studies / self.study
        self.jobs = self.folder / "jobs"

    def submit(self, items: Sequence[Item]) -> Count:
        """Submit what of ``items`` is neither queued nor running; they are in the graph's order.

        Raises:
            QueueFull: Slurm takes no job at all.
            ConfigError: Slurm refuses what is asked for.
        """
        began = time.monotonic()
        self.jobs.mkdir(parents=True, exist_ok=True)
        with self._alone():
            live = live_jobs(self.store, self.study, self.client, items, self._done)
            todo = _waiting_for(items, live)
            submission = Submission.read(self.folder) or Submission("slurm")
            for item in todo:
                submission.jobs.pop(item.run, None)
            # As if submitted now: what a job came to before is nothing of this submission's.
            now = {run: replace(job, time=time.time()) for run, job in live.items()}
            submission.jobs |= now
            count = self._send(submission, todo, now)
        count.attached = sum(item.run in live for item in items)
        count.seconds = time.monotonic() - began
        self.note(str(count))
        return count

    def rest(self) -> list[Item]:
        """What an earlier submission had to leave, as far as it can still be executed."""
        content: dict[str, Any] = files.read_json(self.jobs / REST) or {}
        items = [typed.build(Item, item, REST) for item in content.get("items", [])]
        live = live_jobs(self.store, self.study, self.client, items, self._done)
        kept: dict[str, Item] = {}
        for item in items:
            ahead = [run for run in item.strict if not self._done(run)]
            if all(run in live or run in kept for run in ahead):
                kept[item.run] = replace(item, strict=tuple(ahead))
        return list(kept.values())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lease = Lease(self.store.studies / ".submitting")
        wait(lease, lambda: False, self.note, "submitting", 0.5)
        try:
            yield
        finally:
            lease.release()

    def _done(self, run: str) -> bool:
        kind, _, key = run.partition("-")
        return self.store.run(kind, key).done

    def _send(self, submission: Submission, todo: Sequence[Item], live: Mapping[str, Job]) -> Count:
        limits = self.client.limits()
        room = (self.max_queued or int(SHARE * limits.jobs)) - len(live)
        spots = {run: _spot(job.id) for run, job in live.items()}
        batches = arranged(todo, spots, min(limits.array, self.max_array or limits.array))
        sender = Sender(self.client, self.folder, submission, {**spots, **_spots(batches)})
        before = last_jobs(self.client, self.folder) if self.last else []
        held = self._hold() if self.last and (todo or not before) else ""
        rest = list(todo)
        try:
            rest = sender.send(batches, room)
        finally:
            files.write_atomically(self.jobs / REST, {"items": [asdict(item) for item in rest]})
            if held:
                sent = [item for item in todo if item.run in submission.jobs]
                self._release(held, submission, sent, live, more=bool(rest))
                self.client.cancel(before)
                submission.last = held
            submission.write(self.folder)
        return Count(len(todo) - len(rest), 0, sender.calls, rest)

    def _hold(self) -> str:
        # Submitted before all others: where the queue is nearly full, this is the job that must be
        # in it. It is told later what it waits for.
        assert self.last is not None
        options = [
            "--hold",
            f"--job-name={job_name(self.study, LAST)}",
            f"--comment={self.folder}",
            f"--output={self.folder / 'logs' / 'report.log'}",
        ]
        return self.client.submit(self.last, options, [])

    def _release(
        self,
        held: str,
        submission: Submission,
        sent: Sequence[Item],
        live: Mapping[str, Job],
        *,
        more: bool,
    ) -> None:
        """Let the last job wait: for all that nothing else waits for, or to send more, for half."""
        runs = [*live, *(item.run for item in sent)]
        if more:
            runs = runs[: (len(runs) + 1) // 2]
        else:
            read = {run for item in sent for run in (*item.strict, *item.tolerant)}
            runs = [run for run in runs if run not in read]
        ids = list({_waited(submission.jobs[run], self.study): None for run in runs})
        self.client.release(held, f"afterany:{':'.join(ids[-NAMED:])}" if ids else "")


def _waiting_for(items: Sequence[Item], live: Mapping[str, Job]) -> list[Item]:
    """Items to submit, each with those inputs that are submitted too, or stand in the queue."""
    todo = {item.run for item in items if item.run not in live}

    def there(runs: Sequence[str]) -> tuple[str, ...]:
        return tuple(run for run in dict.fromkeys(runs) if run in todo or run in live)

    return [
        replace(item, strict=there(item.strict), tolerant=there(item.tolerant))
        for item in items
        if item.run in todo
    ]


def _spot(job: str) -> Spot:
    base, _, index = job.partition("_")
    return Spot(base, int(index) if index else None)


def _spots(batches: Sequence[Batch]) -> dict[str, Spot]:
    found = {}
    for batch in batches:
        for index, item in batch.items.items():
            found[item.run] = Spot(batch.name, index if len(batch.items) > 1 else None)
    return found


def _waited(job: Job, study: str) -> str:
    """Id to wait for: an array of this study as a whole, a task of another study's by itself."""
    return job.id.partition("_")[0] if job.study == study else job.id
