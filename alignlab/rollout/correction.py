"""Importance correction between the policy that sampled and the policy that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Correction:
    """Weights of the loss's tokens, and how far sampler and trainer are apart."""

    weights: list[Tensor]  # C × (L,) w_t = min(π_t / μ_t, cap)
    gap_mean: float  # mean |log π − log μ| over tokens, nats
    gap_max: float  # the largest, nats
    capped: float  # share of tokens whose ratio was cut


def truncated_importance(
    trainer: Sequence[Tensor], sampler: Sequence[Tensor], cap: float, *, whole: bool = False
) -> Correction:
    """Truncated importance weights w = min(π/μ, cap) (Ionides 2008), per token.

    With ``whole`` every token of a completion has the weight of the completion,
    min(Π_t π_t/μ_t, cap): for losses whose action is the whole completion.

    Args:
        trainer: C × (L,) log π, nats, of the policy that is trained, before its update.
        sampler: C × (L,) log μ, nats, of what sampled.
        cap: upper bound of a weight; without one a few tokens would carry the gradient.
        whole: one weight for each completion.
    """
    differences = [new.float() - old.float() for new, old in zip(trainer, sampler, strict=True)]
    logs = [d.sum().expand(len(d)) if whole else d for d in differences]
    bound = torch.tensor(cap).log()
    flat = torch.cat(differences) if differences else torch.zeros(0)
    cut = torch.cat([log > bound for log in logs]) if logs else torch.zeros(0)
    return Correction(
        weights=[torch.minimum(log, bound).exp() for log in logs],
        gap_mean=float(flat.abs().mean()) if len(flat) else 0.0,
        gap_max=float(flat.abs().max()) if len(flat) else 0.0,
        capped=float(cut.double().mean()) if len(cut) else 0.0,
    )
