"""Elementary functions that stay finite, forward and backward, in float32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from alignlab import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy.module("torch")

EXP_LIMIT = 20.0
"""Argument (nats) from which `safe_exp` goes on as a straight line; e²⁰ ≈ 4.9e8."""


def safe_exp(x: Tensor) -> Tensor:
    """Return eˣ, continued by its tangent above ``EXP_LIMIT``.

    ``eˣ`` for ``x ≤ 20``, ``e²⁰·(1 + x − 20)`` beyond. float32 overflows at x ≈ 88.7, and
    ``inf · 0`` is NaN; verl clamps instead, which loses the gradient exactly where the policy has
    moved furthest. The tangent keeps value and slope continuous and the gradient's direction right.

    Args:
        x: any shape, any real value.
    """
    return x.clamp(max=EXP_LIMIT).exp() + _tangent(x)


def safe_expm1(x: Tensor) -> Tensor:
    """Return eˣ − 1 without cancellation near 0, continued by its tangent above ``EXP_LIMIT``.

    Args:
        x: any shape, any real value.
    """
    return x.clamp(max=EXP_LIMIT).expm1() + _tangent(x)


def _tangent(x: Tensor) -> Tensor:
    """What eˣ gains above ``EXP_LIMIT`` as a straight line; 0 below it."""
    # Not `x - inside`: its two gradients cancel only after e²⁰ has swamped eˣ in float32.
    return math.exp(EXP_LIMIT) * (x - EXP_LIMIT).clamp(min=0)


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 − eˣ) for x ≤ 0 without cancellation.

    ``log(−expm1(x))`` above −log 2 and ``log1p(−eˣ)`` below (Mächler 2012). x is first moved to at
    most ``−eps`` of its dtype: the limit at 0 is −inf, and nearer to 0 the branch of
    ``torch.where`` that is not taken gives a NaN gradient (it does in TRL's ORPO).

    Args:
        x: any shape, log-probabilities.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = torch.log(-torch.expm1(x))
    far = torch.log1p(-torch.exp(x))
    return torch.where(x > -math.log(2.0), near, far)


def segment_sum(values: Tensor, index: Tensor, segments: int) -> Tensor:
    """Sum the values that share an index.

    Args:
        values: (N,) what to sum.
        index: (N,) int64 in ``[0, segments)``, in any order.
        segments: number of sums S.

    Returns:
        (S,), zero for a segment without values.
    """
    return values.new_zeros(segments).index_add(0, index, values)


def segment_mean(values: Tensor, index: Tensor, segments: int) -> Tensor:
    """Mean of the values that share an index; zero for a segment without values.

    Args:
        values: (N,) what to average.
        index: (N,) int64 in ``[0, segments)``, in any order.
        segments: number of means S.
    """
    count = segment_sum(torch.ones_like(values), index, segments)
    return segment_sum(values, index, segments) / count.clamp(min=1)
