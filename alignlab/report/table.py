"""From a study file and its run folders to methods: who trained what, and what it was scored.

Reads files only, imports nothing heavy and changes nothing. A run that is not there becomes an
entry of `Study.missing`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from alignlab.errors import DataError, did_you_mean
from alignlab.report.folders import (
    RunFolder,
    flatten,
    read_run,
    science,
    settings_of,
    show,
)

METRICS = ("gold", "audit", "proxy", "kl", "tokens")
TRAINING_KINDS = ("preference", "ppo", "grpo")
COSTS = ("seconds", "tokens_trained", "tokens_sampled", "flops", "peak_memory_bytes")


class Places(Protocol):
    """The part of a `alignlab.run.Store` that a report needs."""

    @property
    def root(self) -> Path:
        """Folder that holds the run folders."""

    @property
    def studies(self) -> Path:
        """Folder that holds one folder per study."""


@dataclass(frozen=True)
class Job:
    """One composed configuration of the study: stage name → run name."""

    seed: int
    overrides: tuple[str, ...]
    stages: Mapping[str, str]


@dataclass(frozen=True)
class Method:
    """One way to make a policy, per training seed: ``evaluations[s]`` scores ``policies[s]``."""

    id: str
    label: str
    full_label: str
    settings: str
    best_of: int
    baseline: bool
    evaluations: Mapping[int, RunFolder]
    policies: Mapping[int, RunFolder | None]

    @property
    def seeds(self) -> list[int]:
        """Training seeds that were evaluated."""
        return sorted(self.evaluations)

    @cached_property
    def rows(self) -> Mapping[int, list[dict[str, Any]]]:
        """Evaluation samples per seed."""
        return {seed: run.lines("samples.jsonl") for seed, run in sorted(self.evaluations.items())}


@dataclass(frozen=True)
class Study:
    """A study as read from disk."""

    name: str
    root: Path
    created: str
    command: str
    overrides: tuple[str, ...]
    jobs: tuple[Job, ...]
    runs: Mapping[str, RunFolder]
    methods: tuple[Method, ...]
    missing: tuple[str, ...] = field(default=())

    @property
    def seeds(self) -> list[int]:
        """All seeds of the study's jobs."""
        return sorted({job.seed for job in self.jobs})

    @property
    def baseline(self) -> Method | None:
        """The SFT model scored as it is, if the study evaluated it."""
        return next((m for m in self.methods if m.baseline), None)


def read_study(name: str, store: Places) -> Study:
    """Read study ``name``; raises DataError when there is none or it has no jobs."""
    path = store.studies / name / "study.json"
    if not path.is_file():
        known = sorted(p.parent.name for p in store.studies.glob("*/study.json"))
        listing = ", ".join(known) or "none"
        hint = did_you_mean(name, known)
        raise DataError(f"no study '{name}' under {store.studies}.{hint} Known studies: {listing}.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        jobs = tuple(_job(item) for item in raw["jobs"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a study file ({type(error).__name__}: {error}).") from error
    if not jobs:
        raise DataError(f"study '{name}' has no jobs yet: nothing to report ({path}).")
    runs, missing = _collect(jobs, store.root)
    return Study(
        name=name,
        root=store.root,
        created=str(raw.get("created", "")),
        command=_command(raw.get("command", "")),
        overrides=tuple(str(o) for o in raw.get("overrides") or ()),
        jobs=jobs,
        runs=runs,
        methods=_methods(jobs, runs),
        missing=missing,
    )


def _job(item: Mapping[str, Any]) -> Job:
    stages = {str(k): str(v) for k, v in item["stages"].items()}
    return Job(int(item.get("seed", 0)), tuple(str(o) for o in item.get("overrides") or ()), stages)


def _command(raw: Any) -> str:
    return " ".join(str(part) for part in raw) if isinstance(raw, list) else str(raw)


def _collect(jobs: Sequence[Job], root: Path) -> tuple[dict[str, RunFolder], tuple[str, ...]]:
    """Runs of the jobs, the runs they were made from, and a line per run that is not there."""
    runs: dict[str, RunFolder] = {}
    wanted = [
        (run, f"{stage} (seed {job.seed})") for job in jobs for stage, run in job.stages.items()
    ]
    missing: dict[str, str] = {}
    while wanted:
        name, why = wanted.pop(0)
        if name in runs or name in missing:
            continue
        if not (root / name).is_dir():
            missing[name] = f"{why}: the run folder {name} does not exist (not run yet, or removed)"
            continue
        runs[name] = read_run(name, root)
        wanted += [(source, f"{role} of {name}") for role, source in runs[name].inputs.items()]
    return runs, tuple(missing.values())


