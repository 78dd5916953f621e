"""The rule of Fisher-weighted merging: every element of every model counts by what it matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from alignlab import lazy
from alignlab.annotations import Range
from alignlab.objectives.declaration import called

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy.module("torch")

Floor = Annotated[float, Range(min=0, min_open=True)]


@called("Fisher-weighted")
def fisher(
    models: Sequence[Tensor], weights: Tensor, importances: Sequence[Tensor], *, floor: Floor
) -> Tensor:
    """Average of every element, weighted by how much it matters to each model.

    ``θ = Σ_i w_i F_i θ_i / Σ_i w_i F_i`` element by element, with ``F_i`` at least ``floor``

    Matena & Raffel 2022, 2111.09832: the maximum of the product of the models' posteriors, each
    approximated by a Gaussian with precision F_i. Where no model's F is above ``floor`` it is
    `alignlab.models.merging.linear`. F is per token, and so smaller than per row.

    Args:
        models: k tensors of one shape.
        weights: (k,).
        importances: k tensors of that shape, the diagonals F_i.
        floor: least F, so that what matters to no model is averaged.
    """
    first = models[0]
    raised = [
        weight * importance.to(first).clamp_min(floor)
        for weight, importance in zip(weights, importances, strict=True)
    ]
    total = torch.stack(raised).sum(0)
    merged = first.clone()
    for part, model in zip(raised[1:], models[1:], strict=True):
        merged += part / total * (model - first)
    return merged
