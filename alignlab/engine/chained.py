"""Several optimizers as one, each for parameters of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch


class Chained(torch.optim.Optimizer):
    """Steps all ``parts``; its parameter groups and its state are theirs, not copies."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        groups = [group for part in parts for group in part.param_groups]
        super().__init__([{"params": g["params"]} for g in groups], {})
        self.parts = tuple(parts)
        self.param_groups = groups
        self.state: Any = defaultdict(dict)
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for part in self.parts:
            part.step(closure)

    def part_of(self, parameter: torch.nn.Parameter) -> tuple[torch.optim.Optimizer, int, int]:
        """The part that updates ``parameter``, and its place: number of the group, and in it."""
        for part in self.parts:
            for number, group in enumerate(part.param_groups):
                for place, own in enumerate(group["params"]):
                    if own is parameter:
                        return part, number, place
        raise KeyError("no part updates this parameter")
