"""Methods against each other: which ones are compared, pair by pair, and on one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignlab.report import statistics as st
from alignlab.report.methods import Method
from alignlab.report.statistics import Difference, Interval

LEVEL = 0.95
FEW_POINTS = 12  # trained methods up to which every one is compared with every other
BT_DRAWS = 500

Tables = Mapping[str, np.ndarray]  # method id → (seeds, prompts)


@dataclass(frozen=True)
class Pair:
    """Gold reward of method ``a`` against method ``b`` on shared seeds and prompts."""

    a: Method
    b: Method
    gold: Difference
    holm: float
    win: Interval  # how often a scores above b on the same prompt, ties half

    @property
    def distinguishable(self) -> bool:
        """Whether both the corrected test and the interval over seeds and prompts exclude zero."""
        return self.holm < 1 - LEVEL and self.gold.interval.excludes(0.0)


def best_of_kl(n: int) -> float:
    """Upper bound of KL(best of n ‖ reference) in nats: log n − (n − 1) / n."""
    return math.log(n) - (n - 1) / n


def families_of(methods: Sequence[Method]) -> dict[str, list[Method]]:
    """Methods by family, in the order given."""
    found: dict[str, list[Method]] = {}
    for method in methods:
        found.setdefault(method.family, []).append(method)
    return found


def contenders(
    methods: Sequence[Method], kl: Mapping[str, float]
) -> tuple[list[Method], float | None]:
    """Methods that are tested against each other, and the KL by which they were picked, if any.

    All of them while there are few, or one family only. Of many points, one per family, so that
    the correction for many tests stays mild and no family is favoured for having more points: what
    a search chose on validation prompts, else the point nearest in √KL to the largest KL that
    every family reaches. Gold reward plays no part in it, so the test prompts do not choose.
    """
    trained = [m for m in methods if not m.baseline and m.best_of == 1]
    families = families_of(trained)
    if len(trained) <= FEW_POINTS or len(families) == 1:
        return list(methods), None
    reached = [
        max(known)
        for points in families.values()
        if len(points) > 1 and (known := [kl[m.id] for m in points if not math.isnan(kl[m.id])])
    ]
    target = min(reached, default=math.nan)
    kept: set[str] = {m.id for m in methods if m.baseline}
    for points in (
        *families.values(),
        *families_of([m for m in methods if m.best_of > 1]).values(),
    ):
        searched = [m for m in points if m.selection]
        kept |= {m.id for m in searched} or {_nearest(points, kl, target).id}
    return [m for m in methods if m.id in kept], None if math.isnan(target) else target


def _nearest(points: Sequence[Method], kl: Mapping[str, float], target: float) -> Method:
    """The point whose √KL is nearest to that of ``target``; the middle one where KL is unknown."""
    known = [m for m in points if not math.isnan(kl[m.id])]
    if not known or math.isnan(target):
        return points[len(points) // 2]
    return min(known, key=lambda m: abs(math.sqrt(max(kl[m.id], 0.0)) - math.sqrt(target)))


def compare(methods: Sequence[Method], gold: Tables, draws: int, seed: int) -> list[Pair]:
    """Compare every two methods on shared cells; Holm over all of these comparisons."""
    pairs = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]
    return compared(pairs, gold, draws, seed)


def compared(
    pairs: Sequence[tuple[Method, Method]], gold: Tables, draws: int, seed: int
) -> list[Pair]:
    """Compare the ``pairs``, without those that share no cell; Holm over these comparisons."""
    raw: list[tuple[Method, Method, Difference, Interval]] = []
    for a, b in pairs:
        difference = gold[a.id] - gold[b.id]
        if np.isnan(difference).all():
            continue
        rate = st.hierarchical_bootstrap(wins(difference), draws=draws, seed=seed)
        tested = st.difference_of_cells(difference, draws=draws, seed=seed)
        raw.append((a, b, tested, rate))
    adjusted = st.holm([d.p_value for _, _, d, _ in raw]) if raw else []
    return [Pair(a, b, d, p, w) for (a, b, d, w), p in zip(raw, adjusted, strict=True)]


def wins(difference: np.ndarray) -> np.ndarray:
    """1 where the difference is positive, ½ where it is zero, NaN where it is unknown."""
    return np.where(np.isnan(difference), np.nan, (np.sign(difference) + 1) / 2)


def strengths(
    methods: Sequence[Method], pairs: Sequence[Pair], gold: Tables, draws: int, seed: int
) -> tuple[dict[str, Interval], dict[tuple[str, str], float]]:
    """Bradley–Terry log-strengths from per-prompt gold comparisons, and the win rates behind them.

    Half a win is added to both sides of every pair, so that a method that wins everywhere stays
    finite. No strengths when two methods share no cell.
    """
    size, kept = len(methods), min(draws, BT_DRAWS)
    place = {m.id: i for i, m in enumerate(methods)}
    point, drawn = np.zeros((size, size)), np.zeros((kept, size, size))
    rates: dict[tuple[str, str], float] = {}
    for pair in pairs:
        i, j = place[pair.a.id], place[pair.b.id]
        difference = gold[pair.a.id] - gold[pair.b.id]
        games = float(np.count_nonzero(~np.isnan(difference)))
        value, sampled = st.hierarchical_draws(wins(difference), draws=draws, seed=seed)
        sampled = np.clip(sampled[:kept], 0, 1)
        rates[pair.a.id, pair.b.id], rates[pair.b.id, pair.a.id] = value, 1 - value
        point[i, j], point[j, i] = games * value, games * (1 - value)
        drawn[:, i, j], drawn[:, j, i] = games * sampled, games * (1 - sampled)
    if size < 2 or len(pairs) < size * (size - 1) // 2:
        return {}, rates
    found = st.bradley_terry_intervals(point, drawn, prior=0.5)
    return {m.id: found[i] for i, m in enumerate(methods)}, rates


def ranks(methods: Sequence[Method], gold: Tables, draws: int, seed: int) -> list[tuple[int, int]]:
    """Plausible ranks of the methods by mean gold reward, among themselves."""
    if not methods:
        return []
    drawn = []
    for method in methods:
        found = st.resamples(gold[method.id], draws=draws, seed=seed)
        drawn.append(st.widen(found.value, found.draws, found.freedom))
    return st.rank_intervals(np.stack(drawn, axis=1))


def detectable(pairs: Sequence[Pair]) -> float | None:
    """Smallest difference that one comparison of typical width finds with 80 % power."""
    half = [(p.gold.interval.high - p.gold.interval.low) / 2 for p in pairs]
    half = [h for h in half if h > 0]
    normal = st.minimum_detectable_effect(1, 1.0, power=0.5)  # half a 95 % interval per error
    return st.minimum_detectable_effect(1, float(np.median(half)) / normal) if half else None
