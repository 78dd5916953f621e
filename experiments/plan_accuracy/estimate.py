"""Estimated peaks of the same stages, from the configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accuracy_cases import Case
from peaks import rows_of

from alignlab.capacity.device import allocation
from alignlab.capacity.forecast import described
from alignlab.capacity.memory import Setting, peak
from alignlab.compose import compose_all
from alignlab.plan import Plan
from alignlab.run import Store


def estimate(case: Case, work: Path) -> dict[str, dict[str, Any]]:
    """Widest moment of the first stage of every kind, part by part."""
    jobs = case.jobs(rows_of(work))
    plan = Plan.from_configs(compose_all(jobs), Store(work / case.name), jobs)
    found = {}
    for node in plan.nodes.values():
        held = node.estimate.workload
        if held is not None and node.kind not in found:
            place = allocation(True, held.model.dtype)
            found[node.kind] = described(peak(held, Setting(case.budget), place))
    return found
