"""Where a plan executes: the ``launch`` group of the configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from alignlab.errors import ConfigError
from alignlab.launch.board import Board
from alignlab.launch.inprocess import run_here
from alignlab.launch.local import COMMAND, THREAD_VARIABLES, Pool
from alignlab.launch.task import Outcome, Place, Task, usable_cores
from alignlab.run import Store
from alignlab.typed import Range

if TYPE_CHECKING:
    from alignlab.plan import Node, Plan


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One stage after another in this process, or several at a time in worker processes."""

    kind: Literal["inprocess", "local"]
    jobs: Annotated[int, Range(min=1)] | Literal["auto"]  # stages at a time

    def __post_init__(self) -> None:
        """Refuse more than one stage at a time in one process."""
        if self.kind == "inprocess" and self.jobs not in (1, "auto"):
            raise ConfigError(
                f"jobs is {self.jobs}, but launch=inprocess executes one stage at a time; "
                f"use launch=local launch.jobs={self.jobs}."
            )

    def width(self, plan: Plan, gpus: int, cores: int) -> int:
        """How many stages of ``plan`` to execute at a time."""
        if self.kind == "inprocess":
            return 1
        wanted = (gpus or cores) if self.jobs == "auto" else self.jobs
        return max(1, min(wanted, Board(plan).width()))

    def execute(
        self,
        plan: Plan,
        place: Place,
        *,
        note: Callable[[str], None],
        settled: Callable[[Outcome], None],
        command: tuple[str, ...] = COMMAND,
    ) -> list[Outcome]:
        """Execute what is not done of ``plan``; ``settled`` hears of every outcome at once.

        Raises:
            Interrupted: SIGINT or SIGTERM came.
        """
        logs = Store(Path(place.store)).studies / place.study / "logs"
        if not plan.pending():
            return Board(plan).results()
        if self.kind == "inprocess":
            return run_here(plan, place, logs, note, settled)
        gpus = [] if place.engine.get("device") == "cpu" else visible_gpus()
        jobs = self.width(plan, len(gpus), usable_cores())
        stated, cores = place.engine.get("threads"), usable_cores()
        threads = stated or max(1, cores // jobs)
        alone = Board(plan).alone()

        def task_of(node: Node) -> Task:
            given = stated or (cores if node.run in alone else threads)
            return Task.of(node, replace(place, engine={**place.engine, "threads": given}))

        def variables(slot: int) -> Mapping[str, str]:
            shared = dict.fromkeys(THREAD_VARIABLES, str(threads))
            return {**shared, "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else shared

        return Pool(plan, task_of, jobs, variables, logs, note, settled, command).run()


def visible_gpus() -> list[str]:
    """Ids of the NVIDIA GPUs that this process may use, without importing torch."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [part.strip() for part in stated.split(",") if part.strip() not in ("", "-1")]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(folder.iterdir())))] if folder.is_dir() else []
