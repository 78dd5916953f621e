"""From benchmark runs to numbers: each metric of each method, and its difference from SFT."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alignlab.report import statistics as st
from alignlab.report.analysis import LEVEL, Analysis
from alignlab.report.folders import RunFolder, number
from alignlab.report.methods import Method
from alignlab.report.statistics import Interval

# Metrics that the figure shows of a task that has many; of any other task the first one is shown.
HEADLINES = ("nll_per_token", "distinct_2", "repetition")
NAMES = {
    "nll_per_token": "nats per token",
    "nll_per_byte": "nats per byte",
    "acc": "accuracy",
    "acc_norm": "accuracy, per character",
    "prompt_strict": "prompts, strict",
    "prompt_loose": "prompts, loose",
    "instruction_strict": "instructions, strict",
    "instruction_loose": "instructions, loose",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "finished": "ended by itself",
    "length": "tokens",
}
Values = Mapping[str, Mapping[tuple[int, str], float]]  # metric → (seed, item) → value


@dataclass(frozen=True)
class Change:
    """One metric of one method, and its difference from SFT on the same seeds and items."""

    method: Method
    value: Interval
    delta: Interval | None  # None for SFT itself, or where SFT has no such number
    p: float | None  # of the difference; McNemar's for single-seed metrics of 0 and 1
    holm: float | None  # p adjusted over all differences of the section that can be worse
    verdict: str  # "worse", "better", or "" (the interval holds 0, or neither way is better)

    @property
    def forgot(self) -> bool:
        """Whether the method is worse than SFT beyond the chance of so many comparisons."""
        return self.verdict == "worse" and self.holm is not None and self.holm < 1 - LEVEL


@dataclass(frozen=True)
class TaskTable:
    """One metric of one task for all methods."""

    task: str
    metric: str
    better: str | None  # higher, lower, or None
    items: int
    changes: tuple[Change, ...]  # SFT first, then in the order of the ranking

    @property
    def title(self) -> str:
        """Name of the metric for people."""
        return NAMES.get(self.metric, self.metric.replace("_", " "))

    def of(self, method: str) -> Change | None:
        """Return the change of a method by its id."""
        return next((c for c in self.changes if c.method.id == method), None)


def tables(analysis: Analysis) -> list[TaskTable]:
    """All metrics that any benchmark run of the study's methods has, in the order of their rows."""
    methods = _ordered(analysis)
    values = {m.id: values_of(m.benchmarks) for m in methods}
    keys = list(dict.fromkeys(key for m in methods for key in values[m.id]))
    better = _directions(methods)
    base = next((m for m in methods if m.baseline), None)
    found = []
    for key in keys:
        task, _, metric = key.rpartition("/")
        theirs = values[base.id].get(key, {}) if base is not None else {}
        changes = tuple(
            _change(m, values[m.id][key], {} if m.baseline else theirs, better.get(key))
            for m in methods
            if key in values[m.id]
        )
        items = len({item for m in methods for _, item in values[m.id].get(key, {})})
        found.append(TaskTable(task, metric, better.get(key), items, changes))
    return adjusted(found)


def headlines(found: Sequence[TaskTable], most: int = 12) -> list[TaskTable]:
    """Tables for a figure: of each task its headline metrics, or its first metric."""
    chosen = []
    for task in dict.fromkeys(t.task for t in found):
        own = [t for t in found if t.task == task]
        named = [t for t in own if t.metric in HEADLINES]
        chosen += [t for t in (named or own[:1]) if any(c.delta for c in t.changes)]
    return chosen[:most]


def values_of(runs: Mapping[int, RunFolder]) -> dict[str, dict[tuple[int, str], float]]:
    """Each metric's value per (seed, item), so that the plain mean over items is the metric.

    A metric is R = Σ w v / Σ w over its rows. Item i, whose rows have the weight w_i and the
    weighted mean v_i, gets z_i = R + n w_i / W · (v_i − R) with n items and W = Σ w: the mean of z
    is R, and its spread over items is that of a ratio estimate (linearisation, Cochran 1977, §6.3).
    With equal weights z_i = v_i.
    """
    found: dict[str, dict[tuple[int, str], float]] = {}
    for seed, run in sorted(runs.items()):
        rows: defaultdict[str, defaultdict[str, list[tuple[float, float]]]]
        rows = defaultdict(lambda: defaultdict(list))
        for row in run.lines("samples.jsonl"):
            weight, value = number(row.get("weight", 1.0)), number(row.get("value"))
            key = f"{row.get('task')}/{row.get('metric')}"
            rows[key][str(row.get("item"))].append((weight, value))
        for key, items in rows.items():
            values = linearised(items)
            found.setdefault(key, {}).update({(seed, i): z for i, z in values.items()})
    return found


