"""Several reward models as one reward, so that what only one of them likes counts less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from alignlab.typed import Range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """How the scores r₁ … r_E of several reward runs become one.

    ``mean``: μ = Σ r_e / E. ``min``: the most pessimistic member (worst-case optimization).
    ``uwo``: μ − λ·Σ (r_e − μ)² / E with λ = ``penalty``, uncertainty-weighted optimization (Coste
    et al. 2023, arXiv:2310.02743). Reward runs are normalised each on their own annotated
    completions, so their scores have one unit. One reward alone is itself, whatever stands here.
    """

    combine: Literal["mean", "min", "uwo"]
    penalty: Annotated[float, Range(min=0)]  # λ of uwo; the others do not use it

    def __call__(self, scores: Tensor) -> Tensor:
        """One score per completion (C,) of those of E members (E, C)."""
        if self.combine == "min":
            return scores.min(dim=0).values
        mean = scores.mean(dim=0)
        if self.combine == "mean":
            return mean
        return mean - self.penalty * (scores - mean).square().mean(dim=0)
