"""``launch=ray``: every stage that is not done is placed on Ray when its inputs are done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from alignlab.errors import ConfigError
from alignlab.launch.board import Board
from alignlab.launch.launcher import Launch, logs_of
from alignlab.launch.ray.cluster import connected, require, require_room
from alignlab.launch.ray.crew import Crew
from alignlab.launch.ray.host import PROGRAM
from alignlab.launch.task import Outcome, Place, Task
from alignlab.typed import Range

if TYPE_CHECKING:
    from alignlab.plan import Node, Plan

NOT_RAYS = ("time", "partition", "account", "qos", "constraint", "extra")


@dataclass(frozen=True, kw_only=True)
class Ray(Launch):
    """Stages on a Ray cluster that exists, or on one that is started here for the command."""

    kind: Literal["ray"]
    address: str | None  # of the cluster; None = started on this machine
    jobs: Annotated[int, Range(min=1)] | Literal["auto"]  # stages at a time; auto = all with room
    elastic: bool  # the cluster adds machines when they are asked for
    retries: Annotated[int, Range(min=0)]  # of a stage whose machine was lost

    def check(self, plan: Plan) -> None:
        """Refuse resources of stages that do not exist, and those that only Slurm knows.

        Raises:
            ConfigError: as said, or Ray is not installed.
        """
        super().check(plan)
        require()
        for node in {(n.name, n.kind): n for n in plan.nodes.values()}.values():
            resources = self.resources_of(node)
            for name in NOT_RAYS:
                if getattr(resources, name):
                    raise ConfigError(
                        f"launch: '{node.name}' has {name}={getattr(resources, name)!r}, which is "
                        "Slurm's; Ray places stages by cpus, gpus and memory."
                    )

    def width(self, plan: Plan) -> int:
        """As many as the graph allows, or ``jobs``: what the cluster has free, nobody knows."""
        most = max(1, Board(plan).width())
        return most if self.jobs == "auto" else min(most, self.jobs)

    def execute(
        self,
        plan: Plan,
        place: Place,
        *,
        note: Callable[[str], None],
        settled: Callable[[Outcome], None],
        program: tuple[str, ...] = PROGRAM,
    ) -> list[Outcome]:
        """Execute the plan on Ray; it needs the store at the same path on every machine.

        Raises:
            Interrupted: a signal came; every stage has saved what it had and left.
        """
        pending = plan.pending()
        if not pending:
            return Board(plan).results()

        def task_of(node: Node) -> Task:
            threads = place.engine.get("threads") or self.resources_of(node).cpus or 1
            return Task.of(node, replace(place, engine={**place.engine, "threads": threads}))

        with connected(self.address) as ray:
            if not self.elastic:
                there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                require_room({n.name: self.resources_of(n) for n in pending}, there)
            return Crew(
                plan,
                task_of,
                self.resources_of,
                limit=None if self.jobs == "auto" else self.jobs,
                retries=self.retries,
                logs=logs_of(place),
                note=note,
                settled=settled,
                ray=ray,
                program=program,
            ).run()
