"""What could be wrong with a comparison: found from its runs, said in plain words."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from alignlab.report.analysis import CELL_METRICS, Analysis, hacks_gold
from alignlab.report.folders import RunFolder, number, prompt_key, science
from alignlab.report.table import TRAINING_KINDS, Study

FEW_SEEDS = 5
Level = Literal["serious", "note"]


@dataclass(frozen=True)
class Concern:
    """One thing a reader should know before believing the ranking."""

    level: Level
    topic: str
    text: str


def _serious(topic: str, text: str) -> Concern:
    return Concern("serious", topic, text)


def _note(topic: str, text: str) -> Concern:
    return Concern("note", topic, text)


def concerns(analysis: Analysis) -> list[Concern]:
    """All concerns about a study, serious ones first."""
    study = analysis.study
    found = [
        *_absent(study),
        *_weak_rewards(study),
        *_seeds(analysis),
        *_one_axis(study),
        *_prompts(analysis),
        *_power(analysis),
        *_outputs(analysis),
        *_tuning(analysis),
        *_machines(study),
        *_unread(analysis),
        *_warnings(study),
    ]
    return sorted(found, key=lambda concern: concern.level != "serious")


def _weak_rewards(study: Study) -> Iterator[Concern]:
    for run in study.runs.values():
        summary = run.record.get("summary") or {}
        accuracy, pairs = summary.get("validation_accuracy"), summary.get("validation_pairs")
        if run.kind != "reward" or not run.done or accuracy is None or not pairs:
            continue
        # Pairs of one prompt are not independent, so the true interval is wider than this one.
        if accuracy - 1.96 * math.sqrt(0.25 / pairs) <= 0.5:
            yield _serious(
                "reward at chance",
                f"{run.name} (seed {run.record.get('seed')}) orders {accuracy:.2f} of {pairs}"
                " held-out pairs as the annotator did, no better than chance: what was trained on"
                " it or chosen by it followed noise",
            )


def _absent(study: Study) -> Iterator[Concern]:
    if len(study.missing) > 4:
        names = ", ".join(line.partition(":")[0] for line in study.missing)
        text = f"{len(study.missing)} run folders do not exist (not run yet, or removed): {names}"
        yield _serious("missing runs", text)
    else:
        yield from (_serious("missing run", line) for line in study.missing)
    for run in study.runs.values():
        failure = str(run.record.get("error") or "").strip().rstrip(".")
        where = f"{run.name} ({run.label})"
        if failure:
            yield _serious(
                "diverged run" if "finite" in failure else "failed run", f"{where}: {failure}"
            )
        elif not run.done:
            text = "has no DONE file: it is still running or was stopped; its numbers are not used"
            yield _serious("unfinished run", f"{where} {text}")
    scored = {p.name for m in study.methods for p in m.policies.values() if p}
    for run in study.runs.values():
        if run.kind in TRAINING_KINDS and run.done and run.name not in scored:
            text = f"{run.name} ({run.label}) was trained but has no finished evaluation"
            yield _serious("not evaluated", text)


def _seeds(analysis: Analysis) -> Iterator[Concern]:
    study = analysis.study
    for score in analysis.scores:
        method = score.method
        lacking = ", ".join(str(s) for s in study.seeds if s not in method.seeds)
        if lacking:
            text = f"{method.label} has no evaluation for seed {lacking}; its mean is over"
            yield _serious(
                "unequal seeds", f"{text} {len(method.seeds)} of {len(study.seeds)} seeds"
            )
        runs = len({r.name for r in method.evaluations.values()})
        if runs < len(method.evaluations):
            text = f"{method.label}: {len(method.evaluations)} seeds point to {runs} run(s)"
            yield _note("shared run", f"{text}, so they are not independent repetitions")
    count = len(analysis.seeds)
    if count == 1:
        text = (
            "every interval speaks of prompts only: how much another training run would differ is"
        )
        yield _serious("one seed", f"{text} unknown")
    elif 1 < count < FEW_SEEDS:
        text = (
            f"{count} training seeds: the intervals mostly reflect prompts, since seed noise is "
            f"estimated from {count - 1} degree{'s' * (count > 2)} of freedom; use {FEW_SEEDS} or "
            "more before believing a small difference"
        )
        yield (_serious if count == 2 else _note)("few seeds", text)


def _inputs(run: RunFolder | None, role: str) -> str:
    return run.inputs.get(role, "") if run else ""


def _one_axis(study: Study) -> Iterator[Concern]:
    """Same reference, same reward, same prompts' decoding, same annotated data within a seed."""
    for seed in study.seeds:
        here = [m for m in study.methods if seed in m.evaluations]
        for role, name in (("reference", "SFT reference"), ("reward", "proxy reward")):
            values = {_inputs(m.evaluations[seed], role) for m in here} - {""}
            if len(values) > 1:
                runs = ", ".join(sorted(values))
                text = f"seed {seed}: methods were scored with different runs as {name}: {runs}"
                yield _serious("more than one axis", text)
        data: dict[str, set[str]] = {}
        for method in here:
            policy = method.policies.get(seed)
            for role in ("annotations", "reference", "init"):
                source = _inputs(policy, role)
                if source and not method.baseline and method.best_of == 1:
                    data.setdefault(role, set()).add(source)
        for role, sources in data.items():
            if len(sources) > 1:
                runs = ", ".join(sorted(sources))
                text = f"seed {seed}: policies were trained from different {role} runs: {runs}"
                yield _serious("more than one axis", text)
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
        yield _serious("evaluation differs", text)


