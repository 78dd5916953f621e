"""From runs to signs of overfitting: courses of held-out measures, gaps, and verbatim copying."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alignlab.report import statistics as st
from alignlab.report.analysis import Analysis
from alignlab.report.benchmarks.numbers import Values, values_of
from alignlab.report.folders import RunFolder, number
from alignlab.report.methods import Method
from alignlab.report.statistics import Interval
from alignlab.report.table import shared_stages

MEASURES = {"nll": True, "loss": True, "accuracy": False}  # whether less is better
MOST = 16  # shared stages, and methods from the best on, whose trainings are read
HUMAN, HELD_OUT, LONGEST = "_human", "_held_out", "longest_copy"


@dataclass(frozen=True)
class Course:
    """One measure of one training: held-out rows, and trained-on ones where they were measured."""

    run: RunFolder
    metric: str
    steps: np.ndarray  # (E,) of the evaluations
    held_out: np.ndarray  # (E,)
    train: np.ndarray  # (E,), NaN where nothing was measured
    end: float  # held-out rows, of the weights that were kept; NaN if unknown
    end_train: float

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return MEASURES[self.metric]

    @cached_property
    def best(self) -> int | None:
        """Place of the best evaluation, the first of equals."""
        if not len(self.held_out):
            return None
        return int(np.argmin(self.held_out) if self.lower else np.argmax(self.held_out))

    @property
    def since(self) -> int:
        """Evaluations after the best one."""
        return 0 if self.best is None else len(self.steps) - 1 - self.best

    @property
    def restored(self) -> bool:
        """Whether early stopping brought weights back."""
        return self.run.number("best_step") is not None

    @property
    def worse(self) -> float:
        """By which share of its best value a loss has risen to the last evaluation."""
        if self.best is None or not self.lower or not self.held_out[self.best]:
            return 0.0
        best = float(self.held_out[self.best])
        return (float(self.held_out[-1]) - best) / abs(best)

    @property
    def gap(self) -> float:
        """How much better trained-on rows fare than held-out ones; NaN if unknown."""
        gap = self.end - self.end_train
        return gap if self.lower else -gap


def courses(analysis: Analysis) -> dict[str, list[Course]]:
    """Courses of the stages that a study shares and of its best methods, by a title for each."""
    shared = list(shared_stages(analysis.study).items())[:MOST]
    plans = {title: list(runs) for title, runs in shared}
    for score in analysis.trained[:MOST]:
        runs = [run for run in score.method.policies.values() if run is not None]
        plans.setdefault(score.method.label, []).extend(runs)
    found: dict[str, list[Course]] = {}
    for title, runs in plans.items():
        own = [c for run in {r.name: r for r in runs}.values() if run.done for c in _courses(run)]
        if own:
            found[title] = own
    return found


def _courses(run: RunFolder) -> Iterator[Course]:
    rows = [row for row in run.lines("metrics.jsonl") if row.get("split") == "eval"]
    summary = run.record.get("summary") or {}
    for metric in MEASURES:
        lines = [row for row in rows if math.isfinite(number(row.get(metric)))]
        course = Course(
            run,
            metric,
            np.array([number(row.get("step")) for row in lines]),
            np.array([number(row[metric]) for row in lines]),
            np.array([number(row.get(f"train_{metric}")) for row in lines]),
            number(summary.get(f"validation_{metric}", summary.get(metric))),
            number(summary.get(f"train_{metric}")),
        )
        if len(lines) > 1 or math.isfinite(course.gap):
            yield course


@dataclass(frozen=True)
class Copied:
    """One measure of copying of one method, and what it is compared with."""

    method: Method
    task: str
    metric: str
    value: Interval
    other: Interval  # of human texts, or of rows that were not trained on
    excess: Interval | None  # over human texts, on the same prompts; None for recitation

    @property
    def surely(self) -> bool:
        """Whether there is more of it than chance explains."""
        if self.excess is not None:
            return self.excess.low > 0
        return self.value.low > self.other.high


def copied(analysis: Analysis) -> list[Copied]:
    """What every benchmarked method copies, the longest n-grams last."""
    found = []
    for score in analysis.scores:
        values = values_of(score.method.benchmarks)
        tasks = [key.rpartition("/")[0] for key in values if key.endswith(f"/{LONGEST}")]
        for task in tasks:
            names = [key.rpartition("/")[2] for key in values if key.startswith(f"{task}/")]
            for name in sorted(names, key=_length):
                endings = [end for end in (HUMAN, HELD_OUT) if f"{name}{end}" in names]
                found += [_compared(score.method, task, name, end, values) for end in endings]
    return found


def _length(name: str) -> tuple[int, int]:
    """n-grams by their length, then the longest run, then recitation."""
    tail = name.rpartition("_")[2]
    return (0, int(tail)) if tail.isdigit() else (1 if name == LONGEST else 2, 0)


def _compared(method: Method, task: str, name: str, ending: str, values: Values) -> Copied:
    mine, other = values[f"{task}/{name}"], values[f"{task}/{name}{ending}"]
    excess = None
    if ending == HUMAN and set(mine) & set(other):
        excess = st.difference_of_cells(st.paired_cells(mine, other)).interval
    return Copied(method, task, name, _mean(mine), _mean(other), excess)


def _mean(values: Mapping[tuple[int, str], float]) -> Interval:
    return st.hierarchical_bootstrap(st.paired_cells(values, dict.fromkeys(values, 0.0)))


def seeds_of(found: Sequence[Course]) -> str:
    """Seeds of some courses, for a sentence."""
    seeds = sorted({str(course.run.record.get("seed", "?")) for course in found})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
