"""Performance profiles: which share of runs reaches a score, with a band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from alignlab.report.statistics.intervals import DRAWS, Array


@dataclass(frozen=True)
class Band:
    """A curve with a pointwise interval: ``value``, ``low`` and ``high`` at every ``at``."""

    at: Array
    value: Array
    low: Array
    high: Array


def band(at: Any, value: Any, draws: Any, level: float = 0.95) -> Band:
    """Pointwise percentile band of bootstrapped curves (D, X); NaN draws are left out."""
    drawn = np.asarray(draws, dtype=np.float64)
    tail = (1 - level) / 2
    empty = np.isnan(drawn).all(axis=0)
    ends = np.full((2, drawn.shape[1]), np.nan)
    ends[:, ~empty] = np.nanquantile(drawn[:, ~empty], [tail, 1 - tail], axis=0)
    return Band(np.asarray(at, dtype=np.float64), np.asarray(value, np.float64), ends[0], ends[1])


def performance_profile(
    values: Any, thresholds: Any, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Band:
    """Share of ``values`` above each threshold τ: F(τ) = mean over runs and tasks of 1[x > τ].

    ``values`` is (runs, tasks) or (runs,); runs are resampled within each task (run-score
    distributions of Agarwal et al. 2021, 2108.13264, §4.2). Curves of two methods that do not cross
    order them at every quantile at once.

    Raises:
        ValueError: there are no values.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.size == 0:
        raise ValueError("no values, so no share of them can be above a threshold")
    levels = np.asarray(thresholds, dtype=np.float64)
    above = (table[:, :, None] > levels).astype(np.float64)  # (runs, tasks, thresholds)
    runs, tasks, _ = above.shape
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(runs, np.full(runs, 1 / runs), size=(draws, tasks)) / runs
    drawn = np.einsum("dtr,rtx->dx", weights, above, optimize=True) / tasks
    return band(levels, above.mean(axis=(0, 1)), drawn, level)
