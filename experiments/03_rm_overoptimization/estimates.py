"""Two small estimators: exact best of n from more samples, and curves over √KL from many runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np


def best_of_n_gold(gold: Any, proxy: Any, n: int) -> float:
    """Mean gold of the highest proxy among n, over all C(N, n) subsets of N samples.

    ``Σ_i gold_(i) C(i − 1, n − 1) / C(N, n)``, samples in ascending order of the proxy: the i-th is
    the best of a subset when the other n − 1 lie below it. Unbiased for best of n fresh samples.
    """
    order = np.argsort(np.asarray(proxy), kind="stable")
    total = len(order)
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} needs as many samples, not {total}")
    weights = [comb(i, n - 1) / comb(total, n) for i in range(total)]
    return float(np.dot(weights, np.asarray(gold)[order]))


def binned(
    places: Sequence[Sequence[float]], values: Sequence[Sequence[float]], edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean place and value in each bin that every curve visits; each curve counts once."""
    kept: list[tuple[float, float]] = []
    for low, high in itertools.pairwise(edges):
        means = []
        for xs, ys in zip(places, values, strict=True):
            inside = (np.asarray(xs) >= low) & (np.asarray(xs) < high)
            if inside.any():
                means.append((np.asarray(xs)[inside].mean(), np.asarray(ys)[inside].mean()))
        if len(means) == len(places):
            x, y = np.mean(means, axis=0)
            kept.append((float(x), float(y)))
    return np.array([x for x, _ in kept]), np.array([y for _, y in kept])
