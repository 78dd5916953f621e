"""Figures of the report, drawn without pyplot; each returns a `matplotlib.figure.Figure`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignlab.report.analysis import Analysis, Score
from alignlab.report.curves import Curves
from alignlab.report.placing import place_labels
from alignlab.report.statistics import Interval
from alignlab.report.style import INK, LINE, MUTED, PAPER, Look

RC: Any = {
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "figure.facecolor": "none",
    "lines.linewidth": 1.6,
    "path.simplify": True,
}


@contextmanager
def _figure(width: float, height: float, **grid: Any) -> Iterator[tuple[Figure, Any]]:
    """Make a figure with the room's settings; sizes in inches of 72 units."""
    with rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=72)
        yield figure, figure.subplots(**grid)


def frontier(analysis: Analysis, looks: Mapping[str, Look]) -> Figure | None:
    """Draw gold reward against sequence KL on a square-root axis (Gao et al. 2022).

    Means with intervals, one small dot per training seed. None when no method has both numbers.
    """
    shown = [s for s in analysis.scores if not math.isnan(s.value("kl"))]
    if not shown:
        return None
    with _figure(6.3, 4.5) as (figure, ax):
        ax.set_xscale("function", functions=(_root, _square))
        points = [_frontier_point(ax, score, looks[score.method.id]) for score in shown]
        base = analysis.baseline
        if base is not None:
            ax.axhline(base.value("gold"), color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
        top = max(max(s.metrics["kl"].high for s in shown), 0.1)
        left = min(s.metrics["kl"].low for s in shown)  # an estimate may fall below zero
        ax.set_xlim(min(1.3 * left, -0.0012 * top), top * 1.2)
        ax.set_xticks(_root_ticks(1.2 * left, 1.1 * top))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.minorticks_off()
        ax.set_xlabel("KL to the SFT reference, nats per sequence (square-root axis)")
        ax.set_ylabel("gold reward")
        low, high = ax.get_ylim()
        ax.set_ylim(low, high + 0.06 * (high - low))
        bars = [(s.metrics["kl"], s.metrics["gold"]) for s in shown]
        crosses = [
            bounds
            for (kl, gold) in bars
            for bounds in (
                (kl.low, gold.value, kl.high, gold.value),
                (kl.value, gold.low, kl.value, gold.high),
            )
        ]
        place_labels(ax, points, {s.method.id: s.method.label for s in shown}, crosses)
    return figure


def _root(x: Any) -> Any:
    return np.sign(x) * np.sqrt(np.abs(x))


def _square(x: Any) -> Any:
    return np.sign(x) * np.square(x)


def _root_ticks(low: float, top: float) -> list[float]:
    """Round numbers of nats that stand at least a tenth of the axis apart after the root."""
    apart = 0.1 * (math.sqrt(top) + math.sqrt(max(-low, 0.0)))
    ticks = [0.0]
    for power in range(-3, 5):
        for tick in (1.0 * 10**power, 2.0 * 10**power, 5.0 * 10**power):
            if tick <= top and math.sqrt(tick) - math.sqrt(ticks[-1]) > apart:
                ticks.append(tick)
    if top - ticks[-1] > 0.3 * top:
        ticks.append(1.5 * ticks[-1])
    return [-tick for tick in ticks[1:] if tick <= -low] + ticks


def _frontier_point(ax: Axes, score: Score, look: Look) -> tuple[float, float]:
    gold, kl = score.metrics["gold"], score.metrics["kl"]
    x = kl.value
    tag = f"m:{score.method.id}:"
    ax.plot([kl.low, kl.high], [gold.value] * 2, color=look.colour, lw=1.4, gid=tag)
    ax.plot([x, x], [gold.low, gold.high], color=look.colour, lw=1.4, gid=tag)
    for seed, mean in score.per_seed["gold"].items():
        at = score.per_seed["kl"].get(seed, x)
        ax.plot(at, mean, ".", ms=4, color=look.colour, alpha=0.55, gid=tag)
    hollow = score.method.best_of > 1
    ax.plot(
        x, gold.value, look.marker, ms=12 if look.marker == "*" else 8.5, mew=1.1, zorder=4,
        mec=look.colour if hollow or look.marker in "PX" else PAPER,
        mfc=PAPER if hollow else look.colour, gid=tag + "point",
    )  # fmt: skip
    return x, gold.value


def rewards(analysis: Analysis, looks: Mapping[str, Look]) -> Figure | None:
    """Draw gold, audit and proxy reward of every method beside each other, SFT as a dashed line."""
    names = {
        "gold": "gold (judge)",
        "audit": "audit (unseen)",
        "proxy": "proxy (trained on)",
    }
    kinds = [k for k in names if any(k in s.metrics for s in analysis.scores)]
    if not kinds:
        return None
    scores = analysis.scores[::-1]
    shape = {"ncols": len(kinds), "sharey": True, "squeeze": False}
    with _figure(6.3, 0.9 + 0.3 * len(scores), **shape) as (figure, axes):
        for ax, kind in zip(axes[0], kinds, strict=True):
            for row, score in enumerate(scores):
                _dot(ax, row, score.metrics.get(kind), looks[score.method.id])
            base = analysis.baseline
            if base is not None and kind in base.metrics:
                ax.axvline(base.value(kind), color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
            _panel(ax, names[kind])
        _method_axis(axes[0][0], [s.method.label for s in scores])
    return figure


def _dot(ax: Axes, row: int, found: Interval | None, look: Look) -> None:
    if found is None:
        return
    thin = look.marker in "*PX"
    edge = look.colour if thin else PAPER
    ax.plot([found.low, found.high], [row, row], color=look.colour, lw=2, zorder=2)
    ax.plot(
        found.value, row, look.marker, ms=9 if thin else 7, color=look.colour, mec=edge, zorder=3
    )


def _panel(ax: Axes, title: str) -> None:
    ax.set_title(title)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=4)
    low, high = ax.get_xlim()
    if high - low < 1e-6:  # all values are equal: do not magnify rounding
        ax.set_xlim(low - 0.5, high + 0.5)


def _method_axis(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), labels, color=INK)
    ax.set_ylim(-0.6, len(labels) - 0.4)


