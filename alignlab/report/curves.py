"""Training curves of a stage over its seeds, from ``metrics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignlab.report.folders import RunFolder, number

SIGNALS = (
    "reward",
    "score",
    "margin",
    "accuracy",
    "kl",
)  # the second panel is the first that was logged
Line = tuple[np.ndarray, np.ndarray]  # steps, values


@dataclass(frozen=True)
class Curves:
    """Logged series of one stage: panel name → seed → line."""

    title: str
    panels: Mapping[str, Mapping[int, Line]]
    validation: Mapping[str, Mapping[int, Line]]

    def band(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Steps, mean, lowest and highest value over seeds, at the steps of the longest seed."""
        lines = list(self.panels[name].values())
        steps = max(lines, key=lambda line: len(line[0]))[0]
        end = min(line[0][-1] for line in lines)
        steps = steps[steps <= end]
        table = np.stack([np.interp(steps, x, y) for x, y in lines])
        return steps, table.mean(axis=0), table.min(axis=0), table.max(axis=0)


def read_curves(title: str, runs: Mapping[int, RunFolder]) -> Curves | None:
    """Read loss and one reward-like signal of ``runs`` (seed → run); None without any."""
    train: dict[str, dict[int, Line]] = {}
    validation: dict[str, dict[int, Line]] = {}
    for seed, run in sorted(runs.items()):
        rows = run.lines("metrics.jsonl")
        for split, into in (("train", train), ("eval", validation), ("validation", validation)):
            part = [r for r in rows if str(r.get("split", "train")) == split]
            for key in {k for r in part for k in r} - {"step", "time", "split"}:
                line = _line(part, key)
                if line is not None:
                    into.setdefault(key, {})[seed] = line
    kinds = {run.kind for run in runs.values()}
    names = _panel_names(train, ("accuracy", *SIGNALS) if kinds == {"reward"} else SIGNALS)
    if not names:
        return None
    return Curves(
        title,
        {shown: train[key] for shown, key in names.items()},
        {shown: validation[key] for shown, key in names.items() if key in validation},
    )


def _line(rows: Iterable[Mapping[str, Any]], key: str) -> Line | None:
    pairs = [(number(r.get("step")), number(r.get(key))) for r in rows]
    kept = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    if not kept:
        return None
    steps, values = zip(*kept, strict=True)
    return np.array(steps), np.array(values)


def _panel_names(series: Mapping[str, object], signals: Sequence[str]) -> dict[str, str]:
    """Shown name → logged key for the panels: loss, then the first signal that was logged."""
    found: dict[str, str] = {}
    for wanted in (("loss", "policy_loss", "nll"), signals):
        for name in wanted:
            keys = sorted(k for k in series if name in (k, k.split("/")[0], k.rsplit("/", 1)[-1]))
            key = name if name in keys else next(iter(keys), None)
            if key is not None and key not in found.values():
                found[key.replace("_", " ")] = key
                break
    return found
