"""Figures of the reward–KL plane; each returns a `matplotlib.figure.Figure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from alignlab.report.analysis import Score
from alignlab.report.frontier.axes import new_figure, root, root_ticks, square
from alignlab.report.frontier.model import Curve, Plane, Point
from alignlab.report.placing import place_labels
from alignlab.report.statistics import Array, Interval, Overoptimisation, form_value
from alignlab.report.style import INK, MUTED, PAPER, Look

DASHES, DOTS = (0, (4, 3)), (0, (1, 2.2))
SEGMENTS = 24  # pieces of a curve that a label stays clear of


def plane_figure(plane: Plane, looks: Mapping[str, Look]) -> Figure | None:
    """Draw gold reward against KL on a square-root axis (Gao et al. 2022).

    A family's settings are joined by a line with its 95 % band; a family of one setting is a point
    with its intervals. Small dots are single training seeds. None without any point.
    """
    if not plane.curves:
        return None
    with new_figure(6.6, 4.7) as (figure, ax):
        ax.set_xscale("function", functions=(root, square))
        for curve in plane.curves:
            _draw(ax, curve, looks[curve.lead], looks)
        if plane.baseline is not None:
            _zero(ax, plane.baseline, looks[plane.baseline.method.id])
        points = [point for curve in plane.curves for point in curve.points]
        top = max(max(p.kl.value for p in points), 0.1)
        left = min(0.0, *(p.kl.low for p in points))
        ax.set_xlim(min(1.2 * left, -0.0012 * top), top * 1.22)
        ax.set_xticks(root_ticks(1.2 * left, 1.1 * top))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.minorticks_off()
        ax.set_xlabel("KL to the SFT reference, nats per sequence (square-root axis)")
        ax.set_ylabel("gold reward")
        low, high = ax.get_ylim()
        if plane.reference_gold is not None:
            low, high = min(low, plane.reference_gold), max(high, plane.reference_gold)
        ax.set_ylim(low - 0.02 * (high - low), high + 0.06 * (high - low))
        _anchors(ax, plane)
        ends = [_label_place(curve) for curve in plane.curves]
        names = {curve.lead: curve.family for curve in plane.curves}
        bars = [bar for c in plane.curves for bar in _bars(c)]
        place_labels(ax, ends, names, bars + _written(ax, plane))
    return figure


def _draw(ax: Axes, curve: Curve, look: Look, looks: Mapping[str, Look]) -> None:
    tag = f"m:{curve.lead}:"
    if curve.line is not None:
        at, line = curve.line.at**2, curve.line
        known = ~np.isnan(line.value)
        style = DASHES if curve.control else "-"
        if not curve.control:
            ax.fill_between(
                at, line.low, line.high, where=known, color=look.colour, alpha=0.15, lw=0,
                gid=tag + "band", zorder=1,
            )  # fmt: skip
        width = 1.1 if curve.control else 1.8
        ax.plot(at, line.value, color=look.colour, lw=width, ls=style, gid=tag + "line", zorder=2)
    for point in curve.points:
        _mark(ax, point, looks[point.score.method.id], bars=curve.line is None)


def _mark(ax: Axes, point: Point, look: Look, *, bars: bool) -> None:
    method = point.score.method
    tag = f"m:{method.id}:"
    if bars:
        gold, kl = point.gold, point.kl
        thin: dict[str, Any] = {"color": look.colour, "lw": 1.4, "zorder": 2}
        ax.plot([kl.low, kl.high], [gold.value] * 2, gid=tag + "across", **thin)
        ax.plot([kl.value] * 2, [gold.low, gold.high], gid=tag + "up", **thin)
    if method.best_of == 1:
        dots: dict[str, Any] = {"ms": 3.6, "mew": 0, "alpha": 0.5, "zorder": 3}
        for seed, (kl_, gold_) in point.seeds.items():
            ax.plot(kl_, gold_, ".", color=look.colour, gid=f"{tag}s{seed}", **dots)
    hollow = method.best_of > 1
    ax.plot(
        point.kl.value, point.gold.value, look.marker, ms=11 if look.marker == "*" else 7.5,
        mew=1.1, mec=look.colour if hollow or look.marker in "PX" else PAPER,
        mfc=PAPER if hollow else look.colour, gid=tag + "point", zorder=4,
    )  # fmt: skip


def _zero(ax: Axes, score: Score, look: Look) -> None:
    """The reference itself, at a KL of 0."""
    tag, gold = f"m:{score.method.id}:", score.metrics["gold"]
    ax.plot([0, 0], [gold.low, gold.high], color=look.colour, lw=1.4, gid=tag + "up", zorder=3)
    ax.plot(
        0, gold.value, look.marker, ms=7.5, mew=1.1, mec=PAPER, color=look.colour,
        gid=tag + "point", zorder=4, clip_on=False,
    )  # fmt: skip


def _anchors(ax: Axes, plane: Plane) -> None:
    """Lines at the gold of SFT and of the data's own answers, and where the comparison ends."""
    beside = blended_transform_factory(ax.transAxes, ax.transData)
    lines: list[tuple[float, str, Any]] = []
    if plane.baseline is not None:
        lines.append((plane.baseline.value("gold"), plane.baseline.method.label, DASHES))
    if plane.reference_gold is not None:
        lines.append((plane.reference_gold, "answers of the data", DOTS))
    for height, name, style in lines:
        ax.axhline(height, color=MUTED, lw=0.9, ls=style, zorder=1)
        ax.annotate(
            name, (1, height), xycoords=beside, xytext=(0, 3), textcoords="offset points",
            ha="right", va="bottom", color=MUTED, fontsize=8.5,
        )  # fmt: skip
    if plane.top is not None:
        below = blended_transform_factory(ax.transData, ax.transAxes)
        ax.plot([plane.top] * 2, [0, 0.06], color=INK, lw=1.1, transform=below, zorder=3)
        ax.annotate(
            "compared up to here", (plane.top, 0.03), xycoords=below, xytext=(-4, 0),
            textcoords="offset points", ha="right", va="center", color=MUTED, fontsize=8.5,
        )  # fmt: skip


