"""Who is better: probability of improvement, Bradley–Terry strengths, ranks and cycles."""

from __future__ import annotations

from typing import Any

import numpy as np

from alignlab.report.statistics.intervals import DRAWS, Array, Interval, summarise


def probability_of_improvement(a: Any, b: Any) -> float:
    """P(a value of ``a`` exceeds a value of ``b``), ties counted half: Mann–Whitney's U / (n m)."""
    left, right = np.asarray(a, dtype=np.float64), np.sort(np.asarray(b, dtype=np.float64))
    below = np.searchsorted(right, left, "left") + np.searchsorted(right, left, "right")
    return float(below.sum() / (2 * left.size * right.size))


def improvement_interval(
    a: Any, b: Any, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Probability that a run of ``a`` is better than one of ``b``, over tasks, with its interval.

    ``a`` (n, T) and ``b`` (m, T) hold a score per run and task; the probability is the mean of
    `probability_of_improvement` over tasks, and runs are resampled within each task (Agarwal et
    al. 2021, 2108.13264, §4.3). One task may be given as (n,) and (m,).

    Raises:
        ValueError: the tasks differ in number.
    """
    left, right = (np.asarray(x, dtype=np.float64) for x in (a, b))
    left, right = (x[:, None] if x.ndim == 1 else x for x in (left, right))
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"need the same tasks, got {left.shape[1]} and {right.shape[1]}")
    beats = (np.sign(left[:, None, :] - right[None, :, :]) + 1) / 2  # (n, m, T)
    generator = np.random.default_rng(seed)
    n, m, tasks = beats.shape
    first = generator.multinomial(n, np.full(n, 1 / n), size=(draws, tasks)) / n
    second = generator.multinomial(m, np.full(m, 1 / m), size=(draws, tasks)) / m
    drawn = np.einsum("dtn,nmt,dtm->d", first, beats, second, optimize=True) / tasks
    return summarise(float(beats.mean()), drawn, level, seeds=min(n, m))


def bradley_terry(wins: Any, *, prior: float = 0.0, steps: int = 500) -> Array:
    """Log-strengths (…, M), centred, from ``wins[…, i, j]`` of i over j (MM: Hunter 2004).

    ``prior`` is a number of wins added to both sides of every pair: it keeps an unbeaten method
    finite.

    Raises:
        ValueError: without a prior, a method never wins or never loses: its strength is infinite.
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


def bradley_terry_intervals(
    wins: Any, drawn: Any, *, prior: float = 0.5, level: float = 0.95
) -> list[Interval]:
    """Log-strengths of ``wins`` (M, M) with intervals from bootstrapped win counts (D, M, M)."""
    value = bradley_terry(wins, prior=prior)
    found = bradley_terry(drawn, prior=prior)
    return [summarise(value[i], found[:, i], level) for i in range(value.size)]


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
