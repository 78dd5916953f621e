"""How good the best of k trials is expected to be: tuning as part of a method's score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.report.statistics.intervals import DRAWS, Array
from alignlab.report.statistics.profiles import Band, band


def expected_max(values: Any, k: int, *, replacement: bool = False) -> float:
    """Expected maximum of k of the N trial values v₍₁₎ ≤ … ≤ v₍N₎.

    Without replacement, the unbiased estimate (a U statistic; Tang et al. 2020, 2006.09011):
    ``Σ_j v₍j₎ C(j−1, k−1) / C(N, k)``. With replacement, the plug-in estimate of Dodge et al. 2019
    (1909.03004, eq. 4): ``Σ_j v₍j₎ [(j/N)^k − ((j−1)/N)^k]``, which is too low for k near N.

    Raises:
        ValueError: no values, a value that is not finite, k < 1, or k > N without replacement.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError("need at least one trial, and a finite value for each")
    return float(np.sort(data) @ _weights(data.size, k, replacement))


def _weights(size: int, k: int, replacement: bool) -> Array:
    """Weight of each order statistic (N,); they add up to 1."""
    if not 1 <= k <= size and not (replacement and k >= 1):
        raise ValueError(f"the best of {k} trials cannot be expected from {size}")
    rank = np.arange(1, size + 1, dtype=np.float64)
    if replacement:
        return np.asarray((rank / size) ** k - ((rank - 1) / size) ** k)
    # C(j−1, k−1) / C(N, k) from the top down: each is the one above it × (j − k) / (j − 1) …
    weights = np.zeros(size)
    weights[-1] = k / size
    for j in range(size - 1, k - 1, -1):
        weights[j - 1] = weights[j] * (j + 1 - k) / j
    return weights


def expected_max_curve(
    values: Any,
    counts: Sequence[int] | None = None,
    *,
    replacement: bool = False,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Band:
    """`expected_max` for every k in ``counts`` (all of 1 … N), with a band over trials.

    Trials are resampled (Dodge et al. 2019, §3.2). Near k = N the band is a lower bound of the
    uncertainty: no resample knows a better trial than the best one seen.
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    ks = list(counts) if counts is not None else list(range(1, data.size + 1))
    value = [expected_max(data, k, replacement=replacement) for k in ks]
    generator = np.random.default_rng(seed)
    picks: NDArray[np.int64] = generator.integers(data.size, size=(draws, data.size))
    resampled = np.sort(data[picks], axis=1)
    table = np.stack([_weights(data.size, k, replacement) for k in ks], axis=1)
    return band(ks, value, resampled @ table, level)
