"""What a stage hands to the loop, and what the loop hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.models.backbone import View

Evaluate = Callable[[], Mapping[str, float]]
"""Measures the model on held-out data; every process calls it and the main one's answer counts."""


@dataclass(frozen=True)
class Micro:
    """One forward-backward: the view it trains, its data, its size, and its name in messages."""

    view: str
    data: Any
    tokens: int
    label: str


class Work(Protocol):
    """What a stage trains on; the loop knows nothing else about the method."""

    def micros(self, step: int) -> Sequence[Micro]:
        """Make this process's micro-batches of optimizer step ``step`` (1-based), dropout off."""
        ...

    def loss(
        self, view: View, micro: Micro
    ) -> tuple[Tensor, Mapping[str, tuple[float | Tensor, float | Tensor]]]:
        """Loss, (), and metrics as (sum, count).

        The loss is already divided by the count of the step's whole batch over all processes, so
        that the losses of all micro-batches add up to the loss of the step.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return what is not a function of (seed, step), for a checkpoint between two steps."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` returned."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """Optimizer steps done, tokens through the model over all processes, seconds of all sessions.

    ``best_step`` is the step whose weights early stopping brought back.
    """

    steps: int
    tokens: int
    seconds: float
    best_step: int | None = None
