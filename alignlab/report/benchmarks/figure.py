"""Figures of benchmarks: differences from SFT by task, and reliability of reward models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from alignlab.evaluation.calibration import reliability, wilson
from alignlab.report.benchmarks.numbers import RewardModel, TaskTable
from alignlab.report.figures import RC
from alignlab.report.style import COLOURS, INK, LINE, MARKERS, MUTED, PAPER, Look

COLUMNS = 3
MOST_SETS = 8
ARROWS = {"higher": "higher is better", "lower": "lower is better", None: ""}


def changes(found: Sequence[TaskTable], looks: Mapping[str, Look]) -> Figure | None:
    """Draw each task's differences from SFT as dots with 95 % intervals.

    The dashed line is SFT, the shaded side is the worse one.
    None where nothing is compared.
    """
    methods = list(
        {c.method.id: c.method for t in found for c in t.changes if c.delta is not None}.values()
    )[::-1]
    if not methods:
        return None
    columns = min(COLUMNS, len(found))
    lines = math.ceil(len(found) / columns)
    place = {m.id: i for i, m in enumerate(methods)}
    with rc_context(RC):
        height = lines * (0.95 + 0.24 * max(2, len(methods)))
        figure = Figure(figsize=(2.1 + 1.6 * columns, height), layout="constrained", dpi=72)
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for number, ax in enumerate(axes.flat):
            if number >= len(found):
                ax.set_axis_off()
                continue
            _panel(ax, found[number], place, looks)
        for row in axes:
            row[0].set_yticks(range(len(methods)), [m.label for m in methods], color=INK)
            row[0].set_ylim(-0.6, len(methods) - 0.4)
    return figure


def _panel(
    ax: Any, table: TaskTable, place: Mapping[str, int], looks: Mapping[str, Look]
) -> None:  # fmt: skip
    ax.axvline(0.0, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
    for change in table.changes:
        delta = change.delta
        if delta is None:
            continue
        look, row = looks[change.method.id], place[change.method.id]
        tag = f"m:{change.method.id}:"
        ax.plot([delta.low, delta.high], [row, row], color=look.colour, lw=2, zorder=2, gid=tag)
        thin = look.marker in "*PX"
        edge = look.colour if thin else PAPER
        ax.plot(delta.value, row, look.marker, ms=9 if thin else 7, color=look.colour, mec=edge,
                zorder=3, gid=f"{tag}point")  # fmt: skip
    ax.set_title(f"{table.task}\n{table.title}", fontsize=9)
    ax.set_xlabel(ARROWS.get(table.better, ""), fontsize=8.5)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=3)
    low, high = ax.get_xlim()
    if high - low < 1e-6:  # all differences are equal: do not magnify rounding
        low, high = -0.5, 0.5
    if table.better is not None:  # the side of the worse is shaded
        worse = (min(low, 0.0), 0.0) if table.better == "higher" else (0.0, max(high, 0.0))
        ax.axvspan(*worse, color=LINE, alpha=0.35, lw=0, zorder=0)
    ax.set_xlim(low, high)


def calibration(models: Sequence[RewardModel]) -> Figure | None:
    """Draw how often a reward model is right against how sure it is, one line per set of pairs.

    The diagonal is perfect calibration; the size of a dot grows with the pairs behind it, and the
    thin line through it is their 95 % interval.
    """
    whole = [m for m in models if not m.subset]
    tasks = list(dict.fromkeys(m.task for m in whole))[:MOST_SETS]
    if not tasks:
        return None
    with rc_context(RC):
        figure = Figure(figsize=(6.3, 3.8), layout="constrained", dpi=72)
        ax = figure.subplots()
        ax.plot([0.5, 1], [0.5, 1], color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
        for number, task in enumerate(tasks):
            chances = [p for m in whole if m.task == task for p in m.probabilities]
            bins = reliability(chances)
            colour, marker = COLOURS[number % len(COLOURS)][0], MARKERS[number % len(MARKERS)]
            x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
            ax.plot(x, y, color=colour, lw=1.4, zorder=2, label=task)
            for b in bins:
                size = 3 + 9 * math.sqrt(b.count / len(chances))
                ends = wilson(b.accuracy, b.count)
                ax.plot([b.confidence] * 2, ends, color=colour, lw=0.9, alpha=0.6, zorder=2)
                ax.plot(
                    b.confidence, b.accuracy, marker, ms=size, color=colour, mec=PAPER, zorder=3
                )
        ax.set_xlim(0.49, 1.01)
        ax.set_ylim(-0.02, 1.03)
        ax.set_xlabel("confidence of the reward model, σ(|margin|)")
        ax.set_ylabel("share of pairs ordered right")
        if len(tasks) > 1:
            ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure
