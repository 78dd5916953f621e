"""Small pure functions for comparing methods over training seeds and held-out prompts.

The data of a comparison is a matrix of *cells* with one row per training seed (the unit of
replication) and one column per prompt. Prompts are shared by the seeds and by the methods, so
differences are taken cell by cell (a blocked design) and prompts are resampled as clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DRAWS = 2000
CHUNK = 1 << 20  # resampled values held at a time


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval, standard error, and what it was computed from."""

    value: float
    low: float
    high: float
    error: float
    seeds: int = 1
    prompts: int = 0

    def excludes(self, number: float) -> bool:
        """Whether ``number`` lies outside the interval."""
        return number < self.low or number > self.high


@dataclass(frozen=True)
class Difference:
    """A paired difference ``a − b``, its interval and its two-sided sign-flip p value."""

    interval: Interval
    p_value: float


def summarise(value: float, draws: Array, level: float = 0.95, **counts: int) -> Interval:
    """Make the percentile interval of bootstrap ``draws`` around the estimate ``value``."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    error = float(np.std(draws, ddof=1)) if draws.size > 1 else 0.0
    return Interval(float(value), float(low), float(high), error, **counts)


def interquartile_mean(values: Any, axis: int = -1) -> Any:
    """Mean of the middle half: ``floor(n / 4)`` values are dropped at each end (rliable's IQM)."""
    last = np.moveaxis(np.asarray(values, dtype=np.float64), axis, -1)
    count = last.shape[-1]
    cut = count // 4
    if cut:
        last = np.partition(last, (cut, count - cut - 1), axis=-1)[..., cut : count - cut]
    return last.mean(axis=-1)


def bootstrap_interval(
    values: Any,
    statistic: Callable[..., Any] = np.mean,
    *,
    strata: Sequence[Any] | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of ``statistic(values, axis=-1)``, resampled within each stratum.

    Raises ``ValueError`` for no values, or when ``strata`` and ``values`` differ in length.
    """
    data = np.asarray(values, dtype=np.float64)
    labels = (
        np.zeros(data.size, int) if strata is None else np.unique(strata, return_inverse=True)[1]
    )
    if data.ndim != 1 or data.size == 0 or labels.shape != data.shape:
        raise ValueError(f"need one stratum per value, got {labels.shape} for {data.shape}")
    generator = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    blocks = np.split(order, np.cumsum(np.bincount(labels))[:-1])
    picks = np.concatenate(
        [b[generator.integers(b.size, size=(draws, b.size))] for b in blocks], axis=1
    )
    # Some draws at a time: those of a thousand runs together would be gigabytes.
    parts = np.array_split(picks, max(1, picks.size // CHUNK))
    found = np.concatenate([statistic(data[part], axis=-1) for part in parts])
    return summarise(statistic(data, axis=-1), found, level, prompts=data.size)


@lru_cache(maxsize=16)
def _resamples(seeds: int, prompts: int, draws: int, seed: int) -> tuple[Array, Array]:
    """How often each seed and prompt is drawn; the same for every method: pairs stay pairs."""
    generator = np.random.default_rng(seed)
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws).astype(np.float64)
    columns = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws).astype(
        np.float64
    )
    return rows, columns


def _seed_shrinkage(cells: Array, row_means: Array) -> float:
    """Share of a row mean's deviation that is training noise and not the noise of its own prompts.

    Var(row mean) = σ_seed² + σ_noise² / P, with σ_noise² the residual variance of the two-way
    table; the factor √(S / (S − 1)) undoes the bias of resampling S rows from S.
    """
    seeds, prompts = cells.shape
    if seeds < 2:
        return 0.0
    present = ~np.isnan(cells)
    column_means = np.nansum(cells, axis=0) / np.maximum(present.sum(axis=0), 1)
    residual = cells - row_means[:, None] - column_means[None, :] + np.nanmean(cells)
    freedom = max(present.sum() - seeds - prompts + 1, 1)
    noise = np.nansum(residual**2) / freedom / np.maximum(present.sum(axis=1), 1).mean()
    spread = np.var(row_means, ddof=1)
    own = 0.0 if spread <= 0 else max(0.0, 1 - noise / spread)
    return float(np.sqrt(own * seeds / (seeds - 1)))


def hierarchical_draws(cells: Any, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, Array]:
    """Return the mean of ``cells`` (S, P; NaN = not measured) and ``draws`` bootstrap means of it.

    Seeds → prompts. A draw is ``Σ_p w_p Σ_s x_sp / Σ_p w_p n_p + mean_s(v_s δ_s)``: prompts are
    resampled as whole columns (they are shared by the seeds), and the deviations δ of the seed
    means are resampled after removing the part that is prompt noise. Resampling rows and columns
    plainly (Owen's pigeonhole bootstrap) would count that noise about three times; resampling
    prompts anew within each seed would forget that prompts are shared.
    """
    table = np.asarray(cells, dtype=np.float64)
    if table.ndim != 2 or np.isnan(table).all():
        raise ValueError(
            f"need a (seeds, prompts) table with at least one value, got {table.shape}"
        )
    table = table[~np.isnan(table).all(axis=1)][:, ~np.isnan(table).all(axis=0)]
    present = ~np.isnan(table)
    rows, columns = _resamples(*table.shape, draws, seed)
    count = columns @ present.sum(axis=0)
    by_prompt = (columns @ np.nansum(table, axis=0)) / np.where(count > 0, count, np.nan)
    row_means = np.nanmean(table, axis=1)
    deviations = (row_means - row_means.mean()) * _seed_shrinkage(table, row_means)
    drawn = by_prompt + rows @ deviations / table.shape[0]
    return float(np.nanmean(table)), np.where(np.isnan(drawn), np.nanmean(table), drawn)


def hierarchical_bootstrap(
    cells: Any, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Interval of the mean over prompts and training seeds (see `hierarchical_draws`).

    One seed: the interval speaks of prompts only. Two seeds: seed noise has one degree of freedom,
    so the interval mostly reflects prompts; a reader must be told.
    """
    value, drawn = hierarchical_draws(cells, draws=draws, seed=seed)
    used = ~np.isnan(np.asarray(cells, dtype=np.float64))
    return summarise(
        value, drawn, level, seeds=int(used.any(1).sum()), prompts=int(used.any(0).sum())
    )


def paired_cells(a: Mapping[Any, float], b: Mapping[Any, float]) -> Array:
    """Differences ``a − b`` on shared (seed, prompt) keys, as a (seeds, prompts) table."""
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
    cells: Any, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """Interval and p value of a (seeds, prompts) table; p takes the trained models as given."""
    table = np.asarray(cells, dtype=np.float64)
    interval = hierarchical_bootstrap(table, level=level, draws=draws, seed=seed)
    clusters = np.nanmean(table[:, ~np.isnan(table).all(axis=0)], axis=0)
    return Difference(interval, sign_flip_test(clusters, seed=seed))


def sign_flip_test(differences: Any, *, draws: int = 9999, seed: int = 0) -> float:
    """Two-sided p value of a zero mean by flipping the signs of paired differences.

    Exact up to 12 differences, else Monte Carlo: (1 + hits) / (1 + draws).
    """
    data = np.asarray(differences, dtype=np.float64)
    if not np.any(data):
        return 1.0
    observed = abs(data.sum()) * (1 - 1e-6)
    if data.size <= 12:
        bits = (np.arange(2**data.size)[:, None] >> np.arange(data.size)) & 1
        return float(np.mean(np.abs((2 * bits - 1) @ data) >= observed))
    hits = np.count_nonzero(np.abs(_signs(data.size, draws, seed) @ data) >= observed)
    return (1 + int(hits)) / (1 + draws)


@lru_cache(maxsize=8)
def _signs(size: int, draws: int, seed: int) -> NDArray[np.float32]:
    bits = np.random.default_rng(seed).integers(0, 2, size=(draws, size), dtype=np.int8)
    return (2 * bits - 1).astype(np.float32)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given."""
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * (raw.size - np.arange(raw.size)))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in adjusted]


def probability_of_improvement(a: Any, b: Any) -> float:
    """P(a value of ``a`` exceeds a value of ``b``), ties counted half: Mann–Whitney's U / (n m)."""
    left, right = np.asarray(a, dtype=np.float64), np.sort(np.asarray(b, dtype=np.float64))
    below = np.searchsorted(right, left, "left") + np.searchsorted(right, left, "right")
    return float(below.sum() / (2 * left.size * right.size))


def minimum_detectable_effect(
    n: float, sd: float, power: float = 0.8, *, level: float = 0.95
) -> float:
    """Smallest true mean difference that is detected: (z_{1−α/2} + z_power) · sd / √n."""
    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) * sd / float(np.sqrt(n))


def bradley_terry(wins: Any, *, prior: float = 0.0, steps: int = 500) -> Array:
    """Log-strengths (…, M), centred, from ``wins[…, i, j]`` of i over j (MM: Hunter 2004).

    ``prior`` is a number of wins added to both sides of every pair: it keeps an unbeaten method
    finite. Raises ``ValueError`` without it when a method never wins or never loses (its strength
    is infinite).
    """
    counts = np.array(wins, dtype=np.float64)
    size = counts.shape[-1]
    off = ~np.eye(size, dtype=bool)
    counts = np.where(off, counts + prior, 0.0)
    won = counts.sum(axis=-1)
    if size > 1 and (np.any(won <= 0) or np.any(counts.sum(axis=-2) <= 0)):
        raise ValueError(
            "a method that never wins or never loses has no finite strength; pass prior > 0"
        )
    games = counts + np.swapaxes(counts, -1, -2)
    log = np.zeros(won.shape)
    for _ in range(steps):
        strength = np.exp(log)
        total = strength[..., :, None] + strength[..., None, :]
        new = np.log(won) - np.log((games / total).sum(axis=-1))
        new -= new.mean(axis=-1, keepdims=True)
        done = np.max(np.abs(new - log)) < 1e-10
        log = new
        if done:
            break
    return log


def rank_intervals(draws: Any, *, level: float = 0.95) -> list[tuple[int, int]]:
    """Best and worst plausible rank (1 = highest) per method from joint draws (D, M)."""
    scores = np.asarray(draws, dtype=np.float64)
    ranks = 1 + (scores[:, None, :] > scores[:, :, None]).sum(axis=2)
    tail = (1 - level) / 2
    low = np.quantile(ranks, tail, axis=0, method="lower")
    high = np.quantile(ranks, 1 - tail, axis=0, method="higher")
    return [(int(a), int(b)) for a, b in zip(low, high, strict=True)]


def cycles(win_rates: Any) -> list[tuple[int, int, int]]:
    """Triples (i, j, k) where i beats j, j beats k and k beats i more than half of the time."""
    beats = np.asarray(win_rates, dtype=np.float64) > 0.5
    size = beats.shape[0]
    return [
        (i, j, k)
        for i in range(size)
        for j in range(size)
        for k in range(size)
        if i < j and i < k and j != k and beats[i, j] and beats[j, k] and beats[k, i]
    ]
