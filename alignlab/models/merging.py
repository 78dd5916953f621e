"""Rules of model merging: several models of one architecture become one, tensor by tensor.

Pure functions, one per rule, as objectives are: the names of the parameters say what a rule is
given, and its hyperparameters are keyword-only, with their values in ``conf/merging/*.yaml``.

``models``
    the same tensor of every model
``deltas``
    what every model changed of it: δ_i = θ_i − θ_0, θ_0 the tensor of the base ("task vectors",
    Ilharco et al. 2023); the rule returns the change of the merged model
``pair``, ``pair_deltas``
    the same, of exactly two models
``weights``
    one number per model as configured, or 1; ``shares`` are the same divided by their sum
``cuts``
    for every model the magnitude that ``density`` of all its changes reach, over all tensors
``importances``
    for every model how much each element matters to it (`alignlab.models.merging_fisher`)
``generators``
    a source of random numbers per model, a function of (seed, model, name of the tensor)

Arithmetic is in float32. Merging a model with itself gives that model under every rule but DARE,
which keeps it in expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

from alignlab import lazy
from alignlab.annotations import Range
from alignlab.errors import DataError
from alignlab.objectives.declaration import called

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor
else:
    torch = lazy.module("torch")

Density = Annotated[float, Range(min=0.0, min_open=True, max=1.0)]
Scale = Annotated[float, Range()]


@called("linear")
def linear(models: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Weighted average: a model soup; with a weight below 0, extrapolation.

    ``θ = Σ_i s_i θ_i``, computed as ``θ_1 + Σ_{i>1} s_i (θ_i − θ_1)``, exact for equal models

    Wortsman et al. 2022, 2203.05482 (uniform soup: equal shares). Two models, one of them the
    start: WiSE-FT (2109.01903) and WARP's interpolation towards the initialisation (2406.16768).

    Args:
        models: k tensors of one shape.
        shares: (k,) weights that add up to 1.
    """
    first = models[0]
    merged = first.clone()
    for share, model in zip(shares[1:], models[1:], strict=True):
        merged += share * (model - first)
    return merged


