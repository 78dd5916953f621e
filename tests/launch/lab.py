"""Plans of toys, and a store to execute them in."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import toys

from alignlab.launch.launcher import launch_of
from alignlab.launch.task import Outcome, Place
from alignlab.plan import Plan
from alignlab.run import Store

COMMAND = (sys.executable, str(toys.WORKER))


@dataclass
class Lab:
    """A store in a temporary folder, and what was said while stages were executed in it."""

    root: Path
    notes: list[str] = field(default_factory=list)
    settled: list[Outcome] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.root)

    def plan(self, *jobs: dict[str, Any]) -> Plan:
        return Plan.from_configs([{"seed": 0, "stages": job} for job in jobs], self.store)

    def place(self, **engine: Any) -> Place:
        return Place(
            store=str(self.root),
            study="s",
            engine={**toys.ENGINE, **engine},
            tracking=toys.TRACKING,
        )

    def execute(self, plan: Plan, kind: Any, jobs: Any = "auto", **engine: Any) -> dict[str, str]:
        """Execute a plan; return the status of every stage by name."""
        outcomes = launch_of({"kind": kind, "jobs": jobs}).execute(
            plan,
            self.place(**engine),
            note=self.notes.append,
            settled=self.settled.append,
            **({"command": COMMAND} if kind == "local" else {}),
        )
        return {outcome.name: outcome.status for outcome in outcomes}

    def total(self, plan: Plan, name: str) -> int:
        return int(self.store.run("toy", key(plan, name)).summary()["total"])


def key(plan: Plan, name: str) -> str:
    [found] = [node.key for node in plan.nodes.values() if node.name == name]
    return found
