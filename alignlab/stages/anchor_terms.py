"""How the terms of an anchor come into a training: as micro-batches beside those of the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from alignlab.data.group import TokenGroup
from alignlab.engine.work import Micro
from alignlab.models.changes import Change, changes_of
from alignlab.objectives.forgetting import weight_change

if TYPE_CHECKING:
    from alignlab.engine.distributed import Engine
    from alignlab.engine.work import Work
    from alignlab.models.backbone import Backbone, View
    from alignlab.stages.packed import Metrics

Importance = Callable[[Sequence[Change]], Sequence[Tensor]]


@dataclass(frozen=True)
class Scene:
    """What an anchor finds: the policy as it starts, and how it will be trained."""

    backbone: Backbone
    view: str
    source: Path | None  # folder of the model that the view was made from; None: the base
    engine: Engine
    seed: int
    chosen: Callable[[int], Sequence[TokenGroup]]  # groups of an optimizer step, of all processes


class Part(Protocol):
    """Data of a micro-batch that an anchor made; knows its own loss."""

    def loss(self, view: View) -> tuple[Tensor, Metrics]:
        """Its part of the anchor's term, and metrics as (sum, count)."""
        ...


class Terms(Protocol):
    """The terms of one anchor, step by step."""

    def micros(self, step: int) -> Sequence[Micro]:
        """Micro-batches of this process for optimizer step ``step``, whose data are `Part`."""
        ...


class Anchored:
    """A work with the terms of an anchor beside its own."""

    def __init__(self, work: Work, terms: Terms) -> None:
        self.work, self.terms = work, terms

    def micros(self, step: int) -> list[Micro]:
        """The anchor's micro-batches, then the work's.

        A penalty's pass is like no other, and ZeRO sums the gradients of all processes pass by
        pass: first, it meets its like however many the work has on each.
        """
        return [*self.terms.micros(step), *self.work.micros(step)]

    def loss(
        self, view: View, micro: Micro
    ) -> tuple[Tensor, Mapping[str, tuple[float | Tensor, float | Tensor]]]:
        """The loss of whichever of the two made the micro-batch."""
        if micro.label.startswith(LABEL):
            part: Part = micro.data
            return part.loss(view)
        return self.work.loss(view, micro)

    def state(self) -> dict[str, Any]:
        """The work's: an anchor is a function of (seed, step, weights) and of its start."""
        return self.work.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` returned."""
        self.work.load_state(state)


LABEL = "anchor"  # how micro-batches of anchors are named


@dataclass(frozen=True)
class Penalty:
    """``weight · ½ Σ F d²`` over all changes, in one micro-batch of every process."""

    view: str
    changes: Sequence[Change]
    importance: Sequence[Tensor] | None
    weight: float
    processes: int

    def micros(self, step: int) -> list[Micro]:
        """One: every process adds an equal part."""
        return [Micro(self.view, self, 0, f"{LABEL}: change of the weights")]

    def loss(self, view: View) -> tuple[Tensor, Metrics]:
        """The penalty, divided by the processes, after a pass that weighs nothing."""
        total = torch.zeros((), device=view.model.device)
        for change, importance in zip(self.changes, self._importances(), strict=True):
            total = total + change.through(lambda d, f=importance: weight_change(d, f))  # type: ignore[misc]
        total = self.weight * total
        # Engines that shard gradients count the passes through them: one for every backward.
        return view.nothing() + total / self.processes, {"anchor": (total.detach(), 1)}

    def _importances(self) -> Sequence[Tensor | None]:
        return self.importance or [None] * len(self.changes)


def penalty(scene: Scene, weight: float, importance: Importance | None) -> Penalty:
    """A penalty on the change of the weights from now on."""
    changes = changes_of(scene.backbone, scene.view)
    found = importance(changes) if importance else None
    return Penalty(scene.view, changes, found, weight, scene.engine.workers().world)