@called("SLERP")
def slerp(pair: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Spherical interpolation of the weights of two models, tensor by tensor.

    ``θ = sin((1−t)Ω)/sin Ω · θ_1 + sin(tΩ)/sin Ω · θ_2``, Ω the angle between them, t = s_2

    Shoemake 1985 (for quaternions). Two fine-tuned models of one start are nearly parallel, and
    what comes out is then nearly `linear`; `slerp_deltas` turns what they learned. mergekit does
    the same and goes over to `linear` below an angle of 1.8°, where this needs no threshold.

    Args:
        pair: two tensors of one shape.
        shares: (2,) weights that add up to 1.

    Raises:
        DataError: they point in opposite directions, which no arc joins.
    """
    one, two = pair
    t = shares[1].item()
    if not all(float(v.norm()) > 0 for v in pair):
        return linear(pair, shares)  # a tensor of zeros has no direction
    unit = [v.flatten() / v.norm() for v in pair]
    # The arc cosine of a product near 1 has few correct digits; this has all of them.
    apart, along = (unit[0] - unit[1]).double().norm(), (unit[0] + unit[1]).double().norm()
    angle = 2 * torch.atan2(apart, along)
    sine = torch.sin(angle).item()
    if sine < 1e-6:
        if float(angle) > 1:
            raise DataError("two tensors point in opposite directions; no arc joins them.")
        # Parallel: the limit of the formula.
        return one + t * (two - one)
    first, second = torch.sin((1 - t) * angle) / sine, torch.sin(t * angle) / sine
    return first.item() * one + second.item() * two


@called("SLERP of changes")
def slerp_deltas(pair_deltas: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Spherical interpolation of what two models changed of their base, tensor by tensor.

    ``δ = sin((1−t)Ω)/sin Ω · δ_1 + sin(tΩ)/sin Ω · δ_2``, Ω the angle between δ_1 and δ_2

    Ramé et al. 2024, "WARP", 2406.16768: an average of unrelated changes is shorter than
    they are (by √2 for two orthogonal ones), and this keeps their length.

    Args:
        pair_deltas: two tensors of one shape.
        shares: (2,) weights that add up to 1.
    """
    return slerp(pair_deltas, shares)


@called("task arithmetic")
def task_arithmetic(deltas: Sequence[Tensor], weights: Tensor, *, scale: Scale) -> Tensor:
    """Sum of what the models changed, scaled; a negative weight takes a task away.

    ``δ = λ Σ_i w_i δ_i``

    Ilharco et al. 2023, 2212.04089, with w_i = ±1. Its λ is chosen on held-out data, between
    0.3 and 1 for few tasks.

    Args:
        deltas: k tensors of one shape.
        weights: (k,).
        scale: λ.
    """
    return scale * _weighted(deltas, weights)


@called("TIES")
def ties(
    deltas: Sequence[Tensor], weights: Tensor, cuts: Tensor, *, density: Density, scale: Scale
) -> Tensor:
    """Trim small changes, elect a sign per parameter, average the changes that have it.

    ``δ̂_i = δ_i · 1[|δ_i| ≥ c_i]``, ``γ = sgn(Σ_i w_i δ̂_i)``,
    ``δ = λ Σ_{i∈A} w_i δ̂_i / Σ_{i∈A} |w_i|`` with ``A = {i : sgn(w_i δ̂_i) = γ ≠ 0}``

    Yadav et al. 2023, 2306.01708, with equal weights there. As in its code, the largest
    ``density`` are those of the whole model; PEFT and mergekit trim every tensor by itself. PEFT
    divides by the number of agreeing models, not by their weights, so unequal weights there scale
    the result. Where all cancel exactly nothing is changed; PEFT takes the positive ones.

    Args:
        deltas: k tensors of one shape.
        weights: (k,).
        cuts: (k,) c_i, the magnitude that ``density`` of model i's changes reach.
        density: share of the changes of each model that are kept (0.2 in the paper).
        scale: λ (1 in the paper without held-out data).
    """
    kept = [
        delta.where(delta.abs() >= cut, delta.new_zeros(()))
        for delta, cut in zip(deltas, cuts, strict=True)
    ]
    return scale * _of_elected_sign(kept, weights)


@called("DARE")
def dare(
    deltas: Sequence[Tensor],
    weights: Tensor,
    generators: Sequence[Generator],
    *,
    density: Density,
    scale: Scale,
) -> Tensor:
    """Drop most changes at random, scale up the rest, and add them.

    ``δ̃_i = m_i δ_i / d``, ``m_i ~ Bernoulli(d)`` per parameter, ``δ = λ Σ_i w_i δ̃_i``

    Yu et al. 2024, 2311.03099 (drop rate p = 1 − d), followed by task arithmetic. Equal to
    `task_arithmetic` in expectation.

    Args:
        deltas: k tensors of one shape.
        weights: (k,).
        generators: one source of random numbers per model.
        density: d, share of the changes that are kept.
        scale: λ.
    """
    return scale * _weighted(_dropped(deltas, generators, density), weights)


@called("DARE + TIES")
def dare_ties(
    deltas: Sequence[Tensor],
    weights: Tensor,
    generators: Sequence[Generator],
    *,
    density: Density,
    scale: Scale,
) -> Tensor:
    """DARE's dropping in the place of TIES' trimming; signs are elected and changes averaged.

    ``δ̃_i`` as in `dare`, ``γ`` and the average as in `ties`

    Yu et al. 2024, 2311.03099 (DARE as a plug-in of TIES).

    Args:
        deltas: k tensors of one shape.
        weights: (k,).
        generators: one source of random numbers per model.
        density: d, share of the changes that are kept.
        scale: λ.
    """
    return scale * _of_elected_sign(_dropped(deltas, generators, density), weights)


def _weighted(deltas: Sequence[Tensor], weights: Tensor) -> Tensor:
    total = torch.zeros_like(deltas[0])
    for weight, delta in zip(weights, deltas, strict=True):
        total += weight * delta
    return total


def _of_elected_sign(deltas: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Mean of the weighted changes whose sign is that of their sum, zero where that is zero."""
    elected = _weighted(deltas, weights).sign()
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for weight, delta in zip(weights, deltas, strict=True):
        agrees = ((weight * delta).sign() == elected) & (elected != 0)
        total += agrees * weight * delta
        count += agrees * weight.abs()
    return total / count.where(count > 0, count.new_ones(()))


def _dropped(
    deltas: Sequence[Tensor], generators: Sequence[Generator], density: float
) -> list[Tensor]:
    out = []
    for delta, generator in zip(deltas, generators, strict=True):
        kept = torch.rand(delta.shape, generator=generator) < density
        out.append(delta * kept.to(delta) / density)
    return out


def magnitude_cut(tensors: Callable[[], Iterable[Tensor]], density: float) -> float:
    """Magnitude of the ⌊density · n⌋-th largest of all n elements of ``tensors()``, exactly.

    The bit patterns of positive float32 numbers are in the order of the numbers: one pass counts
    their upper halves, a second the lower halves of those that share the wanted upper half. So no
    more than one tensor is in memory at a time. Infinity where none is to be kept.
    """
    upper = torch.zeros(1 << 16, dtype=torch.int64)
    for tensor in tensors():
        upper += torch.bincount(_bits(tensor) >> 16, minlength=1 << 16)
    wanted = int(density * int(upper.sum()))
    if wanted < 1:
        return float("inf")
    high, above = _place(upper, wanted)
    lower = torch.zeros(1 << 16, dtype=torch.int64)
    for tensor in tensors():
        bits = _bits(tensor)
        bits = bits[bits >> 16 == high] & 0xFFFF
        lower += torch.bincount(bits, minlength=1 << 16)
    low, _ = _place(lower, wanted - above)
    return torch.tensor([high << 16 | low], dtype=torch.int32).view(torch.float32).item()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.float().abs().flatten().view(torch.int32)


def _place(counts: Tensor, wanted: int) -> tuple[int, int]:
    """Index of the bin with the ``wanted``-th largest value, and how many lie in higher bins."""
    from_top = counts.flip(0).cumsum(0)
    index = int((from_top < wanted).sum())
    place = len(counts) - 1 - index
    return place, int(from_top[index]) - int(counts[place])