def _methods(jobs: Sequence[Job], runs: Mapping[str, RunFolder]) -> tuple[Method, ...]:
    """Group the evaluate runs: equal label and configuration, but for the seed, is one method."""
    cells: dict[str, dict[int, RunFolder]] = {}
    for job in jobs:
        for name in job.stages.values():
            run = runs.get(name)
            if run is None or run.kind != "evaluate" or not run.done:
                continue
            policy = runs.get(run.inputs.get("policy", ""))
            trained = science(policy.config) if policy else {}
            same = [_label(run, policy), trained, science(run.config), _best_of(run)]
            cells.setdefault(json.dumps(same, sort_keys=True, default=str), {})[job.seed] = run
    first = [next(iter(found.values())) for found in cells.values()]
    policies = [runs.get(run.inputs.get("policy", "")) for run in first]
    full = _distinct([_label(r, p) for r, p in zip(first, policies, strict=True)], first, policies)
    labels = _short(full)
    ids = _slugs(labels)
    zero = _baseline(first)
    return tuple(
        Method(
            id=ids[i],
            label=labels[i],
            full_label=full[i],
            settings=_method_settings(run, policies[i]),
            best_of=_best_of(run),
            baseline=i == zero,
            evaluations=found,
            policies={s: runs.get(r.inputs.get("policy", "")) for s, r in found.items()},
        )
        for i, (run, found) in enumerate(zip(first, cells.values(), strict=True))
    )


def _baseline(runs: Sequence[RunFolder]) -> int | None:
    """Index of the run that scores the reference itself, the one that most others refer to."""
    references = [run.inputs.get("reference") for run in runs]
    own = [
        i
        for i, run in enumerate(runs)
        if _best_of(run) == 1
        and references[i] is not None
        and run.inputs.get("policy") == references[i]
    ]
    return max(own, key=lambda i: (references.count(references[i]), -i), default=None)


def _best_of(run: RunFolder) -> int:
    return int(run.record.get("best_of") or 1)


def _label(run: RunFolder, policy: RunFolder | None) -> str:
    """Name of a method: the evaluation's label, which is the policy's unless somebody set it."""
    own = run.label if run.label.lower() != "evaluate" or policy is None else policy.label
    own = "SFT" if own.lower() == "sft" else own
    return (
        own if _best_of(run) == 1 or "best" in own.lower() else f"best of {_best_of(run)} ({own})"
    )


def _short(labels: Sequence[str]) -> list[str]:
    """Labels without hyperparameters where that keeps them apart; ``mean``, ``sum`` stay."""

    def cut(label: str) -> str:
        head, _, inside = label.partition(" (")
        kept = re.search(r"\b(sum|mean)\b", inside)
        return f"{head} ({kept[0]})" if kept else head

    short = [cut(label) for label in labels]
    return [s if short.count(s) == 1 else full for s, full in zip(short, labels, strict=True)]


def _method_settings(run: RunFolder, policy: RunFolder | None) -> str:
    if _best_of(run) > 1:
        return f"n = {_best_of(run)}, ranked by the proxy"
    return settings_of(policy.config) if policy else ""


def _distinct(
    labels: Sequence[str], runs: Sequence[RunFolder], policies: Sequence[RunFolder | None]
) -> list[str]:
    """Add to equal labels what differs between them, so that no two methods share a name."""
    named = list(labels)
    for label in {x for x in labels if labels.count(x) > 1}:
        rows = [i for i, x in enumerate(labels) if x == label]
        flat = []
        for i in rows:
            policy = policies[i]
            both = {"policy": policy.config if policy else {}, "evaluate": runs[i].config}
            flat.append(flatten(science(both)))
        differing = [
            key
            for key in dict.fromkeys(k for f in flat for k in f)
            if len({repr(f.get(key)) for f in flat}) > 1
        ]
        for i, values in zip(rows, flat, strict=True):
            parts = []
            for key in differing[:3]:
                leaf = key.rsplit(".", 1)[-1]
                parts.append(f"{leaf} {show(values.get(key))}")
            named[i] = f"{label}, {', '.join(parts)}"
    return named


def _slugs(labels: Sequence[str]) -> list[str]:
    found: list[str] = []
    for label in labels:
        slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "method"
        count = sum(1 for f in found if f == slug or f.startswith(f"{slug}--"))
        found.append(slug if not count else f"{slug}--{count + 1}")
    return found


def cost_of(runs: Sequence[RunFolder]) -> dict[str, float | None]:
    """Mean recorded cost over runs; None where no run recorded it."""
    means: dict[str, float | None] = {}
    for key in COSTS:
        values = [v for v in (run.number(key) for run in runs) if v is not None]
        means[key] = sum(values) / len(values) if values else None
    return means


def shared_stages(study: Study) -> dict[str, list[RunFolder]]:
    """Stages before the policies, by ``kind: label``; each run once, as it was trained once."""
    training = [run for run in study.runs.values() if run.kind != "evaluate"]
    used = {name for run in training for name in run.inputs.values()}
    groups: dict[str, list[RunFolder]] = {}
    for run in training:
        if run.kind in TRAINING_KINDS and run.name not in used:
            continue
        title = run.kind if run.label.lower() == run.kind else f"{run.kind}: {run.label}"
        groups.setdefault(title, []).append(run)
    return groups
