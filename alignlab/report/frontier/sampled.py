"""The points of a family with their joint bootstrap, and intervals of whatever is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignlab.report import statistics as st
from alignlab.report.analysis import Score
from alignlab.report.statistics import Array, Interval

Tables = Mapping[str, Mapping[str, Array]]  # metric → method id → (seeds, prompts)


@dataclass(frozen=True)
class Draws:
    """A quantity of every point: estimate (N, …), draws (D, N, …), and draws of prompts alone.

    ``per_seed`` (S, N, …) is its value in each training seed; ``freedom`` (N,) as in `resamples`.
    """

    value: Array
    full: Array
    by_prompt: Array
    per_seed: Array
    freedom: Array


@dataclass(frozen=True)
class Sampled:
    """Points of one family, lowest KL first; ``points`` begins with the baseline at KL 0."""

    kl: Draws
    points: Draws  # (…, 2): KL and gold
    gain: Draws | None  # gold over the baseline, paired
    proxy: Draws | None  # proxy over the baseline, paired
    anchored: bool  # whether the baseline is the first of ``points``
    prompts: int


def sampled(
    scores: Sequence[Score], cells: Tables, base: Score | None, draws: int, seed: int
) -> Sampled:
    """Bootstrap KL, gold and gains of ``scores`` over the same seeds and prompts."""
    ids = [s.method.id for s in scores]
    gold = _stack([cells["gold"][i] for i in ids], draws, seed)
    kl = _kl(scores, cells, draws, seed, gold)
    points = [_joined(kl, gold)]
    gain = proxy = None
    if base is not None:
        zero = base.method.id
        own = _stack([cells["gold"][zero]], draws, seed)
        points.insert(0, _joined(_constant(own, [0.0]), own))
        gain = _stack([cells["gold"][i] - cells["gold"][zero] for i in ids], draws, seed)
        over = [cells["proxy"][i] - cells["proxy"][zero] for i in ids]
        if not any(np.isnan(table).all() for table in over):
            proxy = _stack(over, draws, seed)
    together = Draws(
        *(np.concatenate([getattr(p, name) for p in points], axis=axis)
          for name, axis in (("value", 0), ("full", 1), ("by_prompt", 1), ("per_seed", 1),
                             ("freedom", 0)))
    )  # fmt: skip
    prompts = int((~np.isnan(np.stack([cells["gold"][i] for i in ids]))).any(axis=(0, 1)).sum())
    return Sampled(kl, together, gain, proxy, base is not None, prompts)


def _stack(tables: Sequence[Array], draws: int, seed: int) -> Draws:
    found = [st.resamples(table, draws=draws, seed=seed) for table in tables]
    return Draws(
        np.array([f.value for f in found]),
        np.stack([f.draws for f in found], axis=1),
        np.stack([f.by_prompt for f in found], axis=1),
        np.stack([_rows(table) for table in tables], axis=1),
        np.array([f.freedom for f in found]),
    )


def _rows(table: Array) -> Array:
    """Mean per seed, NaN for a seed without a value."""
    count = (~np.isnan(table)).sum(axis=1)
    return np.where(count > 0, np.nansum(table, axis=1) / np.maximum(count, 1), np.nan)


def _kl(scores: Sequence[Score], cells: Tables, draws: int, seed: int, like: Draws) -> Draws:
    if scores[0].kl_is_analytic:
        return _constant(like, [s.value("kl") for s in scores])
    return _stack([cells["kl"][s.method.id] for s in scores], draws, seed)


def _constant(like: Draws, values: Sequence[float]) -> Draws:
    """Numbers that are known, in the shape of ``like``; NaN where a seed has no value."""
    row = np.asarray(values, dtype=np.float64)
    return Draws(
        row,
        np.broadcast_to(row, like.full.shape),
        np.broadcast_to(row, like.by_prompt.shape),
        np.where(np.isnan(like.per_seed), np.nan, row),
        np.full(row.size, math.inf),
    )


def _joined(kl: Draws, gold: Draws) -> Draws:
    return Draws(
        np.stack([kl.value, gold.value], axis=-1),
        np.stack([kl.full, gold.full], axis=-1),
        np.stack([kl.by_prompt, gold.by_prompt], axis=-1),
        np.stack([kl.per_seed, gold.per_seed], axis=-1),
        gold.freedom,
    )


Function = Callable[[Array], Array]  # points (…, N, 2) → (…) or (…, B)


def parts_of(draws: Draws, function: Function) -> list[Array]:
    """``function`` of the estimate, the draws, the draws of prompts, and each seed's points."""
    return [function(p) for p in (draws.value, draws.full, draws.by_prompt, draws.per_seed)]


def estimates(drawn: Sampled, draws: Draws, function: Function) -> list[Interval]:
    """Interval of every number (B,) that ``function`` makes of the points."""
    return intervals(*parts_of(draws, function), prompts=drawn.prompts)[0]


def estimate(drawn: Sampled, draws: Draws, function: Function) -> Interval:
    """Interval of the one number that ``function`` makes of the points."""
    return estimates(drawn, draws, lambda points: function(points)[..., None])[0]


def intervals(
    value: Array, full: Array, by_prompt: Array, per_seed: Array, *, prompts: int
) -> tuple[list[Interval], list[float]]:
    """Intervals of ``value`` (B,) from draws (D, B), prompt draws (D, B) and seeds (S, B).

    Degrees of freedom as in `statistics.resamples`: the spread between the seeds' own values has
    one less than there are seeds. A draw without a value is left out. Also returns the freedom.
    """
    found, freedoms = [], []
    for b in range(value.size):
        seeds = per_seed[:, b][~np.isnan(per_seed[:, b])]
        between = float(np.var(seeds, ddof=1)) / seeds.size if seeds.size > 1 else 0.0
        inner = by_prompt[:, b][~np.isnan(by_prompt[:, b])]
        within = float(np.var(inner)) if inner.size else 0.0
        known = full[:, b][~np.isnan(full[:, b])]
        total = float(np.var(known)) if known.size else 0.0
        freedom = st.satterthwaite(total, (between, seeds.size - 1), (within, prompts - 1))
        found.append(
            st.summarise(value[b], full[:, b], freedom=freedom, seeds=seeds.size, prompts=prompts)
        )
        freedoms.append(freedom)
    return found, freedoms
