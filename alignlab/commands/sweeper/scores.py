"""How a trial is scored: the stages whose records are read, and what they say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.commands.sweeper.settings import PATH, Objective, Settings
from alignlab.commands.sweeper.trials import Verdict
from alignlab.errors import ConfigError, did_you_mean
from alignlab.launch.task import Outcome
from alignlab.plan import Job, Plan
from alignlab.run import Run, Store
from alignlab.spec import locate


def scored(config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Add to a job the evaluations on validation prompts that its objectives are read from.

    What is chosen by prompts that are reported looks better there than it is, so an evaluation of
    test prompts is made a second time, on validation prompts, as `search` makes it.
    """
    stages = dict(config.get("stages") or {})
    size = (config.get("size") or {}).get("validate", {})
    for objective in settings.objectives:
        node: Any = stages.get(objective.stage)
        if settings.split == "validation" and _is_reported(node, objective.stage):
            name = score_name(objective.stage)
            stages[name] = {**node, **size, "label": None, "split": "validation"}
    return {**config, "stages": stages}


def score_name(stage: str) -> str:
    """Name of the evaluation that is made for the sweeper beside ``stage``."""
    return f"validate_{stage}"


def stages_of(job: Job, settings: Settings) -> list[str]:
    """Stage of a job that each objective is read from.

    Raises:
        ConfigError: there is no such stage.
    """
    found = []
    for objective in settings.objectives:
        if objective.stage not in job.stages:
            known = [name for name in job.stages if not name.startswith("validate_")]
            raise ConfigError(
                f"{PATH}.objective: there is no stage named '{objective.stage}' (stages: "
                f"{', '.join(known)}).{did_you_mean(objective.stage, known)}"
            )
        twin = score_name(objective.stage)
        found.append(twin if twin in job.stages else objective.stage)
    return found


def verdict_of(
    jobs: Sequence[Job],
    plan: Plan,
    outcomes: Mapping[str, Outcome],
    store: Store,
    settings: Settings,
) -> Verdict:
    """What became of a trial: the means over its jobs of every objective, or why it has none.

    Raises:
        ConfigError: a stage that is done does not report the metric.
    """
    rows = []
    for job in jobs:
        row = []
        names = stages_of(job, settings)
        for objective, name in zip(settings.objectives, names, strict=True):
            node = plan.nodes[job.stages[name]]
            run = store.run(node.kind, node.key)
            if not run.done:
                return _why(run.name, plan, outcomes)
            value = metric_of(run, objective)
            if not math.isfinite(value):
                return Verdict("diverged", reason=f"{objective.name} is {value}")
            row.append(value)
        rows.append(row)
    return Verdict(
        "done", tuple(math.fsum(column) / len(rows) for column in zip(*rows, strict=True))
    )


def metric_of(run: Run, objective: Objective) -> float:
    """Read a number of a finished run: of its summary, else of its record (``seconds`` …).

    Raises:
        ConfigError: it reports no such number.
    """
    numbers = {k: float(v) for k, v in {**run.record, **run.summary()}.items() if _is_number(v)}
    if objective.metric not in numbers:
        raise ConfigError(
            f"{PATH}.objective: '{objective.stage}' ({run.name}) reports no '{objective.metric}'."
            f"{did_you_mean(objective.metric, numbers)} It reports: {', '.join(sorted(numbers))}."
        )
    return numbers[objective.metric]


def _why(run: str, plan: Plan, outcomes: Mapping[str, Outcome]) -> Verdict:
    """The first failure among a run and all that it was made from."""
    waiting = [run]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop(0)
        outcome = outcomes.get(name)
        if outcome is not None and outcome.status == "failed":
            diverged = outcome.error_kind == "diverged"
            return Verdict(
                "diverged" if diverged else "failed",
                reason=f"{outcome.name} ({name}): {outcome.reason}",
            )
        fresh = [p for p in plan.nodes[name].parents.values() if p not in seen]
        seen |= set(fresh)
        waiting += fresh
    return Verdict("failed", reason=f"{run} was not finished")


def _is_reported(node: Any, name: str) -> bool:
    if not isinstance(node, Mapping) or node.get("split") != "test":
        return False
    path = f"stages.{name}._target_"
    return getattr(locate(node.get("_target_"), path), "kind", None) == "evaluate"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
