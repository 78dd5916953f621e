"""Calls of sbatch for many batches: level by level, several at a time, as long as Slurm takes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from alignlab.launch.scheduler import Job, Submission
from alignlab.launch.slurm.arrays import Batch, Item, Spot, dependency, spans
from alignlab.launch.slurm.client import Client, QueueFull
from alignlab.launch.slurm.known import job_name, list_file

AT_ONCE = 8  # calls side by side
SAVED_EVERY = 2.0  # seconds between two versions of submission.json


@dataclass
class Sender:
    """Submits batches, and writes down which job each run has become."""

    client: Client
    folder: Path  # of the study
    submission: Submission
    spots: Mapping[str, Spot]  # where the runs stand that batches wait for
    ids: dict[str, str] = field(default_factory=dict)  # of jobs, by batch
    sizes: dict[str, int] = field(default_factory=dict)  # of arrays, by batch
    calls: int = 0
    full: bool = False
    _saved: float = 0.0

    def send(self, batches: Sequence[Batch], room: int) -> list[Item]:
        """Submit ``batches``, at most ``room`` stages; return what was left out, in order."""
        rest: list[Item] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _, group in itertools.groupby(batches, key=lambda batch: batch.level):
                level = list(group)
                fitting = [] if rest else _fitting(level, room)
                room -= sum(len(batch.items) for batch in fitting)
                for left in pool.map(self._submit, fitting):
                    rest += left
                    self._save()
                taken = {item.run for batch in fitting for item in batch.items.values()}
                rest += [
                    item
                    for batch in level
                    for item in batch.items.values()
                    if item.run not in taken
                ]
        return rest

    def _submit(self, batch: Batch) -> list[Item]:
        """Submit one batch; where Slurm does not take it whole, the half of it, and so on."""
        if self.full:
            return list(batch.items.values())
        indices = list(batch.items)
        try:
            job = self._call(batch)
        except QueueFull:
            if len(indices) == 1:
                self.full = True
                return list(batch.items.values())
            middle = len(indices) // 2
            left = self._submit(batch.part(indices[:middle]))
            left += self._submit(batch.part(indices[middle:]))
            self.full = True
            return left
        self.ids[batch.name] = job
        self.sizes[batch.name] = len(indices)
        now = time.time()
        for index, item in batch.items.items():
            name = job if len(indices) == 1 else f"{job}_{index}"
            self.submission.jobs[item.run] = Job(name, now, self.folder.name)
        return []

    def _call(self, batch: Batch) -> str:
        array = len(batch.items) > 1
        name = job_name(self.folder.name, batch.name)
        out = self.folder / "jobs" / f"{name}.{'%a' if array else '0'}.out"
        options = [f"--job-name={name}", f"--comment={self.folder}", f"--output={out}"]
        argument = batch.name
        if array:
            options.append(f"--array={spans(batch.items)}")
            file = list_file(self.folder, batch.name)
            lines = [f"{index} {item.run}\n" for index, item in batch.items.items()]
            file.write_text("".join(lines), encoding="utf-8")
            argument = str(file)
        waits_for = dependency(batch, self.ids, self.spots, self.sizes)
        if waits_for:
            options += [f"--dependency={waits_for}", "--kill-on-invalid-dep=yes"]
        self.calls += 1
        return self.client.submit(batch.script, options, [argument])

    def _save(self) -> None:
        if time.monotonic() - self._saved > SAVED_EVERY:
            self.submission.write(self.folder)
            self._saved = time.monotonic()


def _fitting(batches: Sequence[Batch], room: int) -> list[Batch]:
    """The first of ``batches``, the last of them cut so that there are ``room`` stages at most."""
    found = []
    for batch in batches:
        indices = list(batch.items)[: max(0, room)]
        if indices:
            found.append(batch if len(indices) == len(batch.items) else batch.part(indices))
        room -= len(indices)
    return found
