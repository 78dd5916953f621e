"""What could be wrong with a comparison: found from its runs, said in plain words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

from alignlab.design.rounds import round_of
from alignlab.report.analysis import CELL_METRICS, Analysis, Score, hacks_gold
from alignlab.report.comparison import families_of
from alignlab.report.concern import Concern, note, serious, some
from alignlab.report.folders import RunFolder, number, prompt_key, science
from alignlab.report.run_concerns import run_concerns
from alignlab.report.table import Study

__all__ = ["Concern", "concerns"]
FEW_SEEDS = 5


def concerns(analysis: Analysis) -> list[Concern]:
    """All concerns about a study, serious ones first."""
    found = [
        *run_concerns(analysis.study),
        *_seeds(analysis),
        *_one_axis(analysis.study),
        *_prompts(analysis),
        *_power(analysis),
        *_outputs(analysis),
        *_tuning(analysis),
        *_unread(analysis),
    ]
    return sorted(found, key=lambda concern: concern.level != "serious")


def _seeds(analysis: Analysis) -> Iterator[Concern]:
    study = analysis.study
    for score in analysis.scores:
        method = score.method
        lacking = ", ".join(
            str(s) for s in study.seeds if s not in method.seeds and s not in method.failed
        )
        if lacking:
            text = f"{method.label} has no evaluation for seed {lacking}; its mean is over"
            yield serious(
                "unequal seeds", f"{text} {len(method.seeds)} of {len(study.seeds)} seeds"
            )
        runs = len({r.name for r in method.evaluations.values()})
        if runs < len(method.evaluations):
            text = f"{method.label}: {len(method.evaluations)} seeds point to {runs} run(s)"
            yield note("shared run", f"{text}, so they are not independent repetitions")
    count = len(analysis.seeds)
    if count == 1:
        text = (
            "every interval speaks of prompts only: how much another training run would differ is"
        )
        yield serious("one seed", f"{text} unknown")
    elif 1 < count < FEW_SEEDS:
        text = (
            f"{count} training seeds: seed noise is estimated from {count - 1} "
            f"degree{'s' * (count > 2)} of freedom; the intervals are widened for that, and "
            f"{FEW_SEEDS} seeds or more would make them narrower and surer"
        )
        yield (serious if count == 2 else note)("few seeds", text)


def _inputs(run: RunFolder | None, role: str) -> str:
    return run.inputs.get(role, "") if run else ""


def _one_axis(study: Study) -> Iterator[Concern]:
    """Same reference, same reward, same prompts' decoding, same annotated data within a seed.

    Further rounds are copies of the first, and what they read of the rounds before is the method.
    """
    stages = [item for job in study.jobs for item in job.stages.items()]
    further = {run for stage, run in stages if round_of(stage) > 1}
    for seed in study.seeds:
        here = [m for m in study.methods if seed in m.evaluations]
        for role, name in (("reference", "SFT reference"), ("reward", "proxy reward")):
            values = {_inputs(m.evaluations[seed], role) for m in here} - {""}
            if len(values) > 1:
                runs = ", ".join(sorted(values))
                text = f"seed {seed}: methods were scored with different runs as {name}: {runs}"
                yield serious("more than one axis", text)
        data: dict[str, set[str]] = {}
        for method in here:
            policy = method.policies.get(seed)
            for role in ("annotations", "reference", "init"):
                source = _inputs(policy, role)
                own = policy is not None and policy.name in further
                if source and not own and not method.baseline and method.best_of == 1:
                    data.setdefault(role, set()).add(source)
        for role, sources in data.items():
            if len(sources) > 1:
                runs = ", ".join(sorted(sources))
                text = f"seed {seed}: policies were trained from different {role} runs: {runs}"
                yield serious("more than one axis", text)
    decoding: dict[str, list[str]] = {}
    for method in study.methods:
        if method.best_of == 1 and method.evaluations:
            config = science(next(iter(method.evaluations.values())).config)
            decoding.setdefault(json.dumps(config, sort_keys=True, default=str), []).append(
                method.label
            )
    if len(decoding) > 1:
        groups = "; ".join(", ".join(labels) for labels in decoding.values())
        text = f"evaluation settings differ between groups of methods: {groups}"
        yield serious("evaluation differs", text)


def _prompts(analysis: Analysis) -> Iterator[Concern]:
    sets: dict[frozenset[str], list[str]] = {}
    for score in analysis.scores:
        for seed, rows in score.method.rows.items():
            keys = frozenset(prompt_key(r) for r in rows)
            sets.setdefault(keys, []).append(f"{score.method.label} (seed {seed})")
    if len(sets) > 1:
        few = min(sets.values(), key=len)
        text = f"{len(sets)} different sets of prompts were used (one of them by {few[0]})"
        yield note("prompts differ", f"{text}; differences use shared prompts only")


def _power(analysis: Analysis) -> Iterator[Concern]:
    ranked = analysis.trained
    if len(ranked) > 1 and analysis.detectable is not None:
        found = analysis.pair(ranked[0].method.id, ranked[1].method.id)
        if found and not found[0].distinguishable:
            gap = abs(found[0].gold.interval.value)
            text = f"{ranked[0].method.label} and {ranked[1].method.label} differ by {gap:.3f}"
            limit = f"a difference below about {analysis.detectable:.3f} could not be seen here"
            yield note("underpowered", f"{text}; {limit}")
    for a, b, c in analysis.cycles:
        text = f"{a} beats {b}, {b} beats {c}, {c} beats {a}: a single scale of strength misleads"
        yield note("cycle", text)


def _outputs(analysis: Analysis) -> Iterator[Concern]:
    base = analysis.baseline
    if base is None:
        yield serious(
            "no baseline", "the reference itself was not evaluated, so gains have no zero"
        )
    cut = {s.method.label: 1 - s.value("finished") for s in analysis.scores}
    listing = [f"{label} {share:.0%}" for label, share in cut.items() if share > 0.1]
    if listing:
        text = "completions that hit the length limit without EOS"
        yield note("truncated", f"{text}: {some(listing, 12)}")
    if base is not None and base.value("tokens") > 0:
        yield from _lengths(analysis, base)
    hacked = [score.method.label for score in analysis.scores if hacks_gold(score)]
    if hacked:
        gain, rise = ("gains", "it") if len(hacked) == 1 else ("gain", "them")
        yield serious(
            "over-optimisation",
            f"{some(hacked, 12)} {gain} gold reward; the audit reward, which no stage sees, does "
            f"not rise with {rise}: possibly an exploit of the gold reward",
        )
    if any(s.kl_is_analytic for s in analysis.scores):
        text = "the KL of best-of-n is the analytic upper bound log n − (n−1)/n, not a measurement"
        yield note("analytic KL", text)


def _lengths(analysis: Analysis, base: Score) -> Iterator[Concern]:
    """Methods that write a fifth more or less than the baseline, longer and shorter ones apart."""
    changes = {
        s.method.label: s.value("tokens") / base.value("tokens") - 1
        for s in analysis.scores
        if s is not base and "tokens" in s.metrics
    }
    sides: Mapping[str, list[str]] = {
        "longer": [f"{label} ({c:.0%})" for label, c in changes.items() if c > 0.2],
        "shorter": [f"{label} ({-c:.0%})" for label, c in changes.items() if c < -0.2],
    }
    for word, labels in sides.items():
        if labels:
            text = f"completions are {word} than those of {base.method.label}: {some(labels, 12)}"
            why = "a reward that depends on length would show it as a gain"
            yield note("length", f"{text}; {why}")


def _tuning(analysis: Analysis) -> Iterator[Concern]:
    """How many settings each family was tried with, and by what the shown ones were picked."""
    counts = {
        family: sum(_settings(m.selection) for m in methods)
        for family, methods in families_of([s.method for s in analysis.points]).items()
    }
    listing = ", ".join(f"{k} {v}" for k, v in counts.items())
    points = len(analysis.points)
    if analysis.equal_kl is not None:
        yield note(
            "one point per family",
            f"{points} settings of {len(counts)} families were evaluated; pairs, p values and the "
            "verdict use one of each: what a search chose on validation prompts, else the one "
            f"nearest to KL {analysis.equal_kl:.3g} nats, which every swept family reaches. The "
            "reward–KL plane compares the whole families",
        )
    if len(set(counts.values())) > 1:
        text = f"methods were tried with different numbers of settings ({listing})"
        yield serious("unequal search", f"{text}; the best of more trials looks better")
    elif counts and max(counts.values()) == 1:
        text = "each method ran with one setting: this ranks settings; a method may do better"
        yield note("untuned", f"{text} when tuned")
    if analysis.equal_kl is None and points > len(counts) > 1:
        text = "several settings of a method stand in the ranking"
        yield note(
            "chosen on test prompts",
            f"{text}; its best one was then picked on the prompts that score it, which flatters",
        )


def _settings(selection: Mapping[int, RunFolder]) -> int:
    """Settings behind one method: the trials of its search, else its own."""
    return max((len(run.record.get("trials") or ()) for run in selection.values()), default=1)


def _unread(analysis: Analysis) -> Iterator[Concern]:
    for score in analysis.scores:
        label = score.method.label
        rows = [row for found in score.method.rows.values() for row in found]
        odd = sum(not math.isfinite(number(row.get("gold"))) for row in rows)
        if odd:
            text = f"{label}: {odd} of {len(rows)} samples have no finite gold reward"
            yield serious("missing reward", f"{text}; they are left out of its mean")
        absent = [m for m in CELL_METRICS if m not in score.metrics]
        if absent:
            yield note("missing metric", f"{label}: not in the evaluation: {', '.join(absent)}")
        unknown = [k for k, v in score.cost.items() if v is None and score.method.best_of == 1]
        if unknown:
            yield note("missing cost", f"{label}: {', '.join(unknown)} not recorded")
    shown = {s.method.id for s in analysis.scores}
    for method in analysis.study.methods:
        if method.id not in shown:
            names = [run.name for run in method.evaluations.values()]
            text = f"{method.label} has no gold rewards in {some(names)}, so it is left out"
            yield serious("no gold", text)