def linearised(items: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Values z_i of `values_of` from each item's (weight, value) rows."""
    weights = {i: sum(w for w, _ in rows) for i, rows in items.items()}
    means = {
        i: sum(w * v for w, v in rows) / weights[i] if weights[i] else 0.0
        for i, rows in items.items()
    }
    total = sum(weights.values())
    if len(set(weights.values())) == 1 or not total:
        return means
    ratio = sum(weights[i] * means[i] for i in items) / total
    return {
        i: ratio + len(items) * weights[i] / total * (value - ratio) for i, value in means.items()
    }


def _ordered(analysis: Analysis) -> list[Method]:
    """Methods with benchmark runs, SFT first."""
    ranked = [s.method for s in analysis.scores if s.method.benchmarks]
    return sorted(ranked, key=lambda m: not m.baseline)


def _directions(methods: Sequence[Method]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for method in methods:
        for run in method.benchmarks.values():
            found |= dict(run.record.get("better") or {})
    return found


def _change(
    method: Method,
    mine: Mapping[tuple[int, str], float],
    theirs: Mapping[tuple[int, str], float],
    better: str | None,
) -> Change:
    value = st.hierarchical_bootstrap(st.paired_cells(mine, dict.fromkeys(mine, 0.0)))
    if not set(mine) & set(theirs):
        return Change(method, value, None, None, None, "")
    cells = st.paired_cells(mine, theirs)
    found = st.difference_of_cells(cells)
    p = found.p_value
    if cells.shape[0] == 1 and _binary(mine) and _binary(theirs):
        shared = sorted(set(mine) & set(theirs))
        p = st.mcnemar([mine[k] for k in shared], [theirs[k] for k in shared])
    return Change(method, value, found.interval, p, None, verdict(found.interval, better))


def _binary(values: Mapping[tuple[int, str], float]) -> bool:
    return all(value in (0.0, 1.0) for value in values.values())


def verdict(delta: Interval, better: str | None) -> str:
    """What an interval of a difference says: worse, better, or nothing."""
    if better is None or not delta.excludes(0.0):
        return ""
    return "better" if (delta.value > 0) == (better == "higher") else "worse"


def adjusted(found: Sequence[TaskTable]) -> list[TaskTable]:
    """Holm's adjustment over every difference of every metric that has a better way."""
    places = [
        (t, c)
        for t, table in enumerate(found)
        for c, change in enumerate(table.changes)
        if change.p is not None and table.better is not None
    ]
    raw = [found[t].changes[c].p for t, c in places]
    corrected = dict(zip(places, st.holm([p for p in raw if p is not None]), strict=True))
    return [
        replace(
            table,
            changes=tuple(
                replace(change, holm=corrected.get((t, c)))
                for c, change in enumerate(table.changes)
            ),
        )
        for t, table in enumerate(found)
    ]


@dataclass(frozen=True)
class RewardModel:
    """What one reward run makes of one set of pairs."""

    run: RunFolder
    seed: int | None
    task: str
    subset: str  # "" for the whole set
    accuracy: Interval
    pairs: int
    shorter: Interval | None  # accuracy where the better completion is the shorter one
    longer: Interval | None
    numbers: Mapping[str, float]  # ece, brier, log_loss, length_correlation; of whole sets only
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        """Name of the reward model, with its seed."""
        seed = "" if self.seed is None else f" (seed {self.seed})"
        return f"{self.run.label}{seed}"

    @property
    def name(self) -> str:
        """Name of the set."""
        return f"{self.task}: {self.subset}" if self.subset else self.task


def reward_models(runs: Mapping[str, RunFolder]) -> list[RewardModel]:
    """Every finished reward benchmark, by set and then by subset."""
    found = []
    for run in runs.values():
        if run.kind != "reward_benchmark" or not run.done:
            continue
        by_set: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for row in run.lines("samples.jsonl"):
            by_set[str(row["task"]), ""].append(row)
            if row.get("subset"):
                by_set[str(row["task"]), str(row["subset"])].append(row)
        found += [_reward_model(run, *key, rows) for key, rows in sorted(by_set.items())]
    return found


def _reward_model(
    run: RunFolder, task: str, subset: str, rows: Sequence[Mapping[str, Any]]
) -> RewardModel:
    accuracy = _accuracy(rows)
    assert accuracy is not None
    longer = [r for r in rows if r["chosen_tokens"] > r["rejected_tokens"]]
    shorter = [r for r in rows if r["chosen_tokens"] < r["rejected_tokens"]]
    summary = run.record.get("summary") or {}
    names = ("ece", "brier", "log_loss", "length_correlation")
    numbers = {n: number(summary.get(f"{task}/{n}")) for n in names} if not subset else {}
    seed = run.record.get("seed")
    return RewardModel(
        run=run,
        seed=int(seed) if isinstance(seed, int) else None,
        task=task,
        subset=subset,
        accuracy=accuracy,
        pairs=len(rows),
        shorter=_accuracy(shorter),
        longer=_accuracy(longer),
        numbers=numbers,
        probabilities=tuple(float(r["probability"]) for r in rows),
    )


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> Interval | None:
    """Share of pairs that were ordered right; the pairs of one prompt are resampled together."""
    if not rows:
        return None
    items: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        items[str(row["item"])].append((1.0, float(row["value"])))
    return st.hierarchical_bootstrap(np.array([list(linearised(items).values())]))
