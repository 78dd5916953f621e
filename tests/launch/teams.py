"""A stage that several processes work on together, every process with an end of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import toys

from alignlab import interruption, spec
from alignlab.engine.distributed import Engine
from alignlab.errors import ConfigError, DivergenceError
from alignlab.run import Run
from alignlab.stages.stage import Role, Stage

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Team(Stage):
    """Sums ``value`` times (rank + 1) over the processes, once a step."""

    kind: ClassVar[str] = "team"
    together: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {"left": Role(("toy", "team"), optional=True)}
    value: int
    steps: int = 1
    pause: float = 0.0
    # By rank, as text: what a process does in its first step. One without an entry does its work.
    ends: Mapping[str, str] | None = None

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        import torch

        workers = engine.workers()
        run = workers.own(run)
        total = 0
        for step in range(1, self.steps + 1):
            if step == 1:
                self._end((self.ends or {}).get(str(workers.rank), ""))
            time.sleep(self.pause)
            interruption.check()
            total = int(workers.sum(torch.tensor([self.value * (workers.rank + 1)])))
            run.log(step, {"loss": 1.0 / step})
        if workers.is_main:
            run.model_dir.mkdir(exist_ok=True)
            (run.model_dir / "total").write_text(str(total))
        left = int(inputs["left"].summary()["total"]) if inputs else 0
        run.update_record(summary={"total": total + left}, pid=os.getpid())

    def _end(self, end: str) -> None:
        if end == "mistake":
            raise ConfigError("this team cannot be had.")
        if end == "divergence":
            raise DivergenceError("the loss is not finite.")
        if end == "bug":
            raise ZeroDivisionError("a bug")
        if end == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "stop":
            os.kill(os.getpid(), signal.SIGUSR1)
        if end == "late":
            time.sleep(600)


def locate(target: Any, path: str) -> Any:
    """Find teams and toys as well as what is in the package."""
    return {"teams.Team": Team, "toys.Toy": toys.Toy}.get(target) or spec.locate(target, path)


def team(value: int, **given: Any) -> dict[str, Any]:
    """Write the configuration of a team."""
    inputs = {role: given.pop(role) for role in ("left",) if role in given}
    return {"_target_": "teams.Team", "seed": 0, "inputs": inputs, "value": value, **given}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(script: str, *arguments: str, processes: int = 2) -> list[subprocess.Popen[str]]:
    """Start a script of this folder in several processes, as a launcher without an agent does."""
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def finished(started: list[subprocess.Popen[str]], timeout: float = 300) -> tuple[list[int], str]:
    """Exit codes and all that was printed to stderr."""
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], "\n".join(errors)