def _written(ax: Axes, plane: Plane) -> list[tuple[float, float, float, float]]:
    """Where the names of the anchors stand: the right fifth of the axis, just above their lines."""
    (left, right), (low, high) = map(root, ax.get_xlim()), ax.get_ylim()
    heights = [plane.baseline.value("gold")] if plane.baseline else []
    heights += [plane.reference_gold] if plane.reference_gold is not None else []
    begin, end = float(square(right - 0.2 * (right - left))), float(square(right))
    rows = [h + share * (high - low) for h in heights for share in (0.012, 0.03)]
    return [(begin, row, end, row) for row in rows]


def _label_place(curve: Curve) -> tuple[float, float]:
    last = curve.furthest
    return last.kl.value, last.gold.value


def _bars(curve: Curve) -> list[tuple[float, float, float, float]]:
    """What labels stay clear of: short pieces of the line, or the cross of a lone point."""
    if curve.line is None:
        kl, gold = curve.points[0].kl, curve.points[0].gold
        return [
            (kl.low, gold.value, kl.high, gold.value),
            (kl.value, gold.low, kl.value, gold.high),
        ]
    known = ~np.isnan(curve.line.value)
    at, value = curve.line.at[known] ** 2, curve.line.value[known]
    picks = np.unique(np.linspace(0, at.size - 1, SEGMENTS).astype(int))
    ends = list(zip(at[picks], value[picks], strict=True))
    return [(float(a), float(b), float(c), float(d)) for (a, b), (c, d) in pairwise(ends)]


def gains_figure(curve: Curve, look: Look) -> Figure | None:
    """Draw gold and proxy gained over SFT against d = √KL, with the fitted form and its peak."""
    panels: list[tuple[str, list[Interval], Overoptimisation | None]] = []
    for title, name, fit in (
        ("gold over SFT", "gain", curve.fit),
        ("proxy over SFT", "proxy_gain", curve.proxy_fit),
    ):
        gains = [getattr(point, name) for point in curve.points]
        if all(gain is not None for gain in gains):
            panels.append((title, gains, fit))
    d = [float(np.sqrt(max(point.kl.value, 0.0))) for point in curve.points]
    if not panels or len(curve.points) < 2 or max(d) == 0:
        return None
    with new_figure(5.6, 2.2, ncols=len(panels), squeeze=False) as (figure, axes):
        for ax, (title, gains, fit) in zip(axes[0], panels, strict=True):
            ax.axhline(0, color=MUTED, lw=0.9, ls=DASHES, zorder=1)
            if fit is not None:
                _form(ax, fit, 1.04 * max(d), look)
            else:
                ax.plot(d, [g.value for g in gains], color=look.colour, lw=1, alpha=0.6)
            _whiskers(ax, d, gains, look)
            ax.set_title(title)
            ax.set_xlabel("√KL")
            ax.set_xlim(0, 1.06 * max(d))
            ax.locator_params(nbins=5)
        if curve.fit is not None:
            _peak(axes[0][0], curve.fit, max(d))
    return figure


def _whiskers(ax: Axes, d: Sequence[float], gains: Sequence[Interval], look: Look) -> None:
    for x, gain in zip(d, gains, strict=True):
        ax.plot([x, x], [gain.low, gain.high], color=look.colour, lw=1.4, zorder=3)
    ax.plot(
        d, [g.value for g in gains], look.marker, ms=6, color=look.colour, mew=0.9,
        mec=look.colour if look.marker in "PX*" else PAPER, zorder=4, ls="none",
    )  # fmt: skip


def _form(ax: Axes, fit: Overoptimisation, last: float, look: Look) -> None:
    at: Array = np.linspace(0, last, 80)
    drawn = form_value(at, fit.drawn, fit.form)
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    ax.fill_between(at, low, high, color=look.colour, alpha=0.15, lw=0, zorder=1)
    ax.plot(at, fit.at(at), color=look.colour, lw=1.6, zorder=2)


def _peak(ax: Axes, fit: Overoptimisation, last: float) -> None:
    """A line at the fitted peak of gold, where it lies among the points."""
    if not fit.peak_d.value <= last:
        return
    ax.axvspan(fit.peak_d.low, min(fit.peak_d.high, last), color=INK, alpha=0.06, lw=0, zorder=0)
    ax.axvline(fit.peak_d.value, color=INK, lw=0.9, ls=DOTS, zorder=1)
    ax.annotate(
        f"peak {fit.peak_d.value:.1f}", (fit.peak_d.value, 0.1), xycoords=("data", "axes fraction"),
        xytext=(-3, 4), textcoords="offset points", ha="right", va="bottom", color=MUTED,
        fontsize=8.5,
    )  # fmt: skip