def _prompts(analysis: Analysis) -> Iterator[Concern]:
    sets: dict[frozenset[str], list[str]] = {}
    for score in analysis.scores:
        for seed, rows in score.method.rows.items():
            keys = frozenset(prompt_key(r) for r in rows)
            sets.setdefault(keys, []).append(f"{score.method.label} (seed {seed})")
    if len(sets) > 1:
        few = min(sets.values(), key=len)
        text = f"{len(sets)} different sets of prompts were used (one of them by {few[0]})"
        yield _note("prompts differ", f"{text}; differences use shared prompts only")


def _power(analysis: Analysis) -> Iterator[Concern]:
    ranked = analysis.trained
    if len(ranked) > 1 and analysis.detectable is not None:
        found = analysis.pair(ranked[0].method.id, ranked[1].method.id)
        if found and not found[0].distinguishable:
            gap = abs(found[0].gold.interval.value)
            text = f"{ranked[0].method.label} and {ranked[1].method.label} differ by {gap:.3f}"
            limit = f"a difference below about {analysis.detectable:.3f} could not be seen here"
            yield _note("underpowered", f"{text}; {limit}")
    for a, b, c in analysis.cycles:
        text = f"{a} beats {b}, {b} beats {c}, {c} beats {a}: a single scale of strength misleads"
        yield _note("cycle", text)


def _outputs(analysis: Analysis) -> Iterator[Concern]:
    base = analysis.baseline
    if base is None:
        yield _serious(
            "no baseline", "the reference itself was not evaluated, so gains have no zero"
        )
    cut = {s.method.label: 1 - s.value("finished") for s in analysis.scores}
    listing = ", ".join(f"{label} {share:.0%}" for label, share in cut.items() if share > 0.1)
    if listing:
        yield _note("truncated", f"completions that hit the length limit without EOS: {listing}")
    for score in analysis.scores:
        label = score.method.label
        if base is not None and score is not base and base.value("tokens") > 0:
            change = score.value("tokens") / base.value("tokens") - 1
            if abs(change) > 0.2:
                word = "longer" if change > 0 else "shorter"
                text = f"{label} writes {abs(change):.0%} {word} completions"
                why = "a reward that depends on length would show it as a gain"
                yield _note("length", f"{text} than {base.method.label}; {why}")
        if hacks_gold(score):
            text = (
                f"{label} gains gold reward; the audit reward, which no stage sees, does not rise"
            )
            yield _serious("over-optimisation", f"{text}: possibly an exploit of the gold reward")
    if any(s.kl_is_analytic for s in analysis.scores):
        text = "the KL of best-of-n is the analytic upper bound log n − (n−1)/n, not a measurement"
        yield _note("analytic KL", text)


def _tuning(analysis: Analysis) -> Iterator[Concern]:
    counts = Counter(re.split(r"[ ,(]", score.method.label)[0] for score in analysis.trained)
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{k} {v}" for k, v in counts.items())
        text = f"methods were tried with different numbers of settings ({listing})"
        yield _serious("unequal search", f"{text}; the best of more trials looks better")
    elif counts and max(counts.values()) == 1:
        text = "each method ran with one setting: this ranks settings; a method may do better"
        yield _note("untuned", f"{text} when tuned")


def _machines(study: Study) -> Iterator[Concern]:
    runs = [r for r in study.runs.values() if r.env]
    for key, word in (
        ("git", "code states"),
        ("hardware", "machines"),
        ("packages", "package versions"),
    ):
        states = {json.dumps(r.env.get(key), sort_keys=True, default=str) for r in runs}
        if len(states) > 1:
            more = "; their seconds may not compare" if key == "hardware" else ""
            yield _note(word, f"the runs come from {len(states)} different {word}{more}")
    dirty = sum(bool((r.env.get("git") or {}).get("dirty")) for r in runs)
    if dirty:
        yield _note("uncommitted code", f"{dirty} runs were made from a work tree with changes")
    for key in ("dtype", "layout", "threads"):
        values = {str(r.record[key]) for r in study.runs.values() if r.record.get(key) is not None}
        if len(values) > 1:
            yield _note(key, f"runs differ in {key}: {', '.join(sorted(values))}")


def _unread(analysis: Analysis) -> Iterator[Concern]:
    gaps: dict[str, list[str]] = {}
    for run in analysis.study.runs.values():
        for gap in run.gaps:
            gaps.setdefault(gap, []).append(run.name)
    for gap, names in gaps.items():
        yield _note("incomplete record", f"{gap}: {_some(names)}")
    for score in analysis.scores:
        label = score.method.label
        rows = [row for found in score.method.rows.values() for row in found]
        odd = sum(not math.isfinite(number(row.get("gold"))) for row in rows)
        if odd:
            text = f"{label}: {odd} of {len(rows)} samples have no finite gold reward"
            yield _serious("missing reward", f"{text}; they are left out of its mean")
        absent = [m for m in CELL_METRICS if m not in score.metrics]
        if absent:
            yield _note("missing metric", f"{label}: not in the evaluation: {', '.join(absent)}")
        unknown = [k for k, v in score.cost.items() if v is None and score.method.best_of == 1]
        if unknown:
            yield _note("missing cost", f"{label}: {', '.join(unknown)} not recorded")
    shown = {s.method.id for s in analysis.scores}
    for method in analysis.study.methods:
        if method.id not in shown:
            names = [run.name for run in method.evaluations.values()]
            text = f"{method.label} has no gold rewards in {_some(names)}, so it is left out"
            yield _serious("no gold", text)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _warnings(study: Study) -> Iterator[Concern]:
    said: dict[str, list[str]] = {}
    for run in study.runs.values():
        for warning in run.record.get("warnings") or ():
            said.setdefault(str(warning).rstrip("."), []).append(run.name)
    for warning, names in said.items():
        yield _note("run warning", f"{warning} ({_some(names)})")
