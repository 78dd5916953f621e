"""The numbers of the README, and its figures, from the rows of the parts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import proxies
from matplotlib.figure import Figure

from alignlab.report.statistics import bootstrap_interval

Rows = Sequence[Mapping[str, Any]]
COLOURS = ("#1f4e79", "#c8553d", "#588b8b", "#8d6a9f", "#d4a017")


def interval(values: Any) -> list[float]:
    """Mean over seeds and its 95 % bootstrap interval: [value, low, high]."""
    found = bootstrap_interval(np.asarray(values))
    return [round(x, 4) for x in (found.value, found.low, found.high)]


def curves_of(rows: Rows, arms: str, count: int, reward: str, what: str) -> np.ndarray:
    """Curves of all seeds (S, points)."""
    wanted = (arms, count, reward)
    chosen = [r for r in rows if (r["arms"], r["comparisons"], r["reward"]) == wanted]
    return np.array([r[what] for r in chosen])


def summary(parts: Mapping[str, Rows]) -> dict[str, Any]:
    """Everything the README's tables say."""
    out: dict[str, Any] = {"optima": {}, "certain": {}, "best_of_n": {}, "overoptimisation": {}}
    for method in dict.fromkeys(r["method"] for r in parts["optima"]):
        mine = [r for r in parts["optima"] if r["method"] == method]
        out["optima"][method] = {
            "largest distance from the tilted reference": max(r["from_tilted"] for r in mine),
            "largest distance from the reversed one": max(r["from_reversed"] for r in mine),
            "smallest distance from the tilted reference": min(r["from_tilted"] for r in mine),
            "reward lost at equal KL": interval(
                [r["reward_at_equal_kl"] - r["reward"] for r in mine]
            ),
        }
    for r in parts["certain"]:
        out["certain"][f"{r['method']} {r['strength']}"] = {
            "limit": r["limit"],
            "minimum of the loss": r["minimum"],
            "after 20,000 steps": r["curve"][-1][1],
        }
    for arms in sorted({r["arms"] for r in parts["best_of_n"]}):
        mine = [r for r in parts["best_of_n"] if r["arms"] == arms]
        gaps = [r["formula"] - r["kl"] for r in mine]
        out["best_of_n"][str(arms)] = {"smallest gap": min(gaps), "largest gap": max(gaps)}
    rows = parts["overoptimisation"]
    for arms, count in itertools.product(proxies.WORLDS, proxies.COMPARISONS):
        single = curves_of(rows, arms, count, "single", "gold")
        for reward in proxies.COMBINE:
            gold = curves_of(rows, arms, count, reward, "gold")
            peak = int(gold.mean(axis=0).argmax())
            proxy = curves_of(rows, arms, count, reward, "proxy")[:, -1]
            out["overoptimisation"][f"{arms}, {count}, {reward}"] = {
                "√KL of the mean's peak": round(float(proxies.ROOTS[peak]), 2),
                "gold there": interval(gold[:, peak]),
                "gold at the end": interval(gold[:, -1]),
                "proxy at the end": interval(proxy),
                "fall": interval(gold[:, peak] - gold[:, -1]),
                "end minus single's": interval(gold[:, -1] - single[:, -1]),
                "own peak minus single's": interval(gold.max(axis=1) - single.max(axis=1)),
            }
    return out


def draw(parts: Mapping[str, Rows], folder: Path) -> None:
    """Write closed_forms.png and overoptimisation.png."""
    _closed_forms(parts).savefig(folder / "closed_forms.png", dpi=100, bbox_inches="tight")
    _overoptimisation(parts["overoptimisation"]).savefig(
        folder / "overoptimisation.png", dpi=100, bbox_inches="tight"
    )


def _closed_forms(parts: Mapping[str, Rows]) -> Figure:
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    methods = dict.fromkeys(r["method"] for r in parts["optima"])
    for colour, method in zip(COLOURS, methods, strict=False):
        mine = [r for r in parts["optima"] if r["method"] == method]
        lost = [r["reward_at_equal_kl"] - r["reward"] for r in mine]
        left.plot([r["kl"] for r in mine], lost, "o", ms=3, color=colour, label=method)
    left.set(xlabel="KL to the reference (nats)", ylabel="reward below the best at that KL")
    left.legend(fontsize=7)
    for r in parts["certain"]:
        colour = COLOURS[0 if r["method"] == "DPO" else 1]
        steps, values = zip(*r["curve"], strict=True)
        middle.plot(steps, values, color=colour, lw=1.2)
        if r["method"] == "IPO":
            middle.axhline(r["limit"], color=colour, lw=0.6, ls=":")
            place = (3e3, r["limit"] - 0.022)
            middle.annotate(f"τ = {r['strength']}", place, fontsize=6.5, color=colour)
    middle.plot([], [], color=COLOURS[0], label="DPO, β = 0.1, 0.5, 1")
    middle.plot([], [], color=COLOURS[1], label="IPO, dotted: σ(1/2τ)")
    middle.set(xscale="log", xlabel="gradient steps", ylabel="π(preferred)")
    middle.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0.0, 0.3))
    for colour, arms in zip(COLOURS, sorted({r["arms"] for r in parts["best_of_n"]}), strict=True):
        mine = [r for r in parts["best_of_n"] if r["arms"] == arms]
        xs = [r["n"] for r in mine]
        right.plot(xs, [r["kl"] for r in mine], "o-", ms=3, lw=1, color=colour, label=f"{arms:,}")
    right.plot(xs, [r["formula"] for r in mine], "k--", lw=1, label="log n − (n−1)/n")
    right.set(xscale="log", xlabel="n", ylabel="KL of best of n (nats)")
    right.legend(fontsize=7, title="equally likely arms", title_fontsize=7)
    return figure


def _overoptimisation(rows: Rows) -> Figure:
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    grid = figure.subplots(len(proxies.WORLDS), len(proxies.COMPARISONS), sharex=True, sharey=True)
    for axes, arms in zip(grid, proxies.WORLDS, strict=True):
        for axis, count in zip(axes, proxies.COMPARISONS, strict=True):
            for colour, reward in zip(COLOURS, proxies.COMBINE, strict=False):
                gold = curves_of(rows, arms, count, reward, "gold")
                mean = gold.mean(axis=0)
                band = 1.96 * gold.std(axis=0, ddof=1) / len(gold) ** 0.5
                axis.plot(proxies.ROOTS, mean, color=colour, lw=1.4, label=f"gold, {reward}")
                low, high = mean - band, mean + band
                axis.fill_between(proxies.ROOTS, low, high, color=colour, alpha=0.15, lw=0)
            proxy = curves_of(rows, arms, count, "single", "proxy").mean(axis=0)
            axis.plot(proxies.ROOTS, proxy, "k--", lw=1, label="proxy, single")
            axis.set_title(f"{count:,} comparisons, best arms {arms}", fontsize=8.5)
    for axis in grid[-1]:
        axis.set_xlabel("√KL (√nats)")
    for axes in grid:
        axes[0].set_ylabel("expected reward")
    grid[0, 0].legend(fontsize=6.5)
    return figure
