"""Differences and tests: paired, exact where they can be, corrected for many, and their power."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alignlab.report.statistics.intervals import (
    DRAWS,
    Array,
    Interval,
    hierarchical_bootstrap,
)

EXACT = 20_000  # arrangements that are counted one by one
SLACK = 1 - 1e-6  # two sums of the same numbers in another order are as extreme


@dataclass(frozen=True)
class Difference:
    """A paired difference ``a − b``, its interval and its two-sided sign-flip p value."""

    interval: Interval
    p_value: float


def paired_cells(a: Mapping[Any, float], b: Mapping[Any, float]) -> Array:
    """Differences ``a − b`` on shared (seed, prompt) keys, as a (seeds, prompts) table.

    Raises:
        ValueError: no key is shared.
    """
    shared = sorted(set(a) & set(b), key=repr)
    if not shared:
        raise ValueError("the two methods share no (seed, prompt), so nothing can be paired")
    seeds = {s: i for i, s in enumerate(dict.fromkeys(key[0] for key in shared))}
    prompts = {p: i for i, p in enumerate(dict.fromkeys(key[1] for key in shared))}
    cells = np.full((len(seeds), len(prompts)), np.nan)
    for key in shared:
        cells[seeds[key[0]], prompts[key[1]]] = a[key] - b[key]
    return cells


def paired_difference(
    a: Mapping[Any, float],
    b: Mapping[Any, float],
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Mean of ``a − b`` over shared (seed, prompt) keys, clustered by prompt."""
    return difference_of_cells(paired_cells(a, b), level=level, draws=draws, seed=seed)


