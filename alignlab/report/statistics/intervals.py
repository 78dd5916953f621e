"""Estimates with intervals: interquartile means, and bootstraps over strata, seeds and prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    """An estimate with its interval, standard error, and what it was computed from."""

    value: float
    low: float
    high: float
    error: float
    seeds: int = 1
    prompts: int = 0

    def excludes(self, number: float) -> bool:
        """Whether ``number`` lies outside the interval."""
        return number < self.low or number > self.high


def summarise(
    value: float, draws: Array, level: float = 0.95, freedom: float = math.inf, **counts: int
) -> Interval:
    """Make the interval of bootstrap ``draws`` around the estimate ``value``.

    The percentile interval for ``freedom`` = ∞; with few degrees of freedom its ends are moved
    away from ``value`` by t_ν / z (see `widen`). ``error`` is the plain deviation of the draws.
    """
    tail = (1 - level) / 2
    known = draws[~np.isnan(draws)]
    if known.size == 0:
        return Interval(float(value), math.nan, math.nan, math.nan, **counts)
    low, high = np.quantile(widen(value, known, freedom, level), [tail, 1 - tail])
    error = float(np.std(known, ddof=1)) if known.size > 1 else 0.0
    return Interval(float(value), float(low), float(high), error, **counts)


def widen(value: Any, draws: Array, freedom: Any, level: float = 0.95) -> Array:
    """Scale draws (D, …) about ``value`` by t_ν / z, the quantiles of Student and of the normal.

    The bootstrap knows no degrees of freedom: from n values its interval covers like a normal one,
    which for n = 5 is 88 % and not 95 % (Hesterberg 2015, §3, "narrowness bias").
    """
    return value + (draws - value) * _t_over_z(freedom, level)


def _t_over_z(freedom: Any, level: float) -> Any:
    if np.all(np.isinf(freedom)):
        return 1.0
    from scipy.special import stdtrit

    upper = (1 + level) / 2
    quantile = stdtrit(np.maximum(freedom, 1.0), upper) / NormalDist().inv_cdf(upper)
    return np.where(np.isinf(freedom), 1.0, quantile)


def interquartile_mean(values: Any, axis: int = -1) -> Any:
    """Mean of the middle half: ``floor(n / 4)`` values are dropped at each end.

    The aggregate of Agarwal et al. 2021 (2108.13264, §4.3): robust like a median, with less noise.
    """
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

    Raises:
        ValueError: there are no values, or ``strata`` and ``values`` differ in length.
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


@dataclass(frozen=True)
class Resamples:
    """Bootstrap of one mean: ``draws = by_prompt + by_seed`` (D,), and its degrees of freedom."""

    value: float
    by_prompt: Array
    by_seed: Array
    freedom: float

    @property
    def draws(self) -> Array:
        """Bootstrap means over seeds and prompts."""
        return self.by_prompt + self.by_seed


@lru_cache(maxsize=16)
def _weights(seeds: int, clusters: int, draws: int, seed: int) -> tuple[Array, Array]:
    """How often each seed and cluster is drawn; the same for every method: pairs stay pairs."""
    generator = np.random.default_rng(seed)
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
    columns = generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws)
    return rows.astype(np.float64), columns.astype(np.float64)


def resamples(
    cells: Any, *, clusters: Sequence[Any] | None = None, draws: int = DRAWS, seed: int = 0
) -> Resamples:
    """Bootstrap the mean of ``cells`` (S, P; NaN = not measured) over seeds and prompts.

    A draw is ``Σ_p w_p Σ_s x_sp / Σ_p w_p n_p + mean_s(v_s δ_s)``: prompts are resampled as whole
    columns (they are shared by the seeds), and the deviations δ of the seed means are resampled
    after removing the part that is prompt noise. Resampling rows and columns plainly (Owen's
    pigeonhole bootstrap) would count that noise about three times; resampling prompts anew within
    each seed would forget that prompts are shared. Tables of one shape share their draws, so
    differences and other functions of several methods are paired. ``clusters`` (P,) names what a
    prompt comes from: prompts of one source are drawn together (Miller 2024, 2411.00640, §2.2).

    Raises:
        ValueError: no table, no value in it, or not one cluster per prompt.
    """
    table = np.asarray(cells, dtype=np.float64)
    if table.ndim != 2 or np.isnan(table).all():
        raise ValueError(
            f"need a (seeds, prompts) table with at least one value, got {table.shape}"
        )
    present = ~np.isnan(table)
    groups = table.shape[1]
    sums, counts = np.nansum(table, axis=0), present.sum(axis=0).astype(np.float64)
    member = None
    if clusters is not None:
        member = np.unique(np.asarray(clusters), return_inverse=True)[1]
        if member.shape != (table.shape[1],):
            raise ValueError(f"need one cluster per prompt, got {member.shape} for {table.shape}")
        groups = int(member.max()) + 1
        sums, counts = np.bincount(member, sums), np.bincount(member, counts)
    rows, columns = _weights(table.shape[0], groups, draws, seed)
    total = columns @ counts
    mean = float(np.nanmean(table))
    by_prompt = np.where(total > 0, columns @ sums / np.where(total > 0, total, 1.0), mean)
    here = present.any(axis=1)
    row_means = np.where(here, np.nansum(table, axis=1) / np.maximum(present.sum(axis=1), 1), 0.0)
    trained = _seed_share(table[here], row_means[here], member)
    deviation = np.where(here, row_means - row_means[here].mean(), 0.0) * trained
    drawn = np.maximum(rows[:, here].sum(axis=1), 1.0)
    by_seed = rows @ deviation / drawn
    seeds = int(here.sum())
    between = float(np.var(row_means[here], ddof=1)) / seeds if seeds > 1 else 0.0
    freedom = satterthwaite(
        float(np.var(by_seed) + np.var(by_prompt)),
        (between, seeds - 1),
        (float(np.var(by_prompt)), int((counts > 0).sum()) - 1),
    )
    return Resamples(mean, by_prompt, by_seed, freedom)


def satterthwaite(variance: float, *terms: tuple[float, int]) -> float:
    """Degrees of freedom of an estimated variance: V² / Σ_i V_i² / n_i (Satterthwaite 1946).

    ``terms`` are mean squares V_i with their degrees of freedom n_i. For the seeds it is the whole
    mean square of the rows, not what is left of it after the noise of the prompts is taken away:
    how much is left is itself unknown, and intervals that took it as known covered 83 to 91 % where
    these cover 94 to 98 % (5 seeds). At least 1; ∞ without spread.
    """
    lowest = sum(v**2 / n for v, n in terms if v > 0 and n > 0)
    return max(1.0, variance**2 / lowest) if lowest > 0 else math.inf


def _seed_share(table: Array, row_means: Array, member: NDArray[np.int64] | None) -> float:
    """Share of a row mean's deviation that is training noise and not the noise of its own prompts.

    Var(row mean) = σ_seed² + the variance of a mean of the two-way table's residuals, which are
    added up within clusters; the factor √(S / (S − 1)) undoes the bias of resampling S rows from S.
    """
    seeds = table.shape[0]
    if seeds < 2:
        return 0.0
    present = ~np.isnan(table)
    column_means = np.nansum(table, axis=0) / np.maximum(present.sum(axis=0), 1)
    residual = np.nan_to_num(table - row_means[:, None] - column_means + np.nanmean(table))
    blocks, counts = residual, present.sum()
    groups = int(present.any(axis=0).sum())
    if member is not None:
        blocks = np.stack([np.bincount(member, row) for row in residual])
        filled = np.stack([np.bincount(member, row) for row in present.astype(np.float64)]) > 0
        counts, groups = filled.sum(), int(filled.any(axis=0).sum())
    freedom = max(int(counts) - seeds - groups + 1, 1)
    per_row = present.sum(axis=1).mean()
    noise = float(np.sum(blocks**2)) / freedom * float(counts) / seeds / per_row**2
    spread = float(np.var(row_means, ddof=1))
    own = 0.0 if spread <= 0 else max(0.0, 1 - noise / spread)
    return math.sqrt(own * seeds / (seeds - 1))


def hierarchical_draws(
    cells: Any, *, clusters: Sequence[Any] | None = None, draws: int = DRAWS, seed: int = 0
) -> tuple[float, Array]:
    """Return the mean of ``cells`` and its bootstrap draws (see `resamples`)."""
    found = resamples(cells, clusters=clusters, draws=draws, seed=seed)
    return found.value, found.draws


def hierarchical_bootstrap(
    cells: Any,
    *,
    clusters: Sequence[Any] | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of ``cells`` (S, P) over training seeds and prompts (see `resamples`).

    Its width takes the few degrees of freedom of the seeds into account as far as the spread comes
    from them (Satterthwaite 1946). One seed: the interval speaks of prompts only; a reader must be
    told.
    """
    found = resamples(cells, clusters=clusters, draws=draws, seed=seed)
    used = ~np.isnan(np.asarray(cells, dtype=np.float64))
    return summarise(
        found.value, found.draws, level, found.freedom,
        seeds=int(used.any(1).sum()), prompts=int(used.any(0).sum()),
    )  # fmt: skip
