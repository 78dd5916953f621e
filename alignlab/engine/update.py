"""One optimizer update where every process holds everything: gradients are summed, then applied.

`sharded.Sharded` is the same where processes hold shares (ZeRO); the loop knows only what both do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from alignlab.engine.moments import moments_of, restore, updates_of
from alignlab.engine.optimizer import Optimizer, clip, hold_back
from alignlab.engine.shares import Reader, Section

if TYPE_CHECKING:
    from alignlab.engine.distributed import Workers
    from alignlab.engine.work import Micro
    from alignlab.models.backbone import Backbone
    from alignlab.models.bodies import Change


class Update(Protocol):
    """What the loop asks of it, micro-batch by micro-batch and once per step."""

    optimizer: torch.optim.Optimizer  # whose learning rates are set
    weights: dict[str, Tensor]  # view/name -> what this process keeps of a trained weight
    change: Change | None  # what the technique does beside updates

    def even(self, micros: Sequence[Micro]) -> Sequence[Micro]:
        """Make ``micros`` what this process does: empty ones too, where all must do alike."""
        ...

    def backward(self, loss: Tensor, view: str) -> None:
        """Add the gradient of a micro-batch of ``view``."""
        ...

    def apply(self, losses: Sequence[Tensor]) -> tuple[list[float], bool]:
        """Norm of the joint gradient, then the losses; and whether they were finite everywhere.

        The update is applied if they were, and nothing is changed if not.
        """
        ...

    def parted(
        self, tensors: Mapping[str, Section]
    ) -> tuple[dict[str, Section], dict[str, Section]]:
        """Part ``tensors`` and the moments into those whole on every process, and own shares.

        ``tensors`` are kept as the weights are.
        """
        ...

    def moved(self) -> dict[str, int]:
        """Updates that each weight's moments have seen."""
        ...

    def load(self, read: Reader, moved: Mapping[str, int]) -> None:
        """Take back weights and moments of a checkpoint."""
        ...

    def mine(self, read: Reader, kind: str) -> dict[str, Tensor]:
        """What this process keeps of the tensors of ``kind``, for every weight."""
        ...

    def holdings(self) -> dict[str, int]:
        """Elements that this process holds, for the run record; none where it holds all."""
        ...

    def close(self) -> None:
        """Free what only training needs."""
        ...


def trained_weights(
    backbone: Backbone, views: Sequence[str]
) -> tuple[dict[str, dict[str, torch.nn.Parameter]], dict[str, torch.nn.Parameter]]:
    """Trained parameters by view and name, and each of them once by ``view/name``."""
    named = {view: backbone.trainable_parameters(view) for view in views}
    seen: dict[int, str] = {}
    once = {}
    for view, own in named.items():
        for name, parameter in own.items():
            if seen.setdefault(id(parameter), f"{view}/{name}") == f"{view}/{name}":
                once[f"{view}/{name}"] = parameter
    return named, once


class Replicated:
    """Every process holds all weights, gradients and optimizer states."""

    def __init__(
        self, backbone: Backbone, views: Sequence[str], optimizer: Optimizer, workers: Workers
    ) -> None:
        named, self._parameters = trained_weights(backbone, views)
        self.parameters = list(self._parameters.values())
        self.weights = {name: p.detach() for name, p in self._parameters.items()}
        self.workers, self.max_norm = workers, optimizer.max_grad_norm
        workers.broadcast_(self.parameters)
        self.optimizer = optimizer.build(named, backbone.config.adapter.rates)
        self.change = backbone.changing(views)

    def even(self, micros: Sequence[Micro]) -> Sequence[Micro]:
        """The micro-batches as they are."""
        return micros

    def backward(self, loss: Tensor, view: str) -> None:
        """Add the gradient of a micro-batch."""
        self.workers.backward(loss)

    def apply(self, losses: Sequence[Tensor]) -> tuple[list[float], bool]:
        """Sum over the processes, clip at the joint norm, and apply what is finite everywhere."""
        hold_back(self.optimizer)
        if self.change is not None:
            self.change.before(counts=self.workers.is_main)
        self.workers.sum_gradients_(self.parameters)
        norm = clip(self.parameters, self.max_norm)
        # The step's one transfer from the device; nothing is applied before it is known to be sound
        values = torch.stack([x.float().to(self.workers.device) for x in (norm, *losses)]).tolist()
        [broken] = self.workers.highest(int(not all(map(math.isfinite, values))))
        if not broken:
            self.optimizer.step()
            if self.change is not None:
                self.change.after()
            self.optimizer.zero_grad(set_to_none=True)
        return values, not broken

    def parted(
        self, tensors: Mapping[str, Section]
    ) -> tuple[dict[str, Section], dict[str, Section]]:
        """Everything is whole everywhere."""
        return {**tensors, **moments_of(self.optimizer, self._parameters)}, {}

    def moved(self) -> dict[str, int]:
        """Updates that each weight's moments have seen."""
        return updates_of(self.optimizer, self._parameters)

    def load(self, read: Reader, moved: Mapping[str, int]) -> None:
        """Take back weights and moments of a checkpoint."""
        for name, saved in self.mine(read, "weights").items():
            self.weights[name].copy_(saved)
        for name, updates in moved.items():
            restore(self.optimizer, self._parameters[name], name, read, updates)

    def mine(self, read: Reader, kind: str) -> dict[str, Tensor]:
        """All tensors of ``kind``."""
        return {n: read.whole(kind, n).view_as(w) for n, w in self.weights.items()}

    def holdings(self) -> dict[str, int]:
        """Nothing to say: all of everything."""
        return {}

    def close(self) -> None:
        """Nothing is held that the optimizer does not hold."""
