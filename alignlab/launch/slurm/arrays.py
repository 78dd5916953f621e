"""From the stages of a study to few submissions: stages that are alike become one job array.

Alike are stages of one kind with the same resources whose inputs stand alike: all read the same
runs (an array that waits for them), or each reads the task of its own index in the arrays before it
(Slurm's ``aftercorr``), as the chains of many seeds do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Item:
    """One stage to submit."""

    run: str
    kind: str
    strict: tuple[str, ...]  # runs that must be done before it
    tolerant: tuple[str, ...]  # runs that must have ended
    script: str = ""  # the batch script; equal resources have equal ones


@dataclass(frozen=True)
class Spot:
    """Where a run stands: a job, or a task of an array."""

    job: str  # name of a batch, or the id of a job that was submitted before
    index: int | None = None  # in its array


@dataclass(frozen=True)
class Batch:
    """What one call of sbatch submits: a stage, or an array of alike ones."""

    kind: str
    script: str
    items: Mapping[int, Item]  # by index in the array
    level: int  # batches of one level do not wait for each other
    alike: tuple[str, ...] = ()  # arrays whose task of the same index must be done
    strict: tuple[str, ...] = ()  # runs that must be done before any task
    tolerant: tuple[str, ...] = ()  # runs that must have ended before any task

    @cached_property
    def name(self) -> str:
        """Name of the run; for an array its kind and a hash of its runs."""
        runs = [item.run for item in self.items.values()]
        if len(runs) == 1:
            return runs[0]
        digest = hashlib.sha256("\n".join(runs).encode()).hexdigest()
        return f"{self.kind}-array-{digest[:10]}"

    def part(self, indices: Sequence[int]) -> Batch:
        """The batch with some of its tasks only."""
        kept = {index: self.items[index] for index in indices}
        return Batch(self.kind, self.script, kept, self.level, self.alike, self.strict,
                     self.tolerant)  # fmt: skip


@dataclass
class _Arranger:
    largest: int
    spots: dict[str, Spot]
    found: list[Batch] = field(default_factory=list)

    def add(self, level: int, group: Sequence[Item]) -> None:
        """Arrange items of one level, kind and script: as few batches as one of two ways makes."""
        same = _by_parents(group)
        corresponding, rest = self._by_index(group)
        if len(corresponding) + len(rest) < len(same):
            for (_, arrays, strict, tolerant), items in corresponding.items():
                self._put(level, items, arrays, strict, tolerant)
            same = rest
        for (strict, tolerant), members in same.items():
            for first in range(0, len(members), self.largest):
                part = dict(enumerate(members[first : first + self.largest]))
                self._put(level, part, (), strict, tolerant)

    def _by_index(self, group: Sequence[Item]) -> tuple[dict, dict]:
        """Items whose inputs in arrays all have one index, by these arrays; and all other items."""
        found: dict[tuple, dict[int, Item]] = {}
        rest = []
        shared = set(group[0].strict).intersection(*(item.strict for item in group))
        for item in group:
            spots = {run: self.spots[run] for run in item.strict if run not in shared}
            tasks = {spot.job for spot in spots.values() if spot.index is not None}
            single = [run for run in item.strict if run in shared or spots[run].index is None]
            indices = {spot.index for spot in spots.values() if spot.index is not None}
            if len(indices) != 1 or len(tasks) + len(single) != len(item.strict):
                rest.append(item)
                continue
            [index] = indices
            turn = 0  # several readers of one task are in as many arrays
            shape = (tuple(sorted(tasks)), tuple(single), item.tolerant)
            while index in found.setdefault((turn, *shape), {}):
                turn += 1
            found[(turn, *shape)][index] = item
        return found, _by_parents(rest)

    def _put(
        self,
        level: int,
        items: Mapping[int, Item],
        arrays: tuple[str, ...],
        strict: tuple[str, ...],
        tolerant: tuple[str, ...],
    ) -> None:
        first = next(iter(items.values()))
        if len(items) == 1:
            items, arrays, strict = {0: first}, (), first.strict
        batch = Batch(first.kind, first.script, items, level, arrays, strict, tolerant)
        self.found.append(batch)
        for index, item in items.items():
            self.spots[item.run] = Spot(batch.name, index if len(items) > 1 else None)


def _by_parents(group: Iterable[Item]) -> dict[tuple, list[Item]]:
    found: dict[tuple, list[Item]] = {}
    for item in group:
        found.setdefault((item.strict, item.tolerant), []).append(item)
    return found


def arranged(items: Sequence[Item], spots: Mapping[str, Spot], largest: int) -> list[Batch]:
    """Batches for ``items``, inputs before readers; arrays have at most ``largest`` tasks.

    ``items`` are in an order of the graph. ``spots`` says where runs stand that were submitted
    before; every run that an item waits for is an item or has a spot.
    """
    level: dict[str, int] = {}
    groups: dict[tuple[int, str, str], list[Item]] = {}
    for item in items:
        above = [level[run] for run in (*item.strict, *item.tolerant) if run in level]
        level[item.run] = 1 + max(above, default=-1)
        groups.setdefault((level[item.run], item.kind, item.script), []).append(item)
    arranger = _Arranger(largest, dict(spots))
    for depth, kind, script in sorted(groups, key=lambda key: key[0]):
        arranger.add(depth, groups[depth, kind, script])
    return arranger.found


def dependency(
    batch: Batch, ids: Mapping[str, str], spots: Mapping[str, Spot], sizes: Mapping[str, int]
) -> str:
    """What sbatch is told of a batch's inputs; empty where it waits for nothing.

    ``ids`` are the ids of the jobs of batches by name, ``sizes`` how many tasks their arrays have.
    """
    corr = [f"aftercorr:{ids.get(job, job)}" for job in batch.alike]
    parts = [*corr]
    for word, runs in (("afterok", batch.strict), ("afterany", batch.tolerant)):
        if runs:
            parts.append(":".join([word, *_named(runs, ids, spots, sizes)]))
    return ",".join(parts)


def _named(
    runs: Sequence[str],
    ids: Mapping[str, str],
    spots: Mapping[str, Spot],
    sizes: Mapping[str, int],
) -> list[str]:
    """Ids of jobs; an array all of whose tasks are meant is named as a whole."""
    by_job: dict[str, list[int | None]] = {}
    for run in dict.fromkeys(runs):
        by_job.setdefault(spots[run].job, []).append(spots[run].index)
    named: list[str] = []
    for job, indices in by_job.items():
        known = ids.get(job, job)
        if indices == [None] or len(indices) == sizes.get(job):
            named.append(known)
        else:
            named += [f"{known}_{index}" for index in indices]
    return named


def spans(indices: Iterable[int]) -> str:
    """Indices of an array as sbatch reads them: ``0-4,7``."""
    found: list[list[int]] = []
    for index in sorted(indices):
        if found and index == found[-1][1] + 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
