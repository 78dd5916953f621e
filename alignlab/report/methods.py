"""Methods of a study: the evaluations grouped over seeds, with what else is known of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from alignlab.report.folders import RunFolder
from alignlab.report.naming import (
    Lineage,
    best_of,
    head_of,
    label_of,
    names,
    settings_text,
    text_of,
)

ASSESSMENTS = ("evaluate", "judge", "benchmark", "reward_benchmark")


@dataclass(frozen=True)
class Method:
    """One way to make a policy, per training seed: ``evaluations[s]`` scores ``policies[s]``.

    Points of one sweep are methods of one ``family``. A policy behind a search is the trial that
    its select run chose.
    """

    id: str
    label: str
    full_label: str
    settings: str
    best_of: int
    baseline: bool
    evaluations: Mapping[int, RunFolder]
    policies: Mapping[int, RunFolder | None]
    family: str = ""
    judgements: Mapping[int, RunFolder] = field(default_factory=dict)
    benchmarks: Mapping[int, RunFolder] = field(default_factory=dict)
    selection: Mapping[int, RunFolder] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)  # seed → why it has no numbers

    @property
    def seeds(self) -> list[int]:
        """Training seeds that were evaluated."""
        return sorted(self.evaluations)

    @cached_property
    def rows(self) -> Mapping[int, list[dict[str, Any]]]:
        """Evaluation samples per seed."""
        return {seed: run.lines("samples.jsonl") for seed, run in sorted(self.evaluations.items())}


@dataclass(frozen=True)
class Failure:
    """A stage that did not finish, because of an error of its own."""

    stage: str
    run: str
    seed: int
    reason: str
    label: str
    method: str | None = None  # id of the method that lacks this seed
    trial: bool = False  # of a search, which counts it and goes on

    @property
    def diverged(self) -> bool:
        """Whether numbers left the finite ones."""
        return "finite" in self.reason or "diverge" in self.reason


Stages = Sequence[tuple[int, str, str]]  # seed, stage, run of every stage of every job


def methods_of(stages: Stages, runs: Mapping[str, RunFolder]) -> tuple[Method, ...]:
    """Group the finished evaluations: what differs by the seed alone is one method.

    Evaluations that a search chose by are no results and make no method.
    """
    lineage = Lineage(runs)
    used = {
        name
        for run in runs.values()
        if run.kind == "select"
        for role, name in run.inputs.items()
        if role.startswith("score/")
    }
    cells: dict[str, dict[int, RunFolder]] = {}
    for seed, _, name in stages:
        run = runs.get(name)
        if run is not None and run.kind == "evaluate" and run.done and name not in used:
            cells.setdefault(_mark(run, runs, lineage), {})[seed] = run
    if not cells:
        return ()
    first = [next(iter(found.values())) for found in cells.values()]
    named = names(first, [runs.get(r.inputs.get("policy", "")) for r in first], lineage)
    zero = _baseline(first)
    failures = failures_of(stages, runs)
    behind = _behind(runs)
    methods = []
    for i, (naming, found) in enumerate(zip(named, cells.values(), strict=True)):
        given = {s: runs.get(r.inputs.get("policy", "")) for s, r in found.items()}
        policies = {s: lineage.chosen(run) for s, run in given.items()}
        selection = {s: run for s, run in given.items() if run is not None and run.kind == "select"}
        n = best_of(first[i])
        failed = _failed(found, first[i], failures, runs, lineage)
        methods.append(
            Method(
                id=naming.id,
                label=naming.label,
                full_label=naming.full_label,
                settings=_with_failures(
                    settings_text(first[i], list(policies.values()), list(selection.values())),
                    failed,
                    len(found),
                ),
                best_of=n,
                baseline=i == zero,
                evaluations=found,
                policies=policies,
                family=naming.family,
                judgements=_found(behind["judge"], {s: r.name for s, r in found.items()}),
                benchmarks=_benchmarks(behind["benchmark"], found, policies) if n == 1 else {},
                selection=selection,
                failed=failed,
            )
        )
    return tuple(methods)


def _with_failures(settings: str, failed: Mapping[int, str], finished: int) -> str:
    """Settings with the share of seeds that failed, which the numbers beside them leave out."""
    if not failed:
        return settings
    text = f"{len(failed)} of {finished + len(failed)} seeds failed"
    return f"{settings}; {text}" if settings else text


def _mark(run: RunFolder, runs: Mapping[str, RunFolder], lineage: Lineage) -> str:
    """What evaluations of one method have in common, over seeds."""
    policy = runs.get(run.inputs.get("policy", ""))
    label = label_of(run, policy)
    if policy is not None and policy.kind == "select":  # seeds may have chosen different settings
        label = head_of(label, best_of(run))
    return text_of([label, best_of(run), lineage.of(run.name)])


def _baseline(runs: Sequence[RunFolder]) -> int | None:
    """Index of the run that scores the reference itself, the one that most others refer to."""
    references = [run.inputs.get("reference") for run in runs]
    own = [
        i
        for i, run in enumerate(runs)
        if best_of(run) == 1
        and references[i] is not None
        and run.inputs.get("policy") == references[i]
    ]
    return max(own, key=lambda i: (references.count(references[i]), -i), default=None)


def _behind(runs: Mapping[str, RunFolder]) -> dict[str, dict[str, RunFolder]]:
    """Finished judge and benchmark runs by what they assess; of several, the first."""
    found: dict[str, dict[str, RunFolder]] = {"judge": {}, "benchmark": {}}
    roles = {"judge": "samples", "benchmark": "policy"}
    for run in runs.values():
        if run.kind in roles and run.done:
            found[run.kind].setdefault(run.inputs.get(roles[run.kind], ""), run)
    return found


def _found(by: Mapping[str, RunFolder], wanted: Mapping[int, str]) -> dict[int, RunFolder]:
    return {seed: by[name] for seed, name in wanted.items() if name in by}


def _benchmarks(
    by: Mapping[str, RunFolder],
    evaluations: Mapping[int, RunFolder],
    policies: Mapping[int, RunFolder | None],
) -> dict[int, RunFolder]:
    """Benchmark runs of the policies, by the run that was evaluated or by the trial behind it."""
    chosen = _found(by, {s: run.name for s, run in policies.items() if run is not None})
    return {**chosen, **_found(by, {s: r.inputs.get("policy", "") for s, r in evaluations.items()})}


def _failed(
    evaluations: Mapping[int, RunFolder],
    first: RunFolder,
    failures: Sequence[Failure],
    runs: Mapping[str, RunFolder],
    lineage: Lineage,
) -> dict[int, str]:
    """Seeds of a method that have no evaluation because one of its runs failed."""
    found = {}
    policy = first.inputs.get("policy", "")
    for failure in failures:
        if failure.seed in evaluations or failure.trial:
            continue
        run = runs[failure.run]
        evaluated = run.inputs.get("policy", "") if run.kind == "evaluate" else run.name
        own = run.kind != "evaluate" or best_of(first) == _tried(run, best_of(first))
        if own and text_of(lineage.of(evaluated)) == text_of(lineage.of(policy)):
            found[failure.seed] = failure.reason
    return found


def _tried(run: RunFolder, otherwise: int) -> int:
    """The n that an evaluation was configured with; its record may not have come so far."""
    return int(run.config.get("best_of") or otherwise)


def failures_of(stages: Stages, runs: Mapping[str, RunFolder]) -> list[Failure]:
    """Stages of the jobs whose run recorded an error and did not finish; each run once."""
    trials = {
        name
        for run in runs.values()
        if run.kind == "select"
        for role, name in run.inputs.items()
        if role.startswith(("trial/", "score/"))
    }
    found: dict[str, Failure] = {}
    for seed, stage, name in stages:
        run = runs.get(name)
        reason = str(run.record.get("error") or "").strip().rstrip(".") if run else ""
        if run is not None and reason and not run.done:
            found.setdefault(
                name, Failure(stage, name, seed, reason, run.label, None, name in trials)
            )
    return list(found.values())
