"""Means over the steps since the last log line, kept as (sum, count) and read once per line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignlab.engine.distributed import Workers

Value = float | Tensor


class Metrics:
    """Running (sum, count) per name; tensors stay on their device until ``flush``."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Value, Value]] = {}

    def add(self, metrics: Mapping[str, tuple[Value, Value]]) -> None:
        """Add sums and counts; a count of 0 measures nothing."""
        for name, (total, count) in metrics.items():
            before, seen = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (before + _exact(total), seen + _exact(count))

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def merge(self, other: Metrics) -> None:
        """Add all that ``other`` has measured."""
        self.add(other._sums)

    def flush(self, workers: Workers) -> dict[str, float]:
        """Mean of every name over all processes, and a fresh start; names nobody measured vanish.

        One transfer from the device, one reduction over the processes.
        """
        names = workers.union(self._sums)
        pairs = [self._sums.get(name, (0.0, 0.0)) for name in names]
        flat = [_on(value, workers.device) for pair in pairs for value in pair]
        self._sums = {}
        if not flat:
            return {}
        values = workers.sum(torch.stack(flat)).tolist()
        means = {}
        for name, total, count in zip(names, values[::2], values[1::2], strict=True):
            if count:
                means[name] = total / count
            elif not math.isfinite(total):
                means[name] = total
        return means

    def state(self) -> dict[str, Any]:
        """Return the unlogged sums, for a checkpoint."""
        return {name: (float(total), float(count)) for name, (total, count) in self._sums.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back the unlogged sums of a checkpoint."""
        self._sums = {}
        self.take(state)

    def take(self, state: Mapping[str, Any]) -> None:
        """Add the unlogged sums of a checkpoint."""
        self.add({name: (total, count) for name, (total, count) in state.items()})


def _exact(value: Value) -> Value:
    """float64, so that sums over many steps do not drift; detached, so that no graph is kept."""
    return value.detach().double() if isinstance(value, Tensor) else float(value)


def _on(value: Value, device: torch.device) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=device)
