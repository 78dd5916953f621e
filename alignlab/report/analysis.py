"""From a study's rows to the numbers of its report: intervals, paired differences, ranks, wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignlab.report import statistics as st
from alignlab.report.comparison import (
    LEVEL,
    Pair,
    best_of_kl,
    compare,
    compared,
    contenders,
    detectable,
    ranks,
    strengths,
)
from alignlab.report.corpus import distincts, forgetting_of
from alignlab.report.folders import number, prompt_key
from alignlab.report.statistics import Interval
from alignlab.report.table import Method, Study, cost_of
from alignlab.report.text import repetition

__all__ = ["LEVEL", "Analysis", "Pair", "Score", "analyse", "best_of_kl", "cells_of", "hacks_gold"]
RESAMPLED = 4_000_000  # values that are sorted for one interval of an interquartile mean
CELL_METRICS = ("gold", "audit", "proxy", "kl", "tokens", "finished", "repetition")
Cells = dict[str, dict[str, np.ndarray]]  # metric → method id → (seeds, prompts)


@dataclass(frozen=True)
class Score:
    """Everything the report says about one method."""

    method: Method
    metrics: Mapping[str, Interval]  # a metric that was not recorded has no entry
    per_seed: Mapping[str, Mapping[int, float]]
    over_sft: Mapping[str, Interval]  # paired differences of gold, audit, proxy, tokens
    p_over_sft: float | None  # Holm-adjusted over all pairs of methods
    ranks: tuple[int, int]
    strength: Interval | None
    cost: Mapping[str, float | None]
    kl_is_analytic: bool

    def value(self, metric: str) -> float:
        """Point estimate of a metric, NaN when it was not recorded."""
        found = self.metrics.get(metric)
        return found.value if found else math.nan


@dataclass(frozen=True)
class Analysis:
    """The numbers of one study; ``scores`` are ordered by gold reward, best first."""

    study: Study
    scores: tuple[Score, ...]
    pairs: tuple[Pair, ...]
    prompts: int
    seeds: tuple[int, ...]
    detectable: float | None
    cycles: tuple[tuple[str, str, str], ...]
    wins: Mapping[tuple[str, str], float]
    cells: Cells
    contenders: tuple[str, ...]  # ids of the methods that are compared pair by pair
    equal_kl: float | None  # the KL by which they were picked from many, None when all are

    @property
    def points(self) -> list[Score]:
        """All methods that trained a policy, best first (without SFT and best-of-n)."""
        return [s for s in self.scores if not s.method.baseline and s.method.best_of == 1]

    @property
    def compared(self) -> list[Score]:
        """Methods that are tested against each other, controls included, best first."""
        return [s for s in self.scores if s.method.id in self.contenders]

    @property
    def trained(self) -> list[Score]:
        """The compared methods that trained a policy, best first: in a sweep one per family."""
        return [s for s in self.points if s.method.id in self.contenders]

    @property
    def base_name(self) -> str:
        """What gains are counted from, for people: usually SFT."""
        return self.baseline.method.label if self.baseline else "SFT"

    @property
    def baseline(self) -> Score | None:
        """The SFT model's score."""
        return next((s for s in self.scores if s.method.baseline), None)

    def pair(self, a: str, b: str) -> tuple[Pair, int] | None:
        """Return the comparison of two method ids and +1, or −1 when it is stored as b − a."""
        for pair in self.pairs:
            if (pair.a.id, pair.b.id) == (a, b):
                return pair, 1
            if (pair.a.id, pair.b.id) == (b, a):
                return pair, -1
        return None


def _row_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    found = {m: number(row.get(m)) for m in CELL_METRICS if m != "repetition"}
    found["repetition"] = repetition(str(row.get("completion", "")))
    return found


def cells_of(methods: Sequence[Method]) -> tuple[Cells, list[int], list[str]]:
    """Mean over a prompt's samples, as (seeds, prompts) tables on axes shared by all methods."""
    seeds = sorted({s for m in methods for s in m.seeds})
    keys = sorted({prompt_key(r) for m in methods for rows in m.rows.values() for r in rows})
    column = {key: i for i, key in enumerate(keys)}
    cells: Cells = {metric: {} for metric in CELL_METRICS}
    for method in methods:
        total = np.zeros((len(CELL_METRICS), len(seeds), len(keys)))
        count = np.zeros_like(total)
        for seed, rows in method.rows.items():
            for row in rows:
                place = (seeds.index(seed), column[prompt_key(row)])
                for k, value in enumerate(_row_metrics(row).values()):
                    if math.isfinite(value):
                        total[k][place] += value
                        count[k][place] += 1
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        for k, metric in enumerate(_row_metrics({})):
            cells[metric][method.id] = mean[k]
    return cells, seeds, keys


def hacks_gold(score: Score) -> bool:
    """Whether gold rises over SFT beyond doubt and the audit reward does not."""
    gold, audit = score.over_sft.get("gold"), score.over_sft.get("audit")
    return gold is not None and audit is not None and gold.low > 0 and audit.low <= 0


