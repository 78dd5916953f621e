"""What could be wrong with the runs of a study: failed, missing, weak, unlike each other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

from alignlab.report.concern import Concern, note, serious, some
from alignlab.report.table import Failure, Study
from alignlab.stages.stage import METHOD_KINDS


def run_concerns(study: Study) -> Iterator[Concern]:
    """All concerns that the run folders raise by themselves."""
    yield from _missing(study)
    yield from _failed(study)
    yield from _unfinished(study)
    yield from _weak_rewards(study)
    yield from _machines(study)
    yield from _gaps(study)
    yield from _warnings(study)


def _weak_rewards(study: Study) -> Iterator[Concern]:
    for run in study.runs.values():
        summary = run.record.get("summary") or {}
        accuracy, pairs = summary.get("validation_accuracy"), summary.get("validation_pairs")
        if run.kind != "reward" or not run.done or accuracy is None or not pairs:
            continue
        # Pairs of one prompt are not independent, so the true interval is wider than this one.
        if accuracy - 1.96 * math.sqrt(0.25 / pairs) <= 0.5:
            yield serious(
                "reward at chance",
                f"{run.name} (seed {run.record.get('seed')}) orders {accuracy:.2f} of {pairs}"
                " held-out pairs as the annotator did, no better than chance: what was trained on"
                " it or chosen by it followed noise",
            )


def _missing(study: Study) -> Iterator[Concern]:
    if len(study.missing) > 4:
        names = some([line.partition(":")[0] for line in study.missing], 12)
        text = f"{len(study.missing)} run folders do not exist (not run yet, or removed): {names}"
        yield serious("missing runs", text)
    else:
        yield from (serious("missing run", line) for line in study.missing)


def _failed(study: Study) -> Iterator[Concern]:
    """Failed runs by method: what is left of a method is conditional on having finished."""
    for method in study.methods:
        if not method.failed:
            continue
        tried = len(method.seeds) + len(method.failed)
        yield serious(
            "failed runs",
            f"{method.label}: {len(method.failed)} of {tried} seeds {_verb(study, method.id)} "
            f"({_reasons(method.failed)}); its numbers are conditional on the seeds that finished, "
            "and a method is not better for failing where it is bad",
        )
    lone: dict[str, list[Failure]] = {}
    for failure in study.failures:
        if failure.method is None and not failure.trial:
            lone.setdefault(failure.label, []).append(failure)
    for label, failures in lone.items():
        by_seed = {f.seed: f.reason for f in failures}
        names = some([f.run for f in failures])
        word = "diverged" if all(f.diverged for f in failures) else "failed"
        text = f"{label}: {len(failures)} run{'s' * (len(failures) > 1)} {word} ({names}; "
        yield serious("failed runs", f"{text}{_reasons(by_seed)}), so it has no numbers there")
    trials = [f for f in study.failures if f.trial]
    if trials:
        listing = some(sorted({f"{f.stage} (seed {f.seed})" for f in trials}))
        text = f"{len(trials)} trials of searches diverged or failed: {listing}"
        yield note("failed trials", f"{text}; they count as trials and cannot be chosen")


def _verb(study: Study, method: str) -> str:
    own = [f for f in study.failures if f.method == method]
    return "diverged" if own and all(f.diverged for f in own) else "failed"


def _reasons(by_seed: Mapping[int, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for seed, reason in by_seed.items():
        reasons.setdefault(reason, []).append(str(seed))
    return "; ".join(f"seed {', '.join(seeds)}: {reason}" for reason, seeds in reasons.items())


def _unfinished(study: Study) -> Iterator[Concern]:
    broken = {failure.run for failure in study.failures}
    for run in study.runs.values():
        if not run.done and run.name not in broken:
            text = "has no DONE file: it is still running or was stopped; its numbers are not used"
            yield serious("unfinished run", f"{run.name} ({run.label}) {text}")
    scored = {p.name for m in study.methods for p in m.policies.values() if p}
    scored |= {n for r in study.runs.values() if r.kind == "select" for n in r.inputs.values()}
    for run in study.runs.values():
        if run.kind in METHOD_KINDS and run.done and run.name not in scored:
            text = f"{run.name} ({run.label}) was trained but has no finished evaluation"
            yield serious("not evaluated", text)


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
            yield note(word, f"the runs come from {len(states)} different {word}{more}")
    dirty = sum(bool((r.env.get("git") or {}).get("dirty")) for r in runs)
    if dirty:
        yield note("uncommitted code", f"{dirty} runs were made from a work tree with changes")
    for key in ("dtype", "layout", "threads"):
        values = {str(r.record[key]) for r in study.runs.values() if r.record.get(key) is not None}
        if len(values) > 1:
            yield note(key, f"runs differ in {key}: {', '.join(sorted(values))}")


def _gaps(study: Study) -> Iterator[Concern]:
    gaps: dict[str, list[str]] = {}
    for run in study.runs.values():
        for gap in run.gaps:
            gaps.setdefault(gap, []).append(run.name)
    for gap, names in gaps.items():
        yield note("incomplete record", f"{gap}: {some(names)}")


def _warnings(study: Study) -> Iterator[Concern]:
    said: dict[str, list[str]] = {}
    for run in study.runs.values():
        for warning in run.record.get("warnings") or ():
            said.setdefault(str(warning).rstrip("."), []).append(run.name)
    for warning, names in said.items():
        yield note("run warning", f"{warning} ({some(names)})")
