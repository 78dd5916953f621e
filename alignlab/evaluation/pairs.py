"""Preference pairs that a reward model orders, and what its orders say about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from alignlab.annotations import Range
from alignlab.data.group import PromptGroup, TokenGroup
from alignlab.errors import DataError, did_you_mean
from alignlab.evaluation.calibration import (
    brier,
    expected_calibration_error,
    log_loss,
    reliability,
    sigmoid,
)
from alignlab.evaluation.items import opened
from alignlab.spec import Spec

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """A set of judged completions; every ordered pair of a prompt is one question."""

    data: Spec
    split: str
    items: Annotated[int, Range(min=1)] | None
    subset: str | None  # field of the rows that names the subset; null = one set

    def load(self, name: str) -> list[PromptGroup]:
        """Return the groups with at least one ordered pair.

        Raises:
            DataError: there is none, or a row has no ``subset`` field.
        """
        source, split = opened(self.data, self.split)
        groups = [g for g in source.load(split) if g.verdict.pairs()][: self.items]
        if not groups:
            raise DataError(
                f"{name}: no row of the split '{self.split}' has a better and a worse completion."
            )
        for group in groups:
            if self.subset is not None and self.subset not in group.meta:
                raise DataError(
                    f"{name}: no field '{self.subset}' in row {group.meta.get('place', group.id)}."
                    + did_you_mean(self.subset, group.meta)
                )
        return groups

    def subset_of(self, meta: Mapping[str, Any]) -> str:
        """Name of the subset that a row is in; "" where there is one only."""
        return "" if self.subset is None else str(meta[self.subset])


def rows_of(
    task: str,
    groups: Sequence[TokenGroup],
    scores: Sequence[float],
    gain: float,
    subsets: Sequence[str],
) -> list[Row]:
    """One row per ordered pair.

    Args:
        groups: G token groups with verdicts.
        scores: (C,) scores of their completions, in order.
        gain: what the reward model's scores were multiplied by after training; margin / gain is the
            Bradley–Terry logit, and ``probability`` = σ(margin / gain).
        subsets: (G,) names.
    """
    rows, first = [], 0
    for number, (group, subset) in enumerate(zip(groups, subsets, strict=True)):
        for better, worse in group.verdict.pairs():
            chosen, rejected = scores[first + better], scores[first + worse]
            margin = float(chosen - rejected)
            row = {
                "task": task,
                "metric": "accuracy",
                "item": group.id or str(number),
                "value": 0.5 if margin == 0 else float(margin > 0),
                "margin": margin,
                "probability": float(sigmoid(np.asarray(margin / gain))),
                "chosen_score": float(chosen),
                "rejected_score": float(rejected),
                "chosen_tokens": len(group.completions[better]),
                "rejected_tokens": len(group.completions[worse]),
            }
            rows.append(row | ({"subset": subset} if subset else {}))
        first += len(group.completions)
    return rows


def summarise(rows: Sequence[Row], gain: float) -> dict[str, float]:
    """Accuracy by task, by subset and by which completion is longer; calibration; length bias.

    ``accuracy_macro`` is the mean over subsets, each counted once whatever its size.
    ``length_correlation`` is Spearman's between the difference of scores and the difference of
    lengths over the pairs: above 0 the reward model likes length.
    """
    by_task: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
    found: dict[str, float] = {}
    for task, mine in by_task.items():
        for name, value in _numbers(mine, gain).items():
            found[f"{task}/{name}"] = value
        subsets: defaultdict[str, list[Row]] = defaultdict(list)
        for row in mine:
            if "subset" in row:
                subsets[row["subset"]].append(row)
        for subset, part in sorted(subsets.items()):
            found[f"{task}:{subset}/accuracy"] = _accuracy(part)
        if subsets:
            found[f"{task}/accuracy_macro"] = float(
                np.mean([_accuracy(p) for p in subsets.values()])
            )
    return found


def _numbers(rows: Sequence[Row], gain: float) -> dict[str, float]:
    chances = [row["probability"] for row in rows]
    longer = [r for r in rows if r["chosen_tokens"] > r["rejected_tokens"]]
    shorter = [r for r in rows if r["chosen_tokens"] < r["rejected_tokens"]]
    found = {
        "accuracy": _accuracy(rows),
        "pairs": float(len(rows)),
        "ece": expected_calibration_error(reliability(chances)),
        "brier": brier(chances),
        "log_loss": log_loss([row["margin"] / gain for row in rows]),
        "chosen_longer": len(longer) / len(rows),
    }
    for name, part in (("accuracy_longer", longer), ("accuracy_shorter", shorter)):
        if part:
            found[name] = _accuracy(part)
    lengths = [r["chosen_tokens"] - r["rejected_tokens"] for r in rows]
    correlation = spearman([r["margin"] for r in rows], lengths)
    if correlation is not None:
        found["length_correlation"] = correlation
    return found


def _accuracy(rows: Sequence[Row]) -> float:
    return float(np.mean([row["value"] for row in rows]))


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one side never changes."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = ((last - counts + 1 + last) / 2)[inverse]
    return ranks
