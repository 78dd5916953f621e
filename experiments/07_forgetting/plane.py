"""The forgetting–gain plane: training with a hold on the left, merging on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PLAIN = {"tuned": "plain", "tuned_b": "plain, lower rate", "stopped": "stopped earlier"}
TRAINED = {
    **PLAIN,
    "average": "moving average",
    "rehearsal": "rehearsal",
    "l2sp": "L2-SP",
    "ewc": "EWC",
    "forward": "forward KL",
    "reverse": "reverse KL",
    "js": "Jensen–Shannon",
    "replay": "forward KL, old rows",
    "on_policy": "reverse KL, own samples",
    "ppo": "PPO, PPO-ptx",
}
MERGED = {
    **PLAIN,
    "linear": "linear with start",
    "slerp": "SLERP with start",
    "slerp_deltas": "SLERP of two changes",
    "arithmetic": "task arithmetic",
    "ties": "TIES",
    "dare": "DARE",
    "dare_ties": "DARE + TIES",
}
COLOURS = (
    "#1f4e79", "#c8553d", "#588b8b", "#8d6a9f", "#d4a017", "#3a7d44", "#b5507a", "#5d8aa8",
    "#a0522d", "#4b5d67", "#7cb518",
)  # fmt: skip
FARTHEST = 1.1  # times the largest forgetting of what must be on the figure
MARKS = "osD^vP*Xhp<"


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write the figure; the start lies at (0, 0)."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, families, title in (
        (axes[0], TRAINED, "trained with a hold on the start"),
        (axes[1], MERGED, "merged after training"),
    ):
        coloured = 0
        for family, label in families.items():
            own = sorted((r for r in rows if r["method"] == family), key=_forgotten)
            if not own:
                continue
            grey = family in PLAIN
            colour = "#9a9a9a" if grey else COLOURS[coloured % len(COLOURS)]
            mark = "o" if grey else MARKS[coloured % len(MARKS)]
            coloured += not grey
            x, y = ([r[name][0] for r in own] for name in ("forgotten", "gained"))
            axis.plot(x, y, marker=mark, ms=5, lw=1.1, color=colour, label=label)
            for row in own:
                _, low, high = row["gained"]
                if low is not None:
                    axis.plot(
                        [row["forgotten"][0]] * 2, [low, high], lw=0.7, color=colour, alpha=0.5
                    )
        axis.plot(0, 0, "k+", ms=9)
        axis.set_xlim(right=FARTHEST * max(_forgotten(row) for row in rows if _in_view(row)))
        axis.set_xlabel("forgotten: rise of the loss on human text, nats per token")
        axis.set_title(title, fontsize=9)
        axis.legend(fontsize=6.5, loc="lower right")
    axes[0].set_ylabel("gained: VADER's sentiment")
    figure.savefig(file, dpi=100, bbox_inches="tight")


def _in_view(row: Mapping[str, Any]) -> bool:
    """Whether a point is on the figure: what forgets a multiple of all others would squeeze it."""
    return row["method"] not in ("dare", "dare_ties")


def _forgotten(row: Mapping[str, Any]) -> float:
    return float(row["forgotten"][0])
