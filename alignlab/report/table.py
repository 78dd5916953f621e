"""From a study file and its run folders to methods: who trained what, and what it was scored.

Reads files only, imports nothing heavy and changes nothing. A run that is not there becomes an
entry of `Study.missing`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from alignlab.errors import DataError, did_you_mean
from alignlab.report.folders import RunFolder, read_run
from alignlab.report.methods import ASSESSMENTS, Failure, Method, failures_of, methods_of
from alignlab.stages.stage import METHOD_KINDS

__all__ = ["Failure", "Job", "Method", "Places", "Study", "cost_of", "read_study", "shared_stages"]

METRICS = ("gold", "audit", "proxy", "kl", "tokens")
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
    failures: tuple[Failure, ...] = field(default=())  # stages that ended with an error

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
    stages = [(job.seed, stage, run) for job in jobs for stage, run in job.stages.items()]
    methods = methods_of(stages, runs)
    failures = failures_of(stages, runs)
    return Study(
        name=name,
        root=store.root,
        created=str(raw.get("created", "")),
        command=_command(raw.get("command", "")),
        overrides=tuple(str(o) for o in raw.get("overrides") or ()),
        jobs=jobs,
        runs=runs,
        methods=methods,
        missing=tuple(line for line in missing if not _follows(line, failures)),
        failures=tuple(_owned(failure, methods) for failure in failures),
    )


def _owned(failure: Failure, methods: Sequence[Method]) -> Failure:
    """Name the method that lacks a seed because of a failure."""
    lacking = (m.id for m in methods if m.failed.get(failure.seed) == failure.reason)
    return replace(failure, method=None if failure.trial else next(lacking, None))


def _follows(line: str, failures: Sequence[Failure]) -> bool:
    """Whether a run is missing because the stage that it assesses failed, which is said there."""
    stage = line.partition(": ")[0]
    return any(stage.endswith(f"_{f.stage} (seed {f.seed})") for f in failures)


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


def cost_of(runs: Sequence[RunFolder]) -> dict[str, float | None]:
    """Mean recorded cost over runs; None where no run recorded it."""
    means: dict[str, float | None] = {}
    for key in COSTS:
        values = [v for v in (run.number(key) for run in runs) if v is not None]
        means[key] = sum(values) / len(values) if values else None
    return means


def shared_stages(study: Study) -> dict[str, list[RunFolder]]:
    """Stages before the policies, by ``kind: label``; each run once, as it was trained once."""
    training = [run for run in study.runs.values() if run.kind not in (*ASSESSMENTS, "select")]
    used = {name for run in training for name in run.inputs.values()}
    groups: dict[str, list[RunFolder]] = {}
    for run in training:
        if run.kind in METHOD_KINDS and run.name not in used:
            continue
        title = run.kind if run.label.lower() == run.kind else f"{run.kind}: {run.label}"
        groups.setdefault(title, []).append(run)
    return groups
