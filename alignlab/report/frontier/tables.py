"""The reward–KL plane as rows for files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from alignlab.report.frontier.model import Plane
from alignlab.report.statistics import Interval

Row = dict[str, Any]


def tables(plane: Plane) -> Mapping[str, list[Row]]:
    """File stem → rows: points, curves, fits, families at equal KL, and their differences."""
    found = {
        "frontier_points": _points(plane),
        "frontier_curves": _curves(plane),
        "frontier_fits": _fits(plane),
        "frontier_families": _families(plane),
        "frontier_differences": _differences(plane),
        "frontier_beside": _beside(plane),
    }
    return {stem: rows for stem, rows in found.items() if rows}


def _spread(name: str, found: Interval | None) -> Row:
    keys = {name: "value", f"{name}_low": "low", f"{name}_high": "high"}
    return {key: getattr(found, field) if found else math.nan for key, field in keys.items()}


def _points(plane: Plane) -> list[Row]:
    return [
        {
            "family": curve.family,
            "method": point.score.method.id,
            "settings": point.score.method.settings,
            **_spread("kl", point.kl),
            "kl_is_analytic_upper_bound": point.score.kl_is_analytic,
            **_spread("gold", point.gold),
            **_spread("gold_over_sft", point.gain),
            **_spread("proxy_over_sft", point.proxy_gain),
            "seeds": len(point.seeds),
            "runs": " ".join(r.name for r in point.score.method.evaluations.values()),
        }
        for curve in plane.curves
        for point in curve.points
    ]


def _curves(plane: Plane) -> list[Row]:
    return [
        {"family": c.family, "kl": d**2, "gold": value, "gold_low": low, "gold_high": high}
        for c in plane.curves
        if c.line is not None
        for d, value, low, high in zip(
            *(x.tolist() for x in (c.line.at, c.line.value, c.line.low, c.line.high)), strict=True
        )
        if not math.isnan(value)
    ]


def _fits(plane: Plane) -> list[Row]:
    return [
        {
            "family": curve.family,
            "reward": reward,
            "form": "d (α − β log d)" if fit.form == "rl" else "d (α − β d)",
            **_spread("alpha", fit.alpha),
            **_spread("beta", fit.beta),
            # A form that turns beyond all points has its peak nowhere in particular.
            **_spread("peak_root_kl", fit.peak_d if fit.humps > 0.5 else None),
            **_spread("peak_gain", fit.peak_r if fit.humps > 0.5 else None),
            "peak_within_range": fit.humps,
            "chi2_per_freedom": curve.misfit if reward == "gold" else math.nan,
            **_spread("change_after_peak", curve.past if reward == "gold" else curve.proxy_past),
        }
        for curve in plane.curves
        for reward, fit in (("gold", curve.fit), ("proxy", curve.proxy_fit))
        if fit is not None
    ]


def _families(plane: Plane) -> list[Row]:
    rows = []
    for area in plane.areas:
        row: Row = {"family": area.curve.family, "settings": len(area.curve.points)}
        row |= {"up_to_kl": plane.top, **_spread("mean_gold", area.mean)}
        for i, budget in enumerate(plane.budgets):
            row |= _spread(f"gold_at_kl_{budget:g}", area.at[i])
            row |= _spread(f"best_gold_within_kl_{budget:g}", area.best[i])
            row[f"optimism_within_kl_{budget:g}"] = area.optimism[i]
        rows.append(row)
    return rows


def _differences(plane: Plane) -> list[Row]:
    return [
        {
            "a": pair.a,
            "b": pair.b,
            "up_to_kl": plane.top,
            **_spread("mean_gold_difference", pair.mean),
            "p": pair.p_value,
            "holm_p": pair.holm,
            **{
                key: value
                for budget, found in zip(plane.budgets, pair.at, strict=True)
                for key, value in _spread(f"difference_at_kl_{budget:g}", found).items()
            },
        }
        for pair in plane.pairs
    ]


def _beside(plane: Plane) -> list[Row]:
    return [
        {
            "method": b.single.score.method.id,
            "kl": b.single.kl.value,
            **_spread("gold", b.single.gold),
            "against": b.curve,
            **_spread("curve_gold_at_that_kl", b.there),
            **_spread("difference", b.difference),
        }
        for b in plane.beside
    ]
