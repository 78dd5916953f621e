"""From the select runs of a study to numbers: expected-max curves, rankings, the winner's curse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from alignlab.report.analysis import Analysis, Score
from alignlab.report.folders import RunFolder, number
from alignlab.report.statistics import (
    DRAWS,
    Array,
    Band,
    Interval,
    band,
    expected_max,
    summarise,
)
from alignlab.report.table import Method

STOPS = (1, 4, 16, 64)  # numbers of trials at which methods are ranked


@dataclass(frozen=True)
class Trial:
    """One setting of one method in one training seed, as the select run recorded it."""

    seed: int
    number: int
    run: str
    evaluation: str
    settings: Mapping[str, Any]
    value: float  # NaN unless done
    status: str
    tokens: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """The search of one method: its trials by training seed, each in the order of the search.

    ``higher`` says that larger values of the metric are better. A trial that diverged or failed
    has no value, and counts as the worst trial of the study that has one: it was paid for.
    """

    method: Method
    metric: str
    higher: bool
    trials: Mapping[int, tuple[Trial, ...]]
    chosen: Mapping[int, Trial]
    tested: Mapping[int, float]  # the metric of the chosen trial on test prompts
    worst: float

    @property
    def count(self) -> int:
        """Trials that every seed had."""
        return min(len(trials) for trials in self.trials.values())

    @property
    def all(self) -> list[Trial]:
        """Trials of all seeds."""
        return [trial for trials in self.trials.values() for trial in trials]

    @cached_property
    def table(self) -> Array:
        """Values (seeds, trials), those of trials without one replaced by the worst."""
        rows = [[t.value for t in trials[: self.count]] for trials in self.trials.values()]
        values = np.asarray(rows, dtype=np.float64)
        return np.where(np.isnan(values), self.worst, values)

    def best_of(self, k: int) -> float:
        """Expected score of the best of ``k`` trials, mean over seeds."""
        sign = 1.0 if self.higher else -1.0
        return sign * float(np.mean([expected_max(sign * row, k) for row in self.table]))

    def share(self, status: str) -> float:
        """Share of the trials with a status: done, diverged or failed."""
        return sum(t.status == status for t in self.all) / len(self.all)

    def mean(self, cost: str) -> float:
        """Mean cost of a trial and its evaluation: tokens, flops or seconds; NaN if unknown."""
        known = [x for t in self.all if math.isfinite(x := getattr(t, cost))]
        return float(np.mean(known)) if known else math.nan

    @property
    def configured(self) -> float:
        """Mean score of the first trial, which has the settings that the search began with."""
        return float(np.mean(self.table[:, 0]))

    @cached_property
    def gap(self) -> Interval | None:
        """How much the chosen trial's validation score is above its test score, over seeds.

        Positive with ``higher`` is the winner's curse: the best of many noisy scores is too good.
        The prompts of the two differ, so a part that all methods share is due to them.
        """
        pairs = [(self.chosen[s].value, test) for s, test in self.tested.items()]
        gaps = np.asarray([valid - test for valid, test in pairs if math.isfinite(test)])
        if gaps.size == 0:
            return None
        value = float(gaps.mean())
        if gaps.size == 1:  # nothing says how far another seed would be from it
            return Interval(value, value, value, 0.0)
        picks = np.random.default_rng(0).integers(gaps.size, size=(DRAWS, gaps.size))
        return summarise(value, gaps[picks].mean(axis=1), seeds=gaps.size)


def tunings(analysis: Analysis) -> list[Tuning]:
    """Searches of a study, in the order of its ranking; only those of the first one's metric."""
    searched = [s for s in analysis.scores if s.method.selection]
    if not searched:
        return []
    record = next(iter(searched[0].method.selection.values())).record
    metric, higher = str(record.get("metric")), record.get("direction") != "min"
    of = [s for s in searched if _metrics(s.method) == {metric}]
    trials = {
        s.method.id: {
            seed: trials_of(run, seed) for seed, run in sorted(s.method.selection.items())
        }
        for s in of
    }
    values = [
        t.value
        for seeds in trials.values()
        for listed in seeds.values()
        for t in listed
        if math.isfinite(t.value)
    ]
    worst = (min if higher else max)(values)
    return [
        Tuning(
            method=s.method,
            metric=metric,
            higher=higher,
            trials=trials[s.method.id],
            chosen={
                seed: next(t for t in trials[s.method.id][seed] if t.run == run.record["chosen"])
                for seed, run in s.method.selection.items()
            },
            tested={seed: _tested(s, seed, metric) for seed in s.method.selection},
            worst=worst,
        )
        for s in of
    ]


