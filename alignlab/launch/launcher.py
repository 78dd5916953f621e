"""Where a plan executes: the ``launch`` group of the configuration, one class for each kind."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from alignlab import typed
from alignlab.errors import ConfigError, did_you_mean
from alignlab.launch.board import Board
from alignlab.launch.inprocess import run_here
from alignlab.launch.local import COMMAND, THREAD_VARIABLES, Pool
from alignlab.launch.resources import SCHEDULER_ONLY, STAGE_KINDS, Resources, overridden
from alignlab.launch.task import Outcome, Place, Task, usable_cores
from alignlab.run import Store
from alignlab.typed import Range

if TYPE_CHECKING:
    from alignlab.plan import Node, Plan

KINDS = {
    "inprocess": "alignlab.launch.launcher:InProcess",
    "local": "alignlab.launch.launcher:Local",
    "slurm": "alignlab.launch.slurm.launcher:Slurm",
    "ray": "alignlab.launch.ray.launcher:Ray",
}


SIZES = ("nodes", "processes", "gpus")  # what makes several processes of a stage


@dataclass(frozen=True, kw_only=True)
class Launch(ABC):
    """What every kind of launch has: resources by stage, and a way to execute a plan."""

    kind: str
    default: Resources = field(default_factory=Resources)
    # By kind or name of a stage what differs from `default`: the further keys of the configuration
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_node(cls, node: Any, path: str) -> Launch:
        """Read the ``launch`` of a configuration, of whatever kind."""
        return launch_of(node, path)

    def to_node(self) -> dict[str, Any]:
        """Write what :meth:`from_node` reads."""
        names = [f.name for f in fields(self) if f.name != "overrides"]
        default = {f.name: getattr(self.default, f.name) for f in fields(self.default)}
        own = {name: default if name == "default" else getattr(self, name) for name in names}
        return {**own, **self.overrides}

    def resources(self, name: str, kind: str, path: str = "launch") -> Resources:
        """What a stage runs on: as stated for its name, else for its kind, else the default."""
        found = self.default
        for word in dict.fromkeys((kind, name)):
            if word in self.overrides:
                found = overridden(found, self.overrides[word], f"{path}.{word}")
        return found

    def resources_of(self, node: Node) -> Resources:
        """What a node of a plan runs on; one process where only one has something to do."""
        found = self.resources(node.name, node.kind)
        if node.stage.together:
            return found
        own = [n for n in SIZES if getattr(found, n) != getattr(self.default, n)]
        if own and found.world > 1:
            raise ConfigError(
                f"launch: {node.name} asks for {found.world} processes ({', '.join(own)}), but one "
                f"does the work of a stage of kind {node.kind}; leave it at one."
            )
        return replace(found, nodes=1, processes=1, gpus=min(found.gpus, 1))

    def check(self, plan: Plan) -> None:
        """Refuse resources of stages that do not exist.

        Raises:
            ConfigError: neither a kind of stage nor the name of one in ``plan``.
        """
        known = {*STAGE_KINDS, "report"}
        known |= {word for node in plan.nodes.values() for word in (node.name, node.kind)}
        for word, given in self.overrides.items():
            if word not in known and any(value is not None for value in given.values()):
                raise ConfigError(
                    f"launch.{word}: no stage of the study has this name or kind."
                    f"{did_you_mean(word, known)}"
                )
        for node in {(n.name, n.kind): n for n in plan.nodes.values()}.values():
            self.resources_of(node)

    @property
    def stays(self) -> bool:
        """Whether `execute` returns when everything has ended, and not when it is submitted."""
        return True

    @abstractmethod
    def width(self, plan: Plan) -> int:
        """About how many stages of ``plan`` are executed at a time."""

    @abstractmethod
    def execute(
        self,
        plan: Plan,
        place: Place,
        *,
        note: Callable[[str], None],
        settled: Callable[[Outcome], None],
    ) -> list[Outcome]:
        """Execute what is not done of ``plan``; ``settled`` hears of every outcome at once.

        Raises:
            Interrupted: SIGINT or SIGTERM came.
        """


def launch_of(mapping: Any, path: str = "launch") -> Launch:
    """Make the launch that a configuration states, of the class that its ``kind`` names.

    Raises:
        ConfigError: an unknown kind, an unknown or unsuitable key.
    """
    if isinstance(mapping, Launch):
        return mapping
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path}: expected a mapping, got {mapping!r}.")
    kind = typed.convert(Literal[tuple(KINDS)], mapping.get("kind"), f"{path}.kind")
    module, _, name = KINDS[kind].partition(":")
    cls = getattr(importlib.import_module(module), name)
    own = {f.name for f in fields(cls)} - {"overrides"}
    overrides = {key: value for key, value in mapping.items() if key not in own}
    for key, value in overrides.items():
        if not isinstance(value, Mapping):
            known = ", ".join(sorted(own))
            raise ConfigError(
                f"{path}.{key}: unknown key of launch={kind}.{did_you_mean(key, own)} The keys are "
                f"{known}, and the resources of a kind of stage: {path}.reward.gpus and the like."
            )
    stated = {key: value for key, value in mapping.items() if key in own}
    default = overridden(Resources(), stated.get("default") or {}, f"{path}.default")
    for word, given in overrides.items():
        overridden(default, given, f"{path}.{word}")
    said = {
        word: {key: value for key, value in given.items() if value is not None}
        for word, given in overrides.items()
    }
    kept = {word: given for word, given in said.items() if given}
    return typed.build(cls, {**stated, "default": default, "overrides": kept}, path)


@dataclass(frozen=True, kw_only=True)
class InProcess(Launch):
    """One stage after another in this process."""

    kind: Literal["inprocess"]
    jobs: Annotated[int, Range(min=1)] | Literal["auto"] = 1  # stages at a time: one

    def __post_init__(self) -> None:
        """Refuse what one process does not do."""
        if self.jobs not in (1, "auto"):
            raise ConfigError(
                f"jobs is {self.jobs}, but launch=inprocess executes one stage at a time; "
                f"use launch=local launch.jobs={self.jobs}."
            )
        if self.default != Resources() or self.overrides:
            raise ConfigError(
                "launch=inprocess executes every stage in the process of the command, and gives no "
                "resources; use launch=local, or launch=slurm."
            )

    def width(self, plan: Plan) -> int:
        """One."""
        return 1

    def execute(
        self,
        plan: Plan,
        place: Place,
        *,
        note: Callable[[str], None],
        settled: Callable[[Outcome], None],
    ) -> list[Outcome]:
        """Execute the plan here, one stage after another."""
        if not plan.pending():
            return Board(plan).results()
        return run_here(plan, place, logs_of(place), note, settled)


@dataclass(frozen=True, kw_only=True)
class Local(Launch):
    """Several stages at a time in worker processes of this machine."""

    kind: Literal["local"]
    jobs: Annotated[int, Range(min=1)] | Literal["auto"]  # stages at a time

    def check(self, plan: Plan) -> None:
        """Refuse what one machine does not have, besides resources of unknown stages."""
        super().check(plan)
        for node in {(n.name, n.kind): n for n in plan.nodes.values()}.values():
            asked = self.resources_of(node)
            if foreign := [name for name in SCHEDULER_ONLY if getattr(asked, name)]:
                raise ConfigError(
                    f"launch: {node.name} asks for {', '.join(foreign)}, and launch=local has no "
                    "scheduler that would give or limit it."
                )
            if asked.nodes > 1:
                raise ConfigError(
                    f"launch: {node.name} asks for {asked.nodes} nodes, and launch=local is this "
                    "machine. Start the command on each of them: `torchrun --nnodes "
                    f"{asked.nodes} --nproc_per_node {asked.ranks} --rdzv_backend c10d "
                    "--rdzv_endpoint HOST:PORT -m alignlab run …`, with launch=inprocess."
                )

    def width(self, plan: Plan, *, gpus: int | None = None, cores: int | None = None) -> int:
        """How many stages of ``plan`` to execute at a time."""
        gpus = len(visible_gpus()) if gpus is None else gpus
        cores = usable_cores() if cores is None else cores
        each = self._largest(plan)
        if gpus and each > 1 and each * (1 if self.jobs == "auto" else self.jobs) > gpus:
            raise ConfigError(
                f"launch: {'a stage' if self.jobs == 'auto' else f'{self.jobs} stages at a time'} "
                f"of {each} processes with a GPU each, and this machine has {gpus}."
            )
        wanted = (gpus or cores) // each if self.jobs == "auto" else self.jobs
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
        """Execute the plan in worker processes, the cores or GPUs divided between them."""
        if not plan.pending():
            return Board(plan).results()
        gpus = [] if place.engine.get("device") == "cpu" else visible_gpus()
        jobs = self.width(plan, gpus=len(gpus), cores=usable_cores())
        stated, cores = place.engine.get("threads"), usable_cores()
        threads = max(1, cores // jobs)
        alone = Board(plan).alone()
        each = self._largest(plan)

        def task_of(node: Node) -> Task:
            whole = cores if node.run in alone else threads
            asked = self.resources_of(node)
            given = stated or asked.cpus or max(1, whole // asked.ranks)
            return Task.of(node, replace(place, engine={**place.engine, "threads": given}))

        def variables(slot: int, processes: int) -> Mapping[str, str]:
            own = str(stated or max(1, threads // processes))
            shared = dict.fromkeys(THREAD_VARIABLES, own)
            first = slot * each
            found = [gpus[i % len(gpus)] for i in range(first, first + processes)] if gpus else []
            return {**shared, "CUDA_VISIBLE_DEVICES": ",".join(found)} if found else shared

        logs = logs_of(place)
        pool = Pool(plan, task_of, jobs, variables, logs, note, settled, command, self._processes)
        return pool.run()

    def _processes(self, node: Node) -> int:
        return self.resources_of(node).ranks

    def _largest(self, plan: Plan) -> int:
        return max((self._processes(node) for node in plan.pending()), default=1)


def logs_of(place: Place) -> Path:
    """Folder of the logs of a study."""
    return Store(Path(place.store)).studies / place.study / "logs"


def visible_gpus() -> list[str]:
    """Ids of the NVIDIA GPUs that this process may use, without importing torch."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    if stated is not None:
        return [part.strip() for part in stated.split(",") if part.strip() not in ("", "-1")]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(folder.iterdir())))] if folder.is_dir() else []
