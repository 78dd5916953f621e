"""Figures of tuning: the expected best of k trials, and scores over what was tried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from alignlab.report.figures import RC
from alignlab.report.placing import place_labels
from alignlab.report.statistics import Band
from alignlab.report.style import PAPER, Look
from alignlab.report.tuning.numbers import Trial, Tuning, curve
from alignlab.report.verdict import amount

COLUMNS = 3  # of the small panels
RATE = "optimizer.learning_rate"


def expected(found: Sequence[Tuning], looks: Mapping[str, Look]) -> Figure | None:
    """Draw what the best of k trials is expected to score: over k, and over the FLOPs of k trials.

    None where no method had two trials.
    """
    if max((t.count for t in found), default=0) < 2:
        return None
    curves = [(t, curve(t)) for t in found]
    paid = all(t.mean("flops") > 0 for t in found)
    with rc_context(RC):
        figure = Figure(figsize=(6.3, 3.2), layout="constrained", dpi=72)
        axes = figure.subplots(ncols=1 + paid, sharey=True, squeeze=False)[0]
        for tuning, drawn in curves:
            _line(axes[0], tuning, drawn, drawn.at, looks)
            if paid:
                _line(axes[1], tuning, drawn, drawn.at * tuning.mean("flops"), looks)
        axes[0].set_xlabel("trials")
        axes[0].set_ylabel(f"expected validation {found[0].metric} of the best")
        most = max(t.count for t in found)
        ticks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= most]
        axes[0].set_xscale("log", base=2)
        axes[0].set_xticks(ticks, [str(k) for k in ticks])
        axes[0].set_title("equal number of trials")
        if paid:
            axes[1].set_xscale("log")
            axes[1].set_xlabel("FLOPs of the search")
            axes[1].set_title("equal compute")
            _few_ticks(axes[1], [x * t.mean("flops") for t, d in curves for x in d.at])
        for ax in axes:
            ax.minorticks_off()
        axes[0].set_xlim(0.85, most * 1.6)
        ends = [(float(d.at[-1]), float(d.value[-1])) for _, d in curves]
        place_labels(axes[0], ends, {t.method.id: t.method.label for t in found})
    return figure


def _line(
    ax: Any, tuning: Tuning, drawn: Band, at: np.ndarray, looks: Mapping[str, Look]
) -> None:  # fmt: skip
    look, tag = looks[tuning.method.id], f"m:{tuning.method.id}:"
    ax.fill_between(at, drawn.low, drawn.high, color=look.colour, alpha=0.14, lw=0, gid=tag)
    ax.plot(at, drawn.value, color=look.colour, gid=tag)
    ends = [0, len(at) - 1]
    ax.plot(at[ends], drawn.value[ends], look.marker, color=look.colour, ms=7, mec=PAPER,
            ls="none", gid=f"{tag}point")  # fmt: skip


def _few_ticks(ax: Any, values: Sequence[float]) -> None:
    """At most four ticks, at ends that people can read: 2 P, 40 G."""
    low, high = min(values), max(values)
    count = 4 if high / low > 8 else 3
    ticks = [float(f"{x:.1g}") for x in np.geomspace(low, high, count)]
    shown = sorted({t for t in ticks if low * 0.7 <= t <= high * 1.4})
    ax.set_xticks(shown, [amount(t) for t in shown])


def sensitivity(found: Sequence[Tuning], looks: Mapping[str, Look]) -> Figure | None:
    """Draw every trial's score over its learning rate, one panel per method.

    Rings are the chosen trials; a cross at the lower edge is a trial that diverged or failed. The
    other settings vary along, so the spread at one learning rate is theirs and the seeds'. None
    where no learning rate was searched.
    """
    shown = [t for t in found if all(rate_of(trial) > 0 for trial in t.all)]
    if not shown:
        return None
    lines = math.ceil(len(shown) / COLUMNS)
    columns = min(COLUMNS, len(shown))
    with rc_context(RC):
        figure = Figure(figsize=(6.3, 0.5 + 1.7 * lines), layout="constrained", dpi=72)
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for number, ax in enumerate(axes.flat):
            if number >= len(shown):
                ax.set_axis_off()
                continue
            _panel(ax, shown[number], looks)
        for row in axes:
            row[0].set_ylabel(f"validation {shown[0].metric}")
        for ax in axes[-1]:
            ax.set_xlabel("learning rate")
    return figure


def _panel(ax: Any, tuning: Tuning, looks: Mapping[str, Look]) -> None:
    look, tag = looks[tuning.method.id], f"m:{tuning.method.id}:"
    done = [t for t in tuning.all if t.status == "done"]
    for trial in done:
        ax.plot(rate_of(trial), trial.value, look.marker, ms=4.5, color=look.colour, alpha=0.65,
                mew=0, gid=f"{tag}s{trial.seed}")  # fmt: skip
    for seed, trial in tuning.chosen.items():
        ax.plot(rate_of(trial), trial.value, "o", ms=10, mfc="none", mec=look.colour, mew=1.3,
                gid=f"{tag}s{seed}")  # fmt: skip
    for trial in tuning.all:
        if trial.status != "done":
            ax.plot(rate_of(trial), 0.03, "x", ms=6, color=look.colour, mew=1.4, clip_on=False,
                    transform=ax.get_xaxis_transform(), gid=f"{tag}s{trial.seed}")  # fmt: skip
    ax.set_xscale("log")
    ax.set_title(tuning.method.label)
    ax.minorticks_off()


def rate_of(trial: Trial) -> float:
    """Learning rate of a trial; NaN where it was not searched."""
    value = trial.settings.get(RATE)
    return float(value) if isinstance(value, int | float) else math.nan