def difference_of_cells(
    cells: Any,
    *,
    clusters: Sequence[Any] | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Interval and p value of differences (S, P); p takes the trained models as given.

    ``clusters`` (P,) names what a prompt comes from; the signs of one source flip together.
    """
    table = np.asarray(cells, dtype=np.float64)
    interval = hierarchical_bootstrap(table, clusters=clusters, level=level, draws=draws, seed=seed)
    used = ~np.isnan(table).all(axis=0)
    means = np.nanmean(table[:, used], axis=0)
    if clusters is not None:
        member = np.unique(np.asarray(clusters)[used], return_inverse=True)[1]
        means = np.bincount(member, means)
    return Difference(interval, sign_flip_test(means, seed=seed))


def sign_flip_test(differences: Any, *, draws: int = 9999, seed: int = 0) -> float:
    """Two-sided p value of a zero mean by flipping the signs of paired differences (n,).

    Exact up to 12 differences, else Monte Carlo: (1 + hits) / (1 + draws), never zero
    (Phipson & Smyth 2010).
    """
    data = np.asarray(differences, dtype=np.float64)
    if not np.any(data):
        return 1.0
    observed = abs(data.sum()) * SLACK
    if data.size <= 12:
        bits = (np.arange(2**data.size)[:, None] >> np.arange(data.size)) & 1
        return float(np.mean(np.abs((2 * bits - 1) @ data) >= observed))
    hits = np.count_nonzero(np.abs(_signs(data.size, draws, seed) @ data) >= observed)
    return (1 + int(hits)) / (1 + draws)


@lru_cache(maxsize=8)
def _signs(size: int, draws: int, seed: int) -> NDArray[np.float32]:
    bits = np.random.default_rng(seed).integers(0, 2, size=(draws, size), dtype=np.int8)
    return (2 * bits - 1).astype(np.float32)


def permutation_test(a: Any, b: Any, *, draws: int = 9999, seed: int = 0) -> float:
    """Two-sided p value of equal means of two unpaired samples (n,), (m,), by exchanging members.

    Exact while there are at most 20,000 ways to choose n of n + m, else Monte Carlo:
    (1 + hits) / (1 + draws).

    Raises:
        ValueError: a sample is empty.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.size == 0 or right.size == 0:
        raise ValueError("a sample is empty, so no mean can be compared")
    both = np.concatenate([left, right])
    both = both - both.mean()  # the mean of one part then says all
    observed = abs(both[: left.size].sum()) * SLACK
    if observed == 0:
        return 1.0
    if math.comb(both.size, left.size) <= EXACT:
        sums = [both[list(part)].sum() for part in combinations(range(both.size), left.size)]
        return float(np.mean(np.abs(sums) >= observed))
    generator = np.random.default_rng(seed)
    shuffled = generator.permuted(np.tile(both, (draws, 1)), axis=1)
    hits = np.count_nonzero(np.abs(shuffled[:, : left.size].sum(axis=1)) >= observed)
    return (1 + int(hits)) / (1 + draws)


def mcnemar(a: Any, b: Any, *, method: Literal["exact", "mid", "chi2"] = "exact") -> float:
    """Two-sided p value of equal success of two methods on the same items (n,) of 0 and 1.

    With b₁₀ items that only ``a`` solved and b₀₁ that only ``b`` did (McNemar 1947), ``exact`` is
    the binomial test of b₁₀ in b₁₀ + b₀₁; ``mid`` counts the observed split half, which is less
    conservative (Fagerland et al. 2013); ``chi2`` is (|b₁₀ − b₀₁| − 1)² / (b₁₀ + b₀₁) on one degree
    of freedom.

    Raises:
        ValueError: the items differ in number, or a value is neither 0 nor 1.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or not np.isin([first, second], (0.0, 1.0)).all():
        raise ValueError(f"need 0 or 1 for the same items, got {first.shape} and {second.shape}")
    only_a = int(np.count_nonzero(first > second))
    only_b = int(np.count_nonzero(first < second))
    total, least = only_a + only_b, min(only_a, only_b)
    if total == 0:
        return 1.0
    if method == "chi2":
        return math.erfc(math.sqrt(max(abs(only_a - only_b) - 1, 0) ** 2 / total / 2))
    # Integers as far as they go: 2^n leaves a float's range from n = 1024 on.
    tail = sum(math.comb(total, k) for k in range(least + 1))
    own = math.comb(total, least)
    if method == "mid":
        return min(1.0, (2 * tail - own) / 2**total)
    return min(1.0, 2 * tail / 2**total)


def t_p_value(value: float, error: float, freedom: float = math.inf) -> float:
    """Two-sided p value of ``value / error`` under Student's t (the normal for ν = ∞)."""
    if not error > 0:
        return 1.0 if value == 0 else 0.0
    if math.isinf(freedom):
        return math.erfc(abs(value) / error / math.sqrt(2))
    from scipy.special import stdtr

    return float(2 * stdtr(max(freedom, 1.0), -abs(value) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values (Holm 1979), in the order given."""
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * (raw.size - np.arange(raw.size)))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in adjusted]


def power(
    effect: float, n: float, sd: float, *, level: float = 0.95, freedom: float = math.inf
) -> float:
    """Probability that a true mean difference of ``effect`` is found by a two-sided test.

    With δ = effect · √n / sd and quantile q: P(T > q) + P(T < −q), where T is normal about δ, or
    noncentral t with ``freedom`` degrees of freedom.
    """
    upper = (1 + level) / 2
    shift = effect * math.sqrt(n) / sd
    if math.isinf(freedom):
        normal = NormalDist()
        quantile = normal.inv_cdf(upper)
        return normal.cdf(shift - quantile) + normal.cdf(-shift - quantile)
    from scipy.special import nctdtr, stdtrit

    quantile = float(stdtrit(freedom, upper))
    return float(1 - nctdtr(freedom, shift, quantile) + nctdtr(freedom, shift, -quantile))


def minimum_detectable_effect(
    n: float,
    sd: float,
    power: float = 0.8,
    *,
    level: float = 0.95,
    freedom: float = math.inf,
) -> float:
    """Smallest true mean difference that is found with probability ``power``.

    (q_{1−α/2} + q_power) · sd / √n with quantiles of the normal, or of Student's t for few degrees
    of ``freedom`` (Bloom 1995), where it is exact to about one per cent.
    """
    upper = (1 + level) / 2
    if math.isinf(freedom):
        normal = NormalDist()
        both = normal.inv_cdf(upper) + normal.inv_cdf(power)
    else:
        from scipy.special import stdtrit

        both = float(stdtrit(freedom, upper) + stdtrit(freedom, power))
    return both * sd / math.sqrt(n)
