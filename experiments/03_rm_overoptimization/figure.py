"""Best of n, and RL on one proxy and on ensembles: gold and proxy over √KL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

LOOKS = {
    "single": ("#1f4e79", "one reward model"),
    "penalised": ("#7a7a7a", "one, β = 0.3"),
    "mean": ("#c8553d", "mean of 4"),
    "min": ("#588b8b", "min of 4"),
    "uwo": ("#8d6a9f", "mean − ½ variance of 4"),
    "gold": ("#d4a017", "gold itself"),
}


def draw(seeds: Mapping[int, Any], summary: Mapping[str, Any], file: Path) -> None:
    """Write the figure: best of n on the left, RL gold in the middle, RL proxy on the right."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for proxy in ("gold", "single", "mean", "min", "uwo"):
        colour, label = LOOKS[proxy]
        curves = [[r for r in s["best_of_n"] if r["proxy"] == proxy] for s in seeds.values()]
        gold = np.array([[r["gold"] for r in c] for c in curves])
        roots = [r["kl"] ** 0.5 for r in curves[0]]
        left.plot(roots, gold.mean(axis=0), "o-", ms=3, lw=1.3, color=colour, label=label)
        left.fill_between(roots, gold.min(axis=0), gold.max(axis=0), color=colour, alpha=0.12, lw=0)
    left.set(title="best of n (exact), bands: seeds", xlabel="√KL (√nats, bound)", ylabel="gold")
    left.legend(fontsize=6.5)
    for name, (colour, label) in LOOKS.items():
        if name not in summary["curves"]:
            continue
        for axis, what in ((middle, "gold"), (right, "proxy")):
            for seed in seeds.values():
                curve = seed["training"][name]
                axis.plot(curve["root_kl"], curve[what], ".", ms=1.6, color=colour, alpha=0.25)
            mean = summary["curves"][name]
            axis.plot(mean["root_kl"], mean[what], lw=1.5, color=colour, label=label)
    middle.set(title="RL: gold on the rollouts", xlabel="√KL (√nats)", ylabel="gold")
    right.set(title="RL: the reward that is trained on", xlabel="√KL (√nats)", ylabel="proxy")
    middle.legend(fontsize=6.5)
    for axis in (left, middle, right):
        axis.title.set_fontsize(9)
    figure.savefig(file, dpi=100, bbox_inches="tight")
