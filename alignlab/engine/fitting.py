"""The token budget that fits: a short search with a stage's longest rows, forward and backward.

A budget is memory and speed, never mathematics: losses are divided by the counts of the whole
step, so any budget gives the same weights up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from alignlab.data.pack import flatten
from alignlab.engine import checkpoint
from alignlab.engine.memory import held, most_taken

if TYPE_CHECKING:
    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Workers
    from alignlab.models.backbone import Backbone

# Of the room that a budget may take: allocators leave gaps and kernels keep what they compiled. A
# training took 1.18 times what its micro-batch had taken in the search.
SHARE = 0.8
# Bytes of a trained parameter in fp32. AdamW keeps two moments, ZeRO a copy of its share as well.
GRADIENT, MOMENTS, MASTER, AVERAGE = 4, 8, 4, 4
TOO_MUCH = 1 << 60  # bytes; stands for a device that said no


def largest(taken: Callable[[int], int], first: int, most: int, room: float) -> int:
    """Most rows, at most ``most``, with which ``taken(rows)`` bytes are at most ``room``; else 0.

    Doubles from ``first`` and then bisects, to within an eighth. What memory takes grows at least
    in proportion, so a number that would exceed the room by proportion is not tried at all: on a
    CPU it could bring the machine down.
    """
    low, used, high = 0, 0, most + 1
    rows = min(first, most)
    while True:
        found = TOO_MUCH if low and used / low * rows > room else taken(rows)
        if found <= room:
            low, used = rows, found
        else:
            high = rows
        if high - low <= max(1, low // 8):
            return low
        rows = min(2 * low, most) if high > most else (low + high) // 2


def reserved(
    backbone: Backbone,
    views: Sequence[str],
    *,
    average: bool,
    zero: int,
    of: int,
    states: float = MOMENTS,
) -> int:
    """Bytes of the trained views that a training takes and that are not there before it.

    ``of`` processes share gradients from ZeRO 2 on, and from ZeRO 1 on the optimizer's states,
    which are ``states`` bytes a weight.
    """
    trained = sum(backbone.parameter_counts(view)[1] for view in views)
    gradients = GRADIENT / (of if zero >= 2 else 1)
    states = (states + MASTER) / of if zero else states
    return round(trained * (gradients + states + AVERAGE * average))


class Trial:
    """Forward and backward passes of a view over copies of one row, and what they take."""

    def __init__(
        self, backbone: Backbone, view: str, row: TokenGroup, workers: Workers, *, head: bool
    ) -> None:
        self.backbone, self.view, self.row, self.head = backbone, view, row, head
        self.workers = workers
        self._resting: int | None = None  # with gradients, which every later pass finds there

    def taken(self, rows: int) -> int:
        """Bytes that ``rows`` rows take beside weights and gradients, the most of all processes."""
        device = self.workers.device
        if self._resting is None:
            most_taken(device, lambda: self._pass(1), 0)
            self._resting = held(device)
        found = most_taken(device, lambda: self._pass(rows), self._resting)
        return self.workers.highest(TOO_MUCH if found is None else found)[0]

    def end(self) -> None:
        """Leave no gradient behind."""
        for parameter in self.backbone.trainable_parameters(self.view).values():
            parameter.grad = None

    def _pass(self, rows: int) -> None:
        states = checkpoint.rng_state()
        batch = flatten([self.row] * rows).to(self.workers.device)
        self.backbone.train_mode(True)
        try:
            with self.backbone.view(self.view) as active:
                out = active.scores(batch) if self.head else active.logps(batch)
                out.sum().backward()
        finally:
            self.backbone.train_mode(False)
            checkpoint.set_rng_state(states)
