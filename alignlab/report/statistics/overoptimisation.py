"""Gold reward against d = √KL: curves at equal KL, frontiers, and the forms of Gao et al. 2022."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from alignlab.report.statistics.intervals import DRAWS, Array, Interval, summarise

Form = Literal["rl", "bon"]


def value_at_kl(points: Any, kl: Any) -> Array:
    """Gold reward at equal KL: linear in √KL between the nearest points; NaN beyond them.

    ``points`` (…, N, 2) are (KL, gold) in any order, with a batch of curves in front; ``kl`` (B,)
    in nats. An estimated KL below zero counts as zero. Returns (…, B). No point is chosen, so
    nothing is gained by having many.
    """
    table = np.asarray(points, dtype=np.float64)
    at = np.sqrt(np.atleast_1d(np.asarray(kl, dtype=np.float64)))
    flat = table.reshape(-1, *table.shape[-2:])
    found = np.full((flat.shape[0], at.size), np.nan)
    for row, curve in enumerate(flat):
        known = curve[~np.isnan(curve).any(axis=1)]
        if known.size:
            d = np.sqrt(np.maximum(known[:, 0], 0.0))
            order = np.argsort(d, kind="stable")
            found[row] = np.interp(at, d[order], known[order, 1], left=np.nan, right=np.nan)
    return found.reshape(*table.shape[:-2], at.size)


def frontier_value(points: Any, budgets: Any) -> Array:
    """Best gold reward at KL ≤ b for every budget b: the largest of the points that cost no more.

    ``points`` (…, N, 2) are (KL, gold), ``budgets`` (B,) nats. Returns (…, B); NaN where no point
    is within the budget. Choosing the best of noisy points flatters: see `frontier_optimism`.
    """
    return _best(points, budgets)[0]


def _best(points: Any, budgets: Any) -> tuple[Array, Any]:
    table = np.asarray(points, dtype=np.float64)
    limit = np.atleast_1d(np.asarray(budgets, dtype=np.float64))
    kl, gold = table[..., None, :, 0], table[..., None, :, 1]
    inside = np.where((kl <= limit[:, None]) & ~np.isnan(gold), gold, -np.inf)
    best = inside.max(axis=-1)
    return np.where(np.isinf(best), np.nan, best), inside.argmax(axis=-1)


def frontier_optimism(points: Any, drawn: Any, budgets: Any) -> Array:
    """By how much choosing the best of noisy points flatters the frontier, per budget (B,).

    Efron's bootstrap optimism: mean over draws of (gold of the point that is best in the draw, in
    the draw) − (its gold in the data). ``points`` (N, 2), ``drawn`` (D, N, 2).
    """
    table = np.asarray(points, dtype=np.float64)
    value, chosen = _best(drawn, budgets)
    own = table[:, 1][chosen]
    gap = np.where(np.isnan(value), np.nan, value - own)
    count = np.maximum((~np.isnan(gap)).sum(axis=0), 1)
    return np.asarray(np.nansum(gap, axis=0) / count)


def mean_over_kl(points: Any, top: float, steps: int = 200) -> Array:
    """Area under gold against d = √KL from 0 to √top, divided by its width: a mean gold reward.

    ``points`` (…, N, 2) as in `value_at_kl`; trapezoids on ``steps`` intervals. NaN for a curve
    that does not reach ``top`` or does not begin at 0.
    """
    grid = np.linspace(0.0, np.sqrt(top), steps + 1)
    grid[-1] *= 1 - 1e-12  # rounding must not push the end beyond the last point
    values = value_at_kl(points, grid**2)
    return np.asarray((values[..., 1:] + values[..., :-1]).mean(axis=-1) / 2)


@dataclass(frozen=True)
class Overoptimisation:
    """A fitted form of Gao et al., its peak and the share of draws in which it has one."""

    form: Form
    alpha: Interval
    beta: Interval
    peak_d: Interval  # √KL of the peak; NaN without one
    peak_r: Interval  # gain in gold at the peak
    humps: float  # share of draws with a peak at a d no larger than the largest one seen
    drawn: Array  # (D, 2) bootstrapped α, β

    def at(self, d: Any) -> Array:
        """Gain in gold at d = √KL."""
        return form_value(d, [self.alpha.value, self.beta.value], self.form)


def form_value(d: Any, coefficients: Any, form: Form) -> Array:
    """R(d) = d (α − β log d) for ``rl``, d (α − β d) for ``bon`` (2210.10760, §3.1); R(0) = 0.

    ``coefficients`` (…, 2); ``d`` (X,). Returns (…, X).
    """
    return np.asarray(np.asarray(coefficients, np.float64) @ _features(d, form).T)


def _features(d: Any, form: Form) -> Array:
    x = np.asarray(d, dtype=np.float64)
    positive = np.where(x > 0, x, 1.0)
    second = -x * (np.log(positive) if form == "rl" else x)
    return np.stack([x, second], axis=-1)


def fit_form(d: Any, r: Any, form: Form, weights: Any = None) -> Array:
    """Weighted least squares of α and β (…, 2) from d and r (…, N), weights (N,) or equal.

    Both forms are linear in α and β, so this is exact. Points with d ≤ 0 or NaN carry no weight;
    where fewer than two different points are left, α and β are NaN.
    """
    x, y = np.asarray(d, dtype=np.float64), np.asarray(r, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.broadcast_to(np.asarray(weights, float), x.shape)
    usable = (x > 0) & ~np.isnan(y)
    w = np.where(usable, w, 0.0)
    features = _features(np.where(usable, x, 1.0), form)  # (…, N, 2)
    left = np.einsum("...ni,...n,...nj->...ij", features, w, features)
    right = np.einsum("...ni,...n,...n->...i", features, w, np.where(usable, y, 0.0))
    first, mixed, last = left[..., 0, 0], left[..., 0, 1], left[..., 1, 1]
    determinant = first * last - mixed**2
    known = determinant > 1e-10 * first * last
    safe = np.where(known, determinant, 1.0)
    alpha = (last * right[..., 0] - mixed * right[..., 1]) / safe
    beta = (first * right[..., 1] - mixed * right[..., 0]) / safe
    return np.where(known[..., None], np.stack([alpha, beta], axis=-1), np.nan)


def peak_of(coefficients: Any, form: Form) -> Array:
    """Peak (d*, R*) of a form (…, 2): (e^{α/β − 1}, β d*) or (α / 2β, α² / 4β); NaN where β ≤ 0."""
    both = np.asarray(coefficients, dtype=np.float64)
    alpha, beta = both[..., 0], both[..., 1]
    hump = beta > 0 if form == "rl" else (beta > 0) & (alpha > 0)
    safe = np.where(hump, beta, 1.0)
    if form == "rl":
        place = np.exp(np.minimum(alpha / safe - 1, 50.0))  # e^50 is beyond any KL
        height = safe * place
    else:
        place, height = alpha / (2 * safe), alpha**2 / (4 * safe)
    return np.stack([np.where(hump, place, np.nan), np.where(hump, height, np.nan)], axis=-1)


def fit_overoptimisation(
    d: Any,
    r: Any,
    form: Form = "rl",
    *,
    weights: Any = None,
    drawn: tuple[Any, Any] | None = None,
    freedom: float = np.inf,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Overoptimisation:
    """Fit R(d) = d (α − β log d) or d (α − β d) to gains ``r`` (N,) over R(0) = 0 at ``d`` (N,).

    ``drawn`` are joint bootstrap draws of d and r, (D, N) each, of the same runs; without them the
    residuals are resampled, inflated by √(n / (n − 2)) (Efron 1979). ``freedom`` widens the
    intervals as in `intervals.widen`.

    Raises:
        ValueError: fewer than three distinct d > 0: two points fit two parameters without error.
    """
    x, y = np.asarray(d, dtype=np.float64), np.asarray(r, dtype=np.float64)
    usable = (x > 0) & ~np.isnan(y)
    if np.unique(x[usable]).size < 3:
        raise ValueError("need gains at three different KLs above 0 to fit two parameters")
    best = fit_form(x, y, form, weights)
    if drawn is None:
        residual = (y - form_value(x, best, form))[usable]
        inflated = residual * np.sqrt(residual.size / (residual.size - 2))
        generator = np.random.default_rng(seed)
        noise = inflated[generator.integers(residual.size, size=(draws, x.size))]
        found = fit_form(
            np.broadcast_to(x, noise.shape), form_value(x, best, form) + noise, form, weights
        )
    else:
        found = fit_form(drawn[0], drawn[1], form, weights)
    peak, peaks = peak_of(best, form), peak_of(found, form)
    humps = float(np.mean(peaks[:, 0] <= x[usable].max()))  # NaN compares as False
    numbers = np.concatenate([best, peak])
    columns = np.concatenate([found, peaks], axis=1)
    alpha, beta, place, height = (
        summarise(numbers[i], columns[:, i], level, freedom) for i in range(4)
    )
    return Overoptimisation(form, alpha, beta, place, height, humps, found)
