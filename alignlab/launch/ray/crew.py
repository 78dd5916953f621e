"""Executes a plan on Ray: stages are placed as soon as their inputs are done and there is room."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab import interruption
from alignlab.errors import Interrupted
from alignlab.launch.board import Board
from alignlab.launch.outcomes import outcome_file, read_outcome, write_task
from alignlab.launch.ray.cluster import demand
from alignlab.launch.ray.host import PROGRAM, Host
from alignlab.launch.resources import Resources
from alignlab.launch.task import Outcome, Task

if TYPE_CHECKING:
    from alignlab.plan import Node, Plan

LOOK_SECONDS = 0.5  # between two looks at the signals
SAVING_SECONDS = 120.0  # that stages have to save what they have, once they were asked to stop
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class Placed:
    """A stage that was given to Ray: one actor for each machine."""

    task: Task
    resources: Resources
    hosts: list[Any]
    group: Any  # placement group, or None
    attempt: int
    pending: list[Any]  # what is waited for: addresses first, then exit codes
    running: bool = False
    began: float = field(default_factory=time.monotonic)


class Crew:
    """Hands ready stages to Ray until every node of the plan has an outcome.

    A stage whose machine is lost, or that was stopped by somebody else (a machine that is taken
    away), is started again ``retries`` times and goes on from its checkpoint.
    """

    def __init__(
        self,
        plan: Plan,
        task_of: Callable[[Node], Task],
        resources_of: Callable[[Node], Resources],
        *,
        limit: int | None,
        retries: int,
        logs: Path,
        note: Callable[[str], None],
        settled: Callable[[Outcome], None],
        ray: Any,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.board = Board(plan)
        self.ray, self.note, self.settled, self.logs = ray, note, settled, logs
        self._task_of, self._resources_of = task_of, resources_of
        self._limit, self._retries, self._program = limit, retries, tuple(program)
        self._placed: dict[str, Placed] = {}
        self._stopping: int | None = None
        self._signals = 0
        self._actor = ray.remote(Host)

    def run(self) -> list[Outcome]:
        """Execute the plan.

        Raises:
            Interrupted: a signal came; every stage has saved what it had and left.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        with self._heeding():
            try:
                while not self.board.finished and not self._stopping:
                    self._fill()
                    self._look()
            finally:
                self._shut_down()
        if self._stopping:
            raise Interrupted(f"stopped by {signal.Signals(self._stopping).name}.", self._stopping)
        return self.board.results()

    def _fill(self) -> None:
        for node in self.board.ready():
            if self._limit is not None and len(self._placed) >= self._limit:
                return
            self.board.start(node.run)
            self._place(self._task_of(node), self._resources_of(node), attempt=0)

    def _place(self, task: Task, resources: Resources, attempt: int) -> None:
        """Ask Ray for the machines of a stage; it starts when all of them are there."""
        needs = demand(resources)
        outcome_file(task.place, task.run).unlink(missing_ok=True)
        options: dict[str, Any] = {
            "num_cpus": needs["CPU"],
            "num_gpus": needs.get("GPU", 0),
            "memory": needs.get("memory"),
            "max_concurrency": 2,  # `stop` while `run` waits
            "max_restarts": 0,
            "name": f"{task.run}-{attempt}-{time.time_ns()}",
        }
        group = None
        if resources.nodes > 1:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            group = self.ray.util.placement_group([needs] * resources.nodes, "STRICT_SPREAD")
            strategies = [
                PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)
                for i in range(resources.nodes)
            ]
            placings: list[dict[str, Any]] = [{"scheduling_strategy": s} for s in strategies]
        else:
            placings = [{}]
        hosts = [self._actor.options(**options | {"name": f"{options['name']}-{i}"}, **p).remote()
                 for i, p in enumerate(placings)]  # fmt: skip
        pending = [host.address.remote() for host in hosts]
        self._placed[task.run] = Placed(task, resources, hosts, group, attempt, pending)

    def _look(self) -> None:
        """Wait a moment for whatever ends first, and go on with it."""
        waiting = {ref: placed for placed in self._placed.values() for ref in placed.pending}
        if not waiting:
            return
        done, _ = self.ray.wait(list(waiting), timeout=LOOK_SECONDS)
        for placed in {id(waiting[ref]): waiting[ref] for ref in done}.values():
            self._advance(placed)

    def _advance(self, placed: Placed) -> None:
        ready, _ = self.ray.wait(placed.pending, num_returns=len(placed.pending), timeout=0)
        if len(ready) < len(placed.pending) and not self._broken(ready):
            return
        try:
            found = self.ray.get(placed.pending, timeout=SAVING_SECONDS)
        except self.ray.exceptions.RayError as error:
            self._lost(placed, error)
            return
        if placed.running:
            self._ended(placed, [code for codes in found for code in codes])
        else:
            self._start(placed, found[0])

    def _broken(self, refs: list[Any]) -> bool:
        """Whether one of these is an error: the machine of one actor is gone."""
        try:
            self.ray.get(refs, timeout=0)
        except self.ray.exceptions.RayError:
            return True
        return False

    def _start(self, placed: Placed, address: tuple[str, int]) -> None:
        file = str(write_task(placed.task))
        placed.began, placed.running = time.monotonic(), True
        placed.pending = [
            host.run.remote(self._program, file, variables_of(placed.resources, index, address))
            for index, host in enumerate(placed.hosts)
        ]

    def _ended(self, placed: Placed, codes: list[int]) -> None:
        self._release(placed)
        task = placed.task
        outcome = read_outcome(task.place, task.run)
        seconds = time.monotonic() - placed.began
        if outcome is None:
            log = self.logs / f"{task.run}.log"
            ends = ", ".join(sorted({_how(code) for code in codes if code})) or "exit code 0"
            hint = " (often: out of memory)" if -signal.SIGKILL in codes else ""
            reason = (
                f"its process ended with {ends}{hint}; the next run continues from the last "
                f"checkpoint. Its output: {log}"
            )
            outcome = Outcome(task.run, task.name, "failed", seconds, reason, 1, "failed")
        if outcome.status == "interrupted":
            if not self._stopping:
                self._again(placed, "was stopped by somebody else")
            return
        self._settle(outcome)

    def _lost(self, placed: Placed, error: Exception) -> None:
        self._release(placed)
        if self._stopping:
            return
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        self._again(placed, f"lost its machine or process ({lines[0] if lines else error!r})")

    def _again(self, placed: Placed, why: str) -> None:
        task = placed.task
        if placed.attempt < self._retries:
            self.note(f"[{task.run}] {why}; it is started again from its last checkpoint.")
            self._place(task, placed.resources, placed.attempt + 1)
            return
        times = placed.attempt + 1
        reason = f"it {why}, {times} times; the next run continues from the last checkpoint."
        seconds = time.monotonic() - placed.began
        self._settle(Outcome(task.run, task.name, "failed", seconds, reason, 1, "failed"))

    def _settle(self, outcome: Outcome) -> None:
        for each in self.board.settle(outcome):
            self.settled(each)

    def _release(self, placed: Placed) -> None:
        """Give back what a stage was given."""
        for host in placed.hosts:
            self.ray.kill(host)
        if placed.group is not None:
            self.ray.util.remove_placement_group(placed.group)
        self._placed.pop(placed.task.run, None)

    def _shut_down(self) -> None:
        """End all stages: those that wait for room at once, the others after their checkpoint."""
        for placed in [p for p in self._placed.values() if not p.running]:
            self._release(placed)
        told = 0
        deadline = time.monotonic() + SAVING_SECONDS
        while self._placed and time.monotonic() < deadline:
            if told <= min(self._signals, 1):
                told += 1
                for placed in self._placed.values():
                    for host in placed.hosts:
                        host.stop.remote(int(self._stopping or signal.SIGTERM))
            self._look()
        for placed in list(self._placed.values()):
            self._release(placed)

    @contextmanager
    def _heeding(self) -> Iterator[None]:
        """Note signals: they are heeded between two steps. Ray has set handlers of its own."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def noted(number: int, _: object) -> None:
            if self._stopping is None:
                self.note("stopping: every stage saves a checkpoint first; again to stop at once.")
            self._stopping = number
            self._signals += 1

        before = {n: signal.signal(n, noted) for n in interruption.SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def variables_of(
    resources: Resources, node: int, address: tuple[str, int]
) -> list[Mapping[str, str]]:
    """Environment of every process of a stage on one of its machines, by torchrun's names."""
    threads = dict.fromkeys(THREADS, str(resources.cpus or 1))
    if resources.world == 1:
        return [threads]
    shared = {
        **threads,
        "MASTER_ADDR": address[0],
        "MASTER_PORT": str(address[1]),
        "WORLD_SIZE": str(resources.world),
        "LOCAL_WORLD_SIZE": str(resources.ranks),
    }
    return [
        {**shared, "RANK": str(node * resources.ranks + local), "LOCAL_RANK": str(local)}
        for local in range(resources.ranks)
    ]


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
