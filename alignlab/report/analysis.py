"""From a study's rows to the numbers of its report: intervals, paired differences, ranks, wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignlab.report import statistics as st
from alignlab.report.corpus import distincts, forgetting_of
from alignlab.report.folders import number, prompt_key
from alignlab.report.statistics import Difference, Interval
from alignlab.report.table import Method, Study, cost_of
from alignlab.report.text import repetition

CELL_METRICS = ("gold", "audit", "proxy", "kl", "tokens", "finished", "repetition")
LEVEL = 0.95


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
class Pair:
    """Gold reward of method ``a`` against method ``b`` on shared seeds and prompts."""

    a: Method
    b: Method
    gold: Difference
    holm: float
    win: Interval  # how often a scores above b on the same prompt, ties half

    @property
    def distinguishable(self) -> bool:
        """Whether both the corrected test and the interval over seeds and prompts exclude zero."""
        return self.holm < 1 - LEVEL and self.gold.interval.excludes(0.0)


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

    @property
    def trained(self) -> list[Score]:
        """Methods that trained a policy, best first (without SFT and best-of-n)."""
        return [s for s in self.scores if not s.method.baseline and s.method.best_of == 1]

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


Cells = dict[str, dict[str, np.ndarray]]  # metric → method id → (seeds, prompts)


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


def best_of_kl(n: int) -> float:
    """Upper bound of KL(best of n ‖ reference) in nats: log n − (n − 1) / n."""
    return math.log(n) - (n - 1) / n


def analyse(study: Study, *, draws: int = st.DRAWS, seed: int = 0) -> Analysis:
    """Compute every number of the report; deterministic for a given ``seed``."""
    methods = [m for m in study.methods if any(m.rows.values())]
    cells, seeds, keys = cells_of(methods)
    gold = cells["gold"]
    methods = [m for m in methods if not np.isnan(gold[m.id]).all()]
    baseline = next((m for m in methods if m.baseline), None)
    ordered = sorted(methods, key=lambda m: -float(np.nanmean(gold[m.id])))
    pairs = _pairs(ordered, gold, draws, seed)
    strengths, wins = _strengths(ordered, pairs, gold, draws, seed)
    drawn = [st.hierarchical_draws(gold[m.id], draws=draws, seed=seed)[1] for m in ordered]
    ranks = st.rank_intervals(np.stack(drawn, axis=1)) if ordered else []
    vs = {p.a.id if p.b is baseline else p.b.id: p for p in pairs if baseline in (p.a, p.b)}
    scores = [
        _score(m, baseline, cells, seeds, vs.get(m.id), ranks[i], strengths.get(m.id), draws, seed)
        for i, m in enumerate(ordered)
    ]
    errors = [p.gold.interval.error for p in pairs if p.gold.interval.error > 0]
    rates = np.array([[wins.get((a.id, b.id), 0.5) for b in ordered] for a in ordered])
    found = st.cycles(rates) if len(ordered) > 2 else []
    names = [tuple(ordered[i].label for i in triple) for triple in found]
    detectable = st.minimum_detectable_effect(1, float(np.median(errors))) if errors else None
    return Analysis(
        study, tuple(scores), tuple(pairs), len(keys), tuple(seeds), detectable,
        tuple((a, b, c) for a, b, c in names), wins,
    )  # fmt: skip


def _pairs(
    methods: Sequence[Method], gold: Mapping[str, np.ndarray], draws: int, seed: int
) -> list[Pair]:
    """Compare every two methods on shared cells; Holm over all of these comparisons."""
    raw: list[tuple[Method, Method, Difference, Interval]] = []
    for i, a in enumerate(methods):
        for b in methods[i + 1 :]:
            difference = gold[a.id] - gold[b.id]
            if np.isnan(difference).all():
                continue
            win = np.where(np.isnan(difference), np.nan, (np.sign(difference) + 1) / 2)
            rate = st.hierarchical_bootstrap(win, draws=draws, seed=seed)
            tested = st.difference_of_cells(difference, draws=draws, seed=seed)
            raw.append((a, b, tested, rate))
    adjusted = st.holm([d.p_value for _, _, d, _ in raw]) if raw else []
    return [Pair(a, b, d, p, w) for (a, b, d, w), p in zip(raw, adjusted, strict=True)]


def _strengths(
    methods: Sequence[Method],
    pairs: Sequence[Pair],
    gold: Mapping[str, np.ndarray],
    draws: int,
    seed: int,
) -> tuple[dict[str, Interval], dict[tuple[str, str], float]]:
    """Bradley–Terry log-strengths from per-prompt gold comparisons, and the win rates behind them.

    Half a win is added to both sides of every pair, so that a method that wins everywhere stays
    finite.
    """
    size = len(methods)
    place = {m.id: i for i, m in enumerate(methods)}
    point, drawn = np.zeros((size, size)), np.zeros((draws, size, size))
    rates: dict[tuple[str, str], float] = {}
    for pair in pairs:
        i, j = place[pair.a.id], place[pair.b.id]
        difference = gold[pair.a.id] - gold[pair.b.id]
        games = float(np.count_nonzero(~np.isnan(difference)))
        win = np.where(np.isnan(difference), np.nan, (np.sign(difference) + 1) / 2)
        value, sampled = st.hierarchical_draws(win, draws=draws, seed=seed)
        sampled = np.clip(sampled, 0, 1)
        rates[pair.a.id, pair.b.id], rates[pair.b.id, pair.a.id] = value, 1 - value
        point[i, j], point[j, i] = games * value, games * (1 - value)
        drawn[:, i, j], drawn[:, j, i] = games * sampled, games * (1 - sampled)
    if size < 2 or len(pairs) < size * (size - 1) // 2:
        return {}, rates
    strength = st.bradley_terry(point, prior=0.5)
    sampled = st.bradley_terry(drawn[: min(draws, 500)], prior=0.5)
    found = {m.id: st.summarise(strength[i], sampled[:, i]) for i, m in enumerate(methods)}
    return found, rates


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
    return st.bootstrap_interval(
        table[rows, columns], statistic, strata=[int(r) for r in rows], draws=draws, seed=seed
    )


def _cost(method: Method) -> dict[str, float | None]:
    """Cost of the method's own policy stage; best-of-n trains nothing and pays to sample."""
    if method.best_of > 1:
        evaluations = cost_of(list(method.evaluations.values()))
        return {**dict.fromkeys(evaluations, 0.0), "tokens_sampled": evaluations["tokens_sampled"],
                "peak_memory_bytes": None}  # fmt: skip
    return cost_of([run for run in method.policies.values() if run is not None])
