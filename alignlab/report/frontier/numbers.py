"""Points, curves and comparisons in the reward–KL plane, from the cells of an analysis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alignlab.report import statistics as st
from alignlab.report.analysis import Analysis, Score
from alignlab.report.comparison import families_of
from alignlab.report.folders import number
from alignlab.report.frontier.model import Area, AreaPair, Beside, Curve, Plane, Point
from alignlab.report.frontier.sampled import (
    Draws,
    Sampled,
    estimate,
    estimates,
    intervals,
    parts_of,
    sampled,
)
from alignlab.report.statistics import Array, Band, Interval, Overoptimisation

GRID = 61  # places along a curve
LADDER = tuple(x * 10.0**p for p in range(-2, 4) for x in (1, 2, 5))
SHOWN_BUDGETS = 4


def plane_of(analysis: Analysis, *, draws: int = st.DRAWS, seed: int = 0) -> Plane:
    """Compute the plane; empty of curves when no method has both gold reward and KL."""
    by_id = {s.method.id: s for s in analysis.scores}
    shown = [s for s in analysis.scores if not s.method.baseline and not math.isnan(s.value("kl"))]
    base = analysis.baseline
    curves = [
        _curve(family, [by_id[m.id] for m in methods], analysis, base, draws, seed)
        for family, methods in families_of([s.method for s in shown]).items()
    ]
    swept = [c for c in curves if c.swept]
    top, budgets = None, tuple[float, ...]()
    if len(swept) > 1 and base is not None and _common(swept) > LADDER[0]:
        top = _common(swept)
        budgets = _budgets(top)
    inside = [c for c in swept if top is not None and _reach(c) >= top]
    areas = [_area(c, top, budgets, c in inside) for c in swept] if top is not None else []
    pairs = _pairs(inside, top, budgets) if top is not None else []
    return Plane(
        curves=tuple(curves),
        baseline=base,
        reference_gold=_reference_gold(analysis),
        top=top,
        budgets=budgets,
        areas=tuple(sorted(areas, key=lambda a: -a.mean.value if a.mean else math.inf)),
        pairs=tuple(pairs),
        short=tuple(c.family for c in swept if c not in inside) if top is not None else (),
        beside=tuple(b for c in curves for b in _beside(c, swept)),
    )


def _reference_gold(analysis: Analysis) -> float | None:
    found = [
        number((run.record.get("summary") or {}).get("reference_gold"))
        for score in analysis.scores
        for run in score.method.evaluations.values()
    ]
    known = [x for x in found if math.isfinite(x)]
    return sum(known) / len(known) if known else None


def _point(score: Score) -> Point:
    gold = score.per_seed["gold"]
    kl = score.per_seed["kl"]
    return Point(
        score=score,
        kl=score.metrics["kl"],
        gold=score.metrics["gold"],
        gain=score.over_sft.get("gold"),
        proxy_gain=score.over_sft.get("proxy"),
        seeds={s: (kl.get(s, score.value("kl")), gold[s]) for s in gold},
    )


def _curve(
    family: str,
    scores: Sequence[Score],
    analysis: Analysis,
    base: Score | None,
    draws: int,
    seed: int,
) -> Curve:
    scores = sorted(scores, key=lambda s: s.value("kl"))
    drawn = sampled(scores, analysis.cells, base, draws, seed)
    control = scores[0].method.best_of > 1
    line = _line(drawn) if len(scores) > 1 else None
    fit = proxy_fit = past = proxy_past = None
    misfit = math.nan
    if base is not None:
        fit, misfit = _fit(drawn, drawn.gain, control)
        proxy_fit, _ = _fit(drawn, drawn.proxy, control) if drawn.proxy else (None, math.nan)
    if fit is not None:
        past, proxy_past = _past(drawn, fit, proxy_fit)
    points = tuple(map(_point, scores))
    return Curve(family, control, points, drawn, line, fit, proxy_fit, misfit, past, proxy_past)


def _line(drawn: Sampled) -> Band:
    """Gold at equal KL along the curve, with a pointwise band as far as every seed reaches.

    Beyond, a few seeds with few degrees of freedom would widen it until it hides the others'.
    """
    last = float(np.sqrt(max(drawn.points.value[:, 0].max(), 0.0)))
    first = 0.0 if drawn.anchored else float(np.sqrt(max(drawn.points.value[:, 0].min(), 0.0)))
    at = np.linspace(first, last, GRID)
    inner = at.copy()
    inner[-1] *= 1 - 1e-9
    found = estimates(drawn, drawn.points, lambda p: st.value_at_kl(p, inner**2))
    low, high = (np.array([getattr(i, end) for i in found]) for end in ("low", "high"))
    few = np.array([i.seeds for i in found]) < max(i.seeds for i in found)
    low[few] = high[few] = np.nan
    return Band(at, np.array([i.value for i in found]), low, high)


def _fit(
    drawn: Sampled, gains: Draws | None, control: bool
) -> tuple[Overoptimisation | None, float]:
    """Gao's form through the gains, and its χ² per degree of freedom; None for too few points."""
    if gains is None:
        return None, math.nan
    d = np.sqrt(np.maximum(drawn.kl.value, 0.0))
    error = np.std(gains.full, axis=0, ddof=1)
    known = (d > 0) & (error > 0)
    if np.unique(d[known]).size < 3:
        return None, math.nan
    weights = 1 / error[known] ** 2
    form: st.Form = "bon" if control else "rl"
    fit = st.fit_overoptimisation(
        d[known],
        gains.value[known],
        form,
        weights=weights,
        drawn=(np.sqrt(np.maximum(drawn.kl.full[:, known], 0.0)), gains.full[:, known]),
        freedom=float(np.median(gains.freedom)),
    )
    if np.isnan(fit.drawn).any(axis=1).mean() > 0.05:  # some KLs cannot be told from 0
        return None, math.nan
    residual = gains.value[known] - fit.at(d[known])
    return fit, float(weights @ residual**2) / (int(known.sum()) - 2)