def cost(analysis: Analysis, looks: Mapping[str, Look]) -> Figure | None:
    """Draw what the policy stage of each trained method cost, without the stages that all share."""
    scores = analysis.trained[::-1]
    panels = {"seconds": "seconds", "tokens": "tokens", "flops": "FLOPs"}
    if not scores:
        return None
    shape = {"ncols": len(panels), "sharey": True, "squeeze": False}
    with _figure(6.3, 0.9 + 0.3 * len(scores), **shape) as (figure, axes):
        for ax, (key, title) in zip(axes[0], panels.items(), strict=True):
            for row, score in enumerate(scores):
                colour = looks[score.method.id].colour
                first = score.cost.get("tokens_trained" if key == "tokens" else key) or 0.0
                ax.barh(row, first, height=0.62, color=colour)
                if key == "tokens":
                    sampled = score.cost.get("tokens_sampled") or 0.0
                    ax.barh(row, sampled, left=first, height=0.62, color=colour, alpha=0.4)
            _panel(ax, title)
            ax.xaxis.set_major_formatter(lambda x, _: _short(x))
        _method_axis(axes[0][0], [s.method.label for s in scores])
    return figure


def _short(x: float) -> str:
    for power, unit in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(x) >= 10**power:
            return f"{x / 10**power:g}{unit}"
    return f"{x:g}"


def curve(curves: Curves, look: Look) -> Figure:
    """Draw one stage's loss and its reward, margin or accuracy; line = mean, band = all seeds."""
    panels = curves.panels
    with _figure(5.6, 2.1, ncols=len(panels), squeeze=False) as (figure, axes):
        for ax, (name, by_seed) in zip(axes[0], panels.items(), strict=True):
            for steps, values in by_seed.values():
                ax.plot(steps, values, color=look.colour, lw=0.8, alpha=0.5)
            steps, middle, low, high = curves.band(name)
            if len(by_seed) > 1:
                ax.fill_between(steps, low, high, color=look.colour, alpha=0.18, lw=0)
            ax.plot(steps, middle, color=look.colour, lw=1.8)
            for steps, values in curves.validation.get(name, {}).values():
                ax.plot(steps, values, color=MUTED, lw=0.9, ls=(0, (3, 2)), marker=".", ms=4)
            ax.set_title(name)
            ax.locator_params(nbins=4)
            ax.set_xlabel("step")
    return figure