def analyse(study: Study, *, draws: int = st.DRAWS, seed: int = 0) -> Analysis:
    """Compute every number of the report; deterministic for a given ``seed``."""
    methods = [m for m in study.methods if any(m.rows.values())]
    cells, seeds, keys = cells_of(methods)
    gold = cells["gold"]
    methods = [m for m in methods if not np.isnan(gold[m.id]).all()]
    baseline = next((m for m in methods if m.baseline), None)
    ordered = sorted(methods, key=lambda m: -float(np.nanmean(gold[m.id])))
    kept, equal_kl = contenders(ordered, {m.id: _kl(m, cells) for m in ordered})
    pairs = compare(kept, gold, draws, seed)
    strength, wins = strengths(kept, pairs, gold, draws, seed)
    others = [(m, baseline) for m in ordered if baseline is not None and m not in kept]
    beside = compared(others, gold, draws, seed)
    vs = {
        pair.a.id if pair.b is baseline else pair.b.id: pair
        for pair in (*pairs, *beside)
        if baseline in (pair.a, pair.b)
    }
    places = ranks(ordered, gold, draws, seed)
    scores = [
        _score(m, baseline, cells, seeds, vs.get(m.id), places[i], strength.get(m.id), draws, seed)
        for i, m in enumerate(ordered)
    ]
    rates = np.array([[wins.get((a.id, b.id), 0.5) for b in kept] for a in kept])
    found = st.cycles(rates) if len(kept) > 2 else []
    return Analysis(
        study=study,
        scores=tuple(scores),
        pairs=tuple(pairs),
        prompts=len(keys),
        seeds=tuple(seeds),
        detectable=detectable(pairs),
        cycles=tuple((kept[i].label, kept[j].label, kept[k].label) for i, j, k in found),
        wins=wins,
        cells=cells,
        contenders=tuple(m.id for m in kept),
        equal_kl=equal_kl,
    )


def _kl(method: Method, cells: Cells) -> float:
    """Mean KL of a method, the analytic bound for best-of-n, NaN when it was not recorded."""
    if method.best_of > 1:
        return best_of_kl(method.best_of)
    table = cells["kl"][method.id]
    return math.nan if np.isnan(table).all() else float(np.nanmean(table))


def _score(
    method: Method,
    baseline: Method | None,
    cells: Cells,
    seeds: Sequence[int],
    versus: Pair | None,
    ranks: tuple[int, int],
    strength: Interval | None,
    draws: int,
    seed: int,
) -> Score:
    metrics: dict[str, Interval] = {}
    per_seed: dict[str, dict[int, float]] = {}
    for metric in CELL_METRICS:
        table = cells[metric][method.id]
        if not np.isnan(table).all():
            metrics[metric] = st.hierarchical_bootstrap(table, draws=draws, seed=seed)
            per_seed[metric] = {
                s: float(np.nanmean(table[i]))
                for i, s in enumerate(seeds)
                if not np.isnan(table[i]).all()
            }
    metrics |= distincts(method)
    forgetting = forgetting_of(method)
    if forgetting is not None:
        metrics["reference_nll"] = forgetting
    metrics["gold_iqm"] = _gold_iqm(cells["gold"][method.id], draws, seed)
    analytic = method.best_of > 1
    if analytic:
        bound = best_of_kl(method.best_of)
        metrics["kl"] = Interval(bound, bound, bound, 0.0)
        per_seed["kl"] = dict.fromkeys(method.seeds, bound)
    over: dict[str, Interval] = {}
    if baseline is not None and baseline is not method:
        for metric in ("gold", "audit", "proxy", "tokens"):
            difference = cells[metric][method.id] - cells[metric][baseline.id]
            if not np.isnan(difference).all():
                over[metric] = st.hierarchical_bootstrap(difference, draws=draws, seed=seed)
    return Score(
        method=method,
        metrics=metrics,
        per_seed=per_seed,
        over_sft=over,
        p_over_sft=versus.holm if versus and over else None,
        ranks=ranks,
        strength=strength,
        cost=_cost(method),
        kl_is_analytic=analytic,
    )


def _gold_iqm(table: np.ndarray, draws: int, seed: int) -> Interval:
    """Interquartile mean of gold over seeds and prompts; prompts are resampled within each seed."""
    rows, columns = np.nonzero(~np.isnan(table))
    statistic: Callable[..., Any] = st.interquartile_mean
    fewer = min(draws, max(200, RESAMPLED // rows.size))
    return st.bootstrap_interval(
        table[rows, columns], statistic, strata=[int(r) for r in rows], draws=fewer, seed=seed
    )


def _cost(method: Method) -> dict[str, float | None]:
    """Cost of the method's own policy stage; best-of-n trains nothing and pays to sample."""
    if method.best_of > 1:
        evaluations = cost_of(list(method.evaluations.values()))
        return {**dict.fromkeys(evaluations, 0.0), "tokens_sampled": evaluations["tokens_sampled"],
                "peak_memory_bytes": None}  # fmt: skip
    return cost_of([run for run in method.policies.values() if run is not None])