def _past(
    drawn: Sampled, fit: Overoptimisation, proxy: Overoptimisation | None
) -> tuple[Interval | None, Interval | None]:
    """How gold and proxy change between the peak of gold and the furthest point, as fitted."""
    peak, last = fit.peak_d.value, float(np.sqrt(max(drawn.kl.value.max(), 0.0)))
    if not peak < last:
        return None, None
    freedom = float(np.median(drawn.gain.freedom)) if drawn.gain else math.inf

    def change(of: Overoptimisation) -> Interval:
        there = st.form_value([peak, last], of.drawn, of.form)
        value = of.at([peak, last])
        return st.summarise(value[1] - value[0], there[:, 1] - there[:, 0], freedom=freedom)

    return change(fit), change(proxy) if proxy else None


def _reach(curve: Curve) -> float:
    """KL that nearly all draws of a family reach, and each seed that has all of its points."""
    points = curve.drawn.points
    seeds = points.per_seed[~np.isnan(points.per_seed).any(axis=(1, 2)), :, 0].max(axis=1)
    drawn = float(np.quantile(points.full[:, :, 0].max(axis=1), 0.05))
    return min(drawn, *map(float, seeds))


def _common(swept: Sequence[Curve]) -> float:
    """Largest KL that at least two thirds of the families reach, and at least two of them."""
    reached = sorted((_reach(c) for c in swept), reverse=True)
    return reached[max(2, math.ceil(2 * len(reached) / 3)) - 1]


def _budgets(top: float) -> tuple[float, ...]:
    """Round numbers of nats up to ``top``, at most four."""
    inside = [b for b in LADDER if b <= top]
    return tuple(inside[-SHOWN_BUDGETS:]) or (top,)


def _area(curve: Curve, top: float, budgets: Sequence[float], reaches: bool) -> Area:
    drawn, limits = curve.drawn, np.asarray(budgets)
    best = estimates(drawn, drawn.points, lambda p: st.frontier_value(p, limits))
    flattery = st.frontier_optimism(drawn.points.value, drawn.points.full, limits)
    return Area(
        curve=curve,
        mean=estimate(drawn, drawn.points, lambda p: st.mean_over_kl(p, top, GRID))
        if reaches
        else None,
        at=tuple(
            None if math.isnan(found.value) else found
            for found in estimates(drawn, drawn.points, lambda p: st.value_at_kl(p, limits))
        ),
        best=tuple(_moved(i, -float(x)) for i, x in zip(best, flattery, strict=True)),
        optimism=tuple(map(float, flattery)),
    )


def _moved(found: Interval, by: float) -> Interval:
    return Interval(
        found.value + by, found.low + by, found.high + by, found.error, found.seeds, found.prompts
    )


def _beside(single: Curve, swept: Sequence[Curve]) -> list[Beside]:
    """A family's only setting against every curve that reaches its KL."""
    if len(single.points) > 1 or single.control:
        return []
    point, own = single.points[0], single.drawn.points

    def at_kl(points: Array) -> Array:
        return st.value_at_kl(points, max(point.kl.value, 0.0))

    found = []
    for curve in swept:
        there = parts_of(curve.drawn.points, at_kl)
        if np.isnan(there[0]).any():
            continue
        gaps = [
            own_part[..., -1, 1:] - part
            for own_part, part in zip(
                (own.value, own.full, own.by_prompt, own.per_seed), there, strict=True
            )
        ]
        prompts = curve.drawn.prompts
        found.append(
            Beside(
                point,
                curve.family,
                intervals(*there, prompts=prompts)[0][0],
                intervals(*gaps, prompts=prompts)[0][0],
            )
        )
    return found


def _pairs(curves: Sequence[Curve], top: float, budgets: Sequence[float]) -> list[AreaPair]:
    """Every two families: difference of mean gold up to ``top``, and of gold at equal KL."""
    limits = np.asarray(budgets)

    def curve_values(p: Array) -> Array:
        mean = st.mean_over_kl(p, top, GRID)[..., None]
        return np.concatenate([mean, st.value_at_kl(p, limits)], axis=-1)

    values = {c.family: parts_of(c.drawn.points, curve_values) for c in curves}
    raw = []
    for i, a in enumerate(curves):
        for b in curves[i + 1 :]:
            parts = [x - y for x, y in zip(values[a.family], values[b.family], strict=True)]
            raw.append((a.family, b.family, intervals(*parts, prompts=a.drawn.prompts)))
    p_values = [st.t_p_value(f[0][0].value, f[0][0].error, f[1][0]) for _, _, f in raw]
    adjusted = st.holm(p_values)
    return [
        AreaPair(a, b, found[0][0], p, h, tuple(found[0][1:]))
        for (a, b, found), p, h in zip(raw, p_values, adjusted, strict=True)
    ]
