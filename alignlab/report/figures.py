"""Figures of the report, drawn without pyplot; each returns a `matplotlib.figure.Figure`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignlab.report.analysis import Analysis, Score
from alignlab.report.curves import Curves
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
MOST = 24  # rows of a figure with one row per method; more are in the tables only
POINTS = 240  # of a curve: more than a small figure has pixels
FEW_LINES = 8  # seeds whose curves are drawn one by one; more are drawn as their band


@contextmanager
def _figure(width: float, height: float, **grid: Any) -> Iterator[tuple[Figure, Any]]:
    """Make a figure with the room's settings; sizes in inches of 72 units."""
    with rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=72)
        yield figure, figure.subplots(**grid)


def leading(analysis: Analysis) -> list[Score]:
    """Scores for a figure with a row each, best first: of a sweep those that are compared.

    At most `MOST`, the baseline always among them.
    """
    scores = analysis.scores if analysis.equal_kl is None else analysis.compared
    best = list(scores[:MOST])
    base = analysis.baseline
    if base is not None and base not in best:
        best[-1] = base
    return best


def rewards(analysis: Analysis, looks: Mapping[str, Look]) -> Figure | None:
    """Draw gold, audit and proxy reward of every method beside each other, SFT as a dashed line."""
    names = {
        "gold": "gold (judge)",
        "audit": "audit (unseen)",
        "proxy": "proxy (trained on)",
    }
    kinds = [k for k in names if any(k in s.metrics for s in analysis.scores)]
    return _dots(analysis, looks, {k: names[k] for k in kinds}) if kinds else None


def lengths(analysis: Analysis, looks: Mapping[str, Look]) -> Figure | None:
    """Draw tokens per completion and how many end by themselves, SFT as a dashed line."""
    names = {"tokens": "tokens per completion", "finished": "ended by EOS, share"}
    kinds = [k for k in names if any(k in s.metrics for s in analysis.scores)]
    return _dots(analysis, looks, {k: names[k] for k in kinds}) if kinds else None


def _dots(analysis: Analysis, looks: Mapping[str, Look], names: Mapping[str, str]) -> Figure:
    """One row per method and one panel per metric: means with intervals."""
    scores = leading(analysis)[::-1]
    shape = {"ncols": len(names), "sharey": True, "squeeze": False}
    with _figure(6.3, 0.9 + 0.3 * len(scores), **shape) as (figure, axes):
        for ax, (kind, name) in zip(axes[0], names.items(), strict=True):
            for row, score in enumerate(scores):
                one = score.metrics.get(kind)
                _dot(ax, row, one, score.method.id, looks, share=kind == "finished")
            base = analysis.baseline
            if base is not None and kind in base.metrics:
                ax.axvline(base.value(kind), color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
            _panel(ax, name)
        _method_axis(axes[0][0], scores)
    return figure


def _dot(
    ax: Axes,
    row: int,
    found: Interval | None,
    method: str,
    looks: Mapping[str, Look],
    *,
    share: bool = False,
) -> None:
    if found is None:
        return
    look, tag = looks[method], f"m:{method}:"
    if share:  # an interval from few seeds may reach beyond what a share can be
        found = replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
    thin = look.marker in "*PX"
    edge = look.colour if thin else PAPER
    ax.plot([found.low, found.high], [row, row], color=look.colour, lw=2, zorder=2, gid=tag)
    ax.plot(
        found.value, row, look.marker, ms=9 if thin else 7, color=look.colour, mec=edge, zorder=3,
        gid=tag,
    )  # fmt: skip


def _panel(ax: Axes, title: str) -> None:
    ax.set_title(title)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=4)
    low, high = ax.get_xlim()
    if high - low < 1e-6:  # all values are equal: do not magnify rounding
        ax.set_xlim(low - 0.5, high + 0.5)


def _method_axis(ax: Axes, scores: Sequence[Score]) -> None:
    ax.set_yticks(range(len(scores)), [s.method.label for s in scores], color=INK)
    ax.set_ylim(-0.6, len(scores) - 0.4)
    for label, score in zip(ax.get_yticklabels(), scores, strict=True):
        label.set_gid(f"m:{score.method.id}:")


def cost(analysis: Analysis, looks: Mapping[str, Look]) -> Figure | None:
    """Draw what the policy stage of each trained method cost, without the stages that all share."""
    scores = analysis.trained[:MOST][::-1]
    panels = {"seconds": "seconds", "tokens": "tokens", "flops": "FLOPs"}
    if not scores:
        return None
    shape = {"ncols": len(panels), "sharey": True, "squeeze": False}
    with _figure(6.3, 0.9 + 0.3 * len(scores), **shape) as (figure, axes):
        for ax, (key, title) in zip(axes[0], panels.items(), strict=True):
            for row, score in enumerate(scores):
                colour = looks[score.method.id].colour
                first = score.cost.get("tokens_trained" if key == "tokens" else key) or 0.0
                tag = f"m:{score.method.id}:"
                ax.barh(row, first, height=0.62, color=colour)[0].set_gid(tag)
                if key == "tokens":
                    sampled = score.cost.get("tokens_sampled") or 0.0
                    bar = ax.barh(row, sampled, left=first, height=0.62, color=colour, alpha=0.4)
                    bar[0].set_gid(tag)
            _panel(ax, title)
            ax.xaxis.set_major_formatter(lambda x, _: _short(x))
        _method_axis(axes[0][0], scores)
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
            for seed, (steps, values) in by_seed.items():
                if len(by_seed) <= FEW_LINES:
                    ax.plot(*thinned(steps, values), color=look.colour, lw=0.8, alpha=0.5,
                            gid=f"m::s{seed}")  # fmt: skip
            steps, middle, low, high = (thinned(x)[0] for x in curves.band(name))
            if len(by_seed) > 1:
                ax.fill_between(steps, low, high, color=look.colour, alpha=0.18, lw=0)
            ax.plot(steps, middle, color=look.colour, lw=1.8)
            checked = list(curves.validation.get(name, {}).items())[:FEW_LINES]
            for seed, (steps, values) in checked:
                ax.plot(steps, values, color=MUTED, lw=0.9, ls=(0, (3, 2)), marker=".", ms=4,
                        gid=f"m::s{seed}")  # fmt: skip
            ax.set_title(name)
            ax.locator_params(nbins=4)
            ax.set_xlabel("step")
    return figure


def thinned(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """At most `POINTS` of the entries, evenly spaced, the first and the last among them."""
    size = len(arrays[0])
    if size <= POINTS:
        return arrays
    kept = np.linspace(0, size - 1, POINTS).round().astype(int)
    return tuple(array[kept] for array in arrays)
