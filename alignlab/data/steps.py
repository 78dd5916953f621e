"""Optimizer steps of as many rows as fit into so many tokens, and how often each row is shown."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from alignlab.data.order import step_rows


class TokenSteps:
    """Rows of each optimizer step: as many, in the seeded order, as fit into ``budget`` tokens.

    The order is that of `step_rows`, a seeded permutation per epoch; a step may cross the end of an
    epoch, and a row larger than the budget is a step of its own. Everything here is a function of
    (sizes, budget, seed), so resume is exact and the number of processes changes nothing.
    """

    def __init__(self, sizes: np.ndarray, budget: int, seed: int) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        if budget < 1 or not len(self.sizes) or self.sizes.min() < 1:
            raise ValueError(f"TokenSteps needs rows with tokens, and a budget: {sizes}, {budget}.")
        self.budget, self.seed = budget, seed
        self._ends = [0]  # rows of the endless order that the first 0, 1, 2 … steps take
        self._epoch = lru_cache(maxsize=2)(self._read)

    def rows(self, step: int) -> list[int]:
        """Rows of optimizer step ``step`` (from 0)."""
        first, last, count = self.end(step), self.end(step + 1), len(self.sizes)
        picked: list[int] = []
        for epoch in range(first // count, (last - 1) // count + 1):
            order, _ = self._epoch(epoch)
            picked += order[max(first - epoch * count, 0) : last - epoch * count]
        return picked

    def end(self, steps: int) -> int:
        """Rows of the endless order that the first ``steps`` steps take together."""
        while len(self._ends) <= steps:
            self._ends.append(self._after(self._ends[-1]))
        return self._ends[steps]

    def steps_of(self, epochs: float) -> int:
        """Optimizer steps that show every row ``epochs`` times."""
        wanted, steps = round(epochs * len(self.sizes), 9), 1
        while self.end(steps) < wanted:
            steps += 1
        return steps

    def _after(self, first: int) -> int:
        """Where the step that starts at place ``first`` of the endless order ends."""
        room, place, count = self.budget, first, len(self.sizes)
        while True:
            epoch, begin = divmod(place, count)
            _, before = self._epoch(epoch)
            end = int(np.searchsorted(before, before[begin] + room, side="right")) - 1
            room -= int(before[end] - before[begin])
            place += end - begin
            if end < count:
                return max(place, first + 1)

    def _read(self, epoch: int) -> tuple[list[int], np.ndarray]:
        """Rows of an epoch in order, and the tokens before each of its places (rows + 1,)."""
        order = step_rows(epoch, len(self.sizes), len(self.sizes), self.seed)
        return order, np.concatenate([[0], np.cumsum(self.sizes[order])])


def shown(rows: int, seed: int, end: int) -> np.ndarray:
    """How often each of ``rows`` rows is among the first ``end`` of the endless order, (rows,)."""
    epochs, rest = divmod(end, rows)
    times = np.full(rows, epochs, dtype=np.int64)
    if rest:
        times[step_rows(epochs, rows, rows, seed)[:rest]] += 1
    return times
