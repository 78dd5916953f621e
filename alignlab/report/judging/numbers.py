"""From judge runs to numbers: who wins against whom, by which judge, and what it is worth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from alignlab.report import statistics as st
from alignlab.report.analysis import Analysis
from alignlab.report.folders import RunFolder, number, prompt_key
from alignlab.report.judging.length_control import (
    Rows,
    at_equal_length_interval,
    controlled,
    difficulty,
)
from alignlab.report.statistics import Interval
from alignlab.report.table import Method
from alignlab.rewards.agreement import cohen_kappa

Row = Mapping[str, Any]
DECIDED = {"win", "loss"}
SPENT = ("calls", "cache_hits", "cost_usd", "judge_tokens_in", "judge_tokens_out")


@dataclass(frozen=True)
class Judged:
    """One method against the opponent of its bench."""

    method: Method
    runs: Mapping[int, RunFolder]  # training seed → judge run
    win: Interval
    controlled: Interval  # win rate at equal length
    length_effect: float  # φ: what length is worth to the judge, on the logit scale
    overlap: float  # share of the matches whose Δ length has the rarer sign
    tokens: Interval  # more tokens than the opponent
    gold: Interval | None  # gold reward over the opponent's
    gold_at_equal_length: Interval | None
    strength: Interval  # Bradley–Terry log-strength over the opponent
    ties: float
    decided: int  # matches with a winner
    matches: int
    no_verdict: int

    @property
    def is_opponent(self) -> bool:
        """Whether the method was judged against itself: there is nothing to say."""
        return self.decided == 0 and self.win.error == 0 and self.tokens.error == 0


@dataclass(frozen=True)
class Bench:
    """One judge and one opponent: all methods that it judged against it, best first."""

    judge: str
    fingerprint: str
    opponent: str
    deterministic: bool
    balanced: bool  # both orders agree by construction
    judged: tuple[Judged, ...]
    first: Interval | None  # share of replies with a winner that name the answer shown first
    consistency: float | None  # share of matches with the same verdict in both orders
    repeat_agreement: float | None
    kappa: float | None  # Cohen's, between the verdicts and the signs of gold differences
    identical_ties: float | None
    identical_first: float | None
    identical_second: float | None
    verbose_wins: float | None
    verbose_losses: float | None
    trained_on: Mapping[str, str]  # label of a method → the run through which the judge trained it
    spent: Mapping[str, float | None]  # over all runs; None = not known

    @property
    def runs(self) -> list[RunFolder]:
        """Judge runs of the bench."""
        return [run for one in self.judged for run in one.runs.values()]


def benches(analysis: Analysis) -> list[Bench]:
    """All judge runs of a study, by judge and opponent; the one with most methods first."""
    places = {
        run.name: (method, seed)
        for method in (score.method for score in analysis.scores)
        for seed, run in method.evaluations.items()
    }
    found: dict[tuple[str, str], dict[str, dict[int, RunFolder]]] = {}
    methods = {method.id: method for method, _ in places.values()}
    for run in analysis.study.runs.values():
        place = places.get(run.inputs.get("samples", ""))
        if run.kind != "judge" or not run.done or place is None:
            continue
        method, seed = place
        key = (str(_judge(run).get("fingerprint")), _opponent(run, places))
        runs = found.setdefault(key, {}).setdefault(method.id, {})
        if seed not in runs or _matches(run) > _matches(runs[seed]):  # of two, the larger one
            runs[seed] = run
    made = [_bench(opponent, methods, by_method) for (_, opponent), by_method in found.items()]
    return sorted(made, key=lambda bench: (-len(bench.judged), bench.judge, bench.opponent))


def _matches(run: RunFolder) -> float:
    return run.number("matches") or 0.0


def _judge(run: RunFolder) -> Row:
    stated = run.record.get("judge")
    return stated if isinstance(stated, Mapping) else {}


def _opponent(run: RunFolder, places: Mapping[str, tuple[Method, int]]) -> str:
    name = run.inputs.get("opponent")
    if name is None:
        return "reference answers"
    place = places.get(name)
    return place[0].label if place else str(run.record.get("opponent") or name)


def _bench(
    opponent: str,
    methods: Mapping[str, Method],
    by_method: Mapping[str, Mapping[int, RunFolder]],  # method id → seed → run
) -> Bench:
    lines = {
        method: {seed: run.lines("samples.jsonl") for seed, run in sorted(runs.items())}
        for method, runs in by_method.items()
    }
    everything = [row for by_seed in lines.values() for rows in by_seed.values() for row in rows]
    axis = {key: i for i, key in enumerate(sorted({prompt_key(row) for row in everything}))}
    rows = {m: _rows(by_seed, axis) for m, by_seed in lines.items()}
    judged = [
        _judged(methods[m], by_method[m], lines[m], rows, len(axis))
        for m, found in rows.items()
        if found.win.size
    ]
    runs = [run for by_seed in by_method.values() for run in by_seed.values()]
    sentinels = [run.record.get("sentinels") or {} for run in runs]

    def tried(kind: str, side: str) -> float | None:
        return _mean((s.get(kind) or {}).get(side) for s in sentinels)

    return Bench(
        judge=str(_judge(runs[0]).get("name") or "judge"),
        fingerprint=str(_judge(runs[0]).get("fingerprint") or ""),
        opponent=opponent,
        deterministic=bool(_judge(runs[0]).get("deterministic")),
        balanced=bool(_judge(runs[0]).get("balanced")),
        judged=tuple(sorted(judged, key=lambda one: -one.win.value)),
        first=_first(everything, axis),
        consistency=_consistency(everything),
        repeat_agreement=_mean(run.record.get("repeat_agreement") for run in runs),
        kappa=_kappa(everything),
        identical_ties=tried("identical", "tie"),
        identical_first=tried("identical", "first"),
        identical_second=tried("identical", "second"),
        verbose_wins=tried("verbose", "wins"),
        verbose_losses=tried("verbose", "losses"),
        trained_on={
            methods[m].label: str(run.record["trained_on"])
            for m, by_seed in by_method.items()
            for run in by_seed.values()
            if run.record.get("trained_on")
        },
        spent={key: _sum(run.record.get(key) for run in runs) for key in SPENT},
    )


def _rows(by_seed: Mapping[int, Sequence[Row]], axis: Mapping[str, int]) -> Rows:
    """Matches that got a verdict, as arrays."""
    known = [
        (i, axis[prompt_key(row)], float(row["win"]), _longer(row))
        for i, rows in enumerate(by_seed.values())
        for row in rows
        if row.get("win") is not None
    ]
    columns = np.array(known, dtype=np.float64).reshape(-1, 4).T
    return Rows(columns[0].astype(int), columns[1].astype(int), columns[2], columns[3])


def _longer(row: Row) -> float:
    return number(row.get("tokens")) - number(row.get("opponent_tokens"))


def _judged(
    method: Method,
    runs: Mapping[int, RunFolder],
    lines: Mapping[int, Sequence[Row]],
    rows: Mapping[str, Rows],
    prompts: int,
) -> Judged:
    own = rows[method.id]
    others = [r for m, r in rows.items() if m != method.id and np.any(r.win != 0.5)]
    model, interval = controlled(own, difficulty(others, prompts))
    win = _share_interval(own.cells(own.win))
    gold = np.array(
        [
            number(row.get("gold")) - number(row.get("opponent_gold"))
            for found in lines.values()
            for row in found
            if row.get("win") is not None
        ]
    )
    has_gold = bool(gold.size) and bool(np.isfinite(gold).all())
    return Judged(
        method=method,
        runs=dict(sorted(runs.items())),
        win=win,
        controlled=interval,
        length_effect=model.length,
        overlap=model.overlap,
        tokens=st.hierarchical_bootstrap(own.cells(own.delta)),
        gold=st.hierarchical_bootstrap(own.cells(gold)) if has_gold else None,
        gold_at_equal_length=at_equal_length_interval(own, gold) if has_gold else None,
        strength=_strength(win, own.win.size),
        ties=float((own.win == 0.5).mean()),
        decided=int((own.win != 0.5).sum()),
        matches=sum(len(found) for found in lines.values()),
        no_verdict=sum(row.get("win") is None for found in lines.values() for row in found),
    )


def _share_interval(cells: Any) -> Interval:
    """Interval of a share; with few seeds its ends could lie outside 0 to 1."""
    found = st.hierarchical_bootstrap(cells)
    ends = (min(max(end, 0.0), 1.0) for end in (found.low, found.high))
    low, high = ends
    return Interval(found.value, low, high, found.error, found.seeds, found.prompts)


def _strength(win: Interval, games: int) -> Interval:
    """Bradley–Terry log-strength over the opponent: log (wins + ½) / (losses + ½).

    Where everybody plays one opponent and nobody else, that is the maximum of the likelihood; ties
    are half a win. The half keeps a method that always wins finite. A function of the win rate
    alone, so its interval is the win rate's, carried over.
    """

    def logit(rate: float) -> float:
        return math.log(games * rate + 0.5) - math.log(games * (1 - rate) + 0.5)

    low, high = logit(win.low), logit(win.high)
    spread = (high - low) / (2 * NormalDist().inv_cdf(0.975))
    return Interval(logit(win.value), low, high, spread, win.seeds, win.prompts)


def _first(rows: Sequence[Row], axis: Mapping[str, int]) -> Interval | None:
    """Share of replies with a winner that name the side shown first, prompts as clusters."""
    said: list[tuple[int, float]] = []
    for row in rows:
        place = axis[prompt_key(row)]
        if row.get("forward") in DECIDED:
            said.append((place, float(row["forward"] == "win")))
        if row.get("backward") in DECIDED:
            said.append((place, float(row["backward"] == "loss")))
    if not said:
        return None
    total, count = np.zeros(len(axis)), np.zeros(len(axis))
    for place, value in said:
        total[place] += value
        count[place] += 1
    return _share_interval(np.where(count > 0, total / np.maximum(count, 1), np.nan)[None])


def _consistency(rows: Sequence[Row]) -> float | None:
    both = [row for row in rows if row.get("asked", True) and row.get("win") is not None]
    return _mean(bool(row.get("consistent")) for row in both)


def _kappa(rows: Sequence[Row]) -> float | None:
    """Cohen's κ of verdict (win, tie, loss) and sign of the gold difference, where there is one."""
    leads = [number(row.get("gold")) - number(row.get("opponent_gold")) for row in rows]
    both = [
        (int(np.sign(float(row["win"]) - 0.5)), int(np.sign(lead)))
        for row, lead in zip(rows, leads, strict=True)
        if row.get("win") is not None and math.isfinite(lead)
    ]
    return cohen_kappa([a for a, _ in both], [b for _, b in both])


def _mean(values: Iterable[Any]) -> float | None:
    known = [number(v) if not isinstance(v, bool) else float(v) for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _sum(values: Iterable[Any]) -> float | None:
    listed = list(values)
    return None if any(value is None for value in listed) else sum(map(number, listed))
