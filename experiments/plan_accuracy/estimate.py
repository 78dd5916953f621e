"""Estimated peaks of the same stages, from the configuration alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from accuracy_cases import Case
from peaks import rows_of

from alignlab.capacity.device import allocation
from alignlab.capacity.forecast import described
from alignlab.capacity.memory import Setting, peak
from alignlab.capacity.workload import Workload
from alignlab.compose import compose_all
from alignlab.plan import Plan
from alignlab.run import Store

LIBRARIES = 321_700_000  # bytes of a process that has imported what `peaks.preload` says


def peak_of(found: dict[str, Any]) -> int:
    """Measured peak without what had been imported beside that: bitsandbytes, in some cases."""
    return int(found["peak"]) - max(0, int(found["before"]) - LIBRARIES)


def estimate(case: Case, work: Path) -> dict[str, dict[str, Any]]:
    """Widest moment of the first stage of every kind, part by part."""
    place = allocation(True, case.dtype)
    held = workloads(case.backbone, case.adapter, case.dtype, work)
    return {kind: described(peak(each, Setting(case.budget), place)) for kind, each in held.items()}


@cache
def workloads(backbone: str, adapter: str, dtype: str, work: Path) -> dict[str, Workload]:
    """Workload of the first stage of every kind, which no token budget changes."""
    case = Case(backbone, adapter, dtype, 512)
    jobs = case.jobs(rows_of(work))
    plan = Plan.from_configs(compose_all(jobs), Store(work / case.name), jobs)
    found: dict[str, Workload] = {}
    for node in plan.nodes.values():
        if node.estimate.workload is not None:
            found.setdefault(node.kind, node.estimate.workload)
    return found