def _metrics(method: Method) -> set[str]:
    return {str(run.record.get("metric")) for run in method.selection.values()}


def _tested(score: Score, seed: int, metric: str) -> float:
    if metric in score.per_seed:
        return score.per_seed[metric].get(seed, math.nan)
    return number((score.method.evaluations[seed].record.get("summary") or {}).get(metric))


def trials_of(run: RunFolder, seed: int) -> tuple[Trial, ...]:
    """Trials that a select run recorded, in their order."""
    return tuple(
        Trial(
            seed=seed,
            number=i,
            run=str(item.get("run")),
            evaluation=str(item.get("evaluation")),
            settings=item.get("settings") or {},
            value=number(item.get("value")),
            status=str(item.get("status")),
            tokens=number(item.get("tokens")),
            flops=number(item.get("flops")),
            seconds=number(item.get("seconds")),
        )
        for i, item in enumerate(run.record.get("trials") or (), start=1)
    )


def curve(tuning: Tuning, *, draws: int = DRAWS, seed: int = 0) -> Band:
    """`Tuning.best_of` for k = 1 … N with a 95 % band.

    A draw resamples training seeds, and settings: the same ones for all seeds, since the seeds
    share the points of the search. Near k = N the band is too narrow, because no resample knows a
    better setting than the best one tried.
    """
    sign = 1.0 if tuning.higher else -1.0
    table = sign * tuning.table
    seeds, count = table.shape
    weights = np.array([order_weights(count, k) for k in range(1, count + 1)])  # (k, rank)
    generator = np.random.default_rng(seed)
    rows = generator.integers(seeds, size=(draws, seeds))
    columns = generator.integers(count, size=(draws, count))
    drawn = table[rows[:, :, None], columns[:, None, :]]  # (draws, seeds, trials)
    found = np.sort(drawn, axis=2).mean(axis=1) @ weights.T
    value = np.sort(table, axis=1).mean(axis=0) @ weights.T
    return band(np.arange(1, count + 1), sign * value, sign * found)


def order_weights(count: int, k: int) -> Array:
    """Weight of each order statistic in the expected maximum of k of ``count`` without repetition.

    C(j−1, k−1) / C(N, k) for the j-th smallest (Tang et al. 2020, 2006.09011).
    """
    weights = [math.comb(j - 1, k - 1) / math.comb(count, k) for j in range(1, count + 1)]
    return np.asarray(weights, dtype=np.float64)


def stops(found: Sequence[Tuning]) -> list[int]:
    """Numbers of trials to rank at: 1, 4, 16 … as far as every method goes, and the last."""
    most = min(tuning.count for tuning in found)
    return sorted({k for k in STOPS if k <= most} | {most})


def ranking(found: Sequence[Tuning], k: int) -> list[Tuning]:
    """Methods by what the best of ``k`` trials is expected to score, best first."""
    return sorted(found, key=lambda t: -t.best_of(k) if t.higher else t.best_of(k))


@dataclass(frozen=True)
class Flip:
    """Two methods whose order depends on how much they are tuned."""

    ahead: Tuning  # with one trial
    behind: Tuning
    at: int  # from this number of trials on, ``behind`` is ahead


def flips(found: Sequence[Tuning]) -> list[Flip]:
    """Pairs of methods that are ordered otherwise with one trial and with all of them."""
    most = min(tuning.count for tuning in found)
    listed = []
    for i, a in enumerate(found):
        for b in found[i + 1 :]:
            sign = 1.0 if a.higher else -1.0
            ahead = [sign * (a.best_of(k) - b.best_of(k)) for k in range(1, most + 1)]
            if ahead[0] * ahead[-1] >= 0:
                continue
            first, second = (a, b) if ahead[0] > 0 else (b, a)
            agree = [math.copysign(1, x) == math.copysign(1, ahead[-1]) for x in ahead]
            at = most - next(i for i, same in enumerate(reversed(agree)) if not same) + 1
            listed.append(Flip(first, second, at))
    return listed
