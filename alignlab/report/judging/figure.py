"""The figure of a bench: win rate of every method, raw and at equal length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from alignlab.report.figures import MOST, RC
from alignlab.report.judging.numbers import Bench, Judged
from alignlab.report.statistics import Interval
from alignlab.report.style import INK, MUTED, PAPER, Look

APART = 0.17  # of a row: raw above, length-controlled below


def win_rates(bench: Bench, looks: Mapping[str, Look]) -> Figure | None:
    """Draw win rates with 95 % intervals: filled as judged, hollow at equal length.

    None where nobody was judged against somebody else.
    """
    shown = [one for one in bench.judged if not one.is_opponent][:MOST][::-1]
    if not shown:
        return None
    with rc_context(RC):
        figure = Figure(figsize=(6.3, 1.25 + 0.42 * len(shown)), layout="constrained", dpi=72)
        ax = figure.subplots()
        ax.axvline(0.5, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
        for row, one in enumerate(shown):
            look, tag = looks[one.method.id], f"m:{one.method.id}:"
            _dot(ax, row + APART, one.win, look, tag, hollow=False)
            _dot(ax, row - APART, one.controlled, look, tag, hollow=True)
            _seeds(ax, row + APART, one, look, tag)
        ax.set_yticks(range(len(shown)), [one.method.label for one in shown], color=INK)
        ax.set_ylim(-0.6, len(shown) - 0.4)
        ends = [end for one in shown for i in (one.win, one.controlled) for end in (i.low, i.high)]
        ax.set_xlim(max(-0.02, min(0.4, *ends) - 0.03), min(1.02, max(0.6, *ends) + 0.03))
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_xlabel(f"win rate against {bench.opponent}, ties half")
        figure.legend(
            handles=[_mark("as judged", hollow=False), _mark("at equal length", hollow=True)],
            loc="outside upper left", ncols=2, frameon=False, fontsize=9, handletextpad=0.3,
        )  # fmt: skip
    return figure


def _dot(ax: Any, y: float, found: Interval, look: Look, tag: str, *, hollow: bool) -> None:
    ax.plot([found.low, found.high], [y, y], color=look.colour, lw=1.2 if hollow else 2,
            zorder=2, gid=tag)  # fmt: skip
    thin = look.marker in "*PX"
    edge = look.colour if hollow or thin else PAPER
    ax.plot(
        found.value, y, look.marker, ms=9 if thin else 7, mec=edge, zorder=3,
        mfc=PAPER if hollow else look.colour, color=look.colour,
        gid=tag if hollow else f"{tag}point",
    )  # fmt: skip


def _seeds(ax: Any, y: float, one: Judged, look: Look, tag: str) -> None:
    """Small dots: the win rate of every training seed."""
    if len(one.runs) < 2:
        return
    for run in one.runs.values():
        rate = (run.record.get("summary") or {}).get("win_rate")
        if rate is not None:
            ax.plot(rate, y, ".", ms=4, color=look.colour, alpha=0.55, gid=tag)


def _mark(text: str, *, hollow: bool) -> Line2D:
    return Line2D(
        [], [], marker="o", ls="-", lw=1.2 if hollow else 2, ms=6, color=MUTED, label=text,
        mfc=PAPER if hollow else MUTED, mec=MUTED,
    )  # fmt: skip
