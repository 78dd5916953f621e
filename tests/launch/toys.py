"""A stage that adds numbers, for tests of launching: no model, no data, and every way to end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from alignlab import spec
from alignlab.engine.distributed import Engine
from alignlab.errors import ConfigError, DivergenceError, Interrupted, TrainingError
from alignlab.run import Run
from alignlab.stages.stage import Role, Stage

ENGINE = {
    "device": "cpu",
    "token_budget": 64,
    "threads": None,
    "data_workers": 0,
    "zero": 0,
    "offload": "none",
    "memory_gb": None,
    "deterministic": False,
    "checkpoint_every_seconds": 60,
    "keep_checkpoints": 1,
    "log_every": 1,
    "progress": False,
}
TRACKING = {"mode": "disabled", "project": "test", "entity": None}


@dataclass(frozen=True, kw_only=True)
class Toy(Stage):
    """Adds its value to those of its inputs, in ``steps`` steps of ``pause`` seconds."""

    kind: ClassVar[str] = "toy"
    roles: ClassVar[Mapping[str, Role]] = {
        "left": Role(("toy",), optional=True),
        "right": Role(("toy",), optional=True),
        "any": Role(("toy",), optional=True, many=True, tolerant=True),
    }
    value: int
    steps: int = 1
    pause: float = 0.0
    end: Literal["well", "mistake", "trouble", "bug", "death", "divergence"] = "well"

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        state = run.state_dir / "step.json"
        first = json.loads(state.read_text())["step"] if state.is_file() else 0
        print(f"{run.name} from step {first}")  # on stdout, as a library would
        run.sample({"from": first})
        run.update_record(pid=os.getpid(), began=time.time())
        for step in range(first + 1, self.steps + 1):
            try:
                time.sleep(self.pause)
            except Interrupted:
                run.state_dir.mkdir(exist_ok=True)
                state.write_text(json.dumps({"step": step}))
                raise
            run.log(step, {"loss": 1.0 / step})
        self._end()
        total = self.value + sum(int(i.summary()["total"]) for i in inputs.values() if i.done)
        run.model_dir.mkdir(exist_ok=True)
        (run.model_dir / "total").write_text(str(total))
        run.update_record(
            summary={"total": total},
            env_threads=os.environ.get("OMP_NUM_THREADS"),
            engine_threads=engine.threads,
            ended=time.time(),
        )

    def _end(self) -> None:
        if self.end == "mistake":
            raise ConfigError("this toy cannot be had.")
        if self.end == "trouble":
            raise TrainingError("the toy is broken.")
        if self.end == "divergence":
            raise DivergenceError("the loss is not finite.")
        if self.end == "bug":
            raise ZeroDivisionError("a bug")
        if self.end == "death":
            os.kill(os.getpid(), signal.SIGKILL)


def locate(target: Any, path: str) -> Any:
    """Find toys as well as what is in the package."""
    return Toy if target == "toys.Toy" else spec.locate(target, path)


def toy(value: int, seed: int = 0, **given: Any) -> dict[str, Any]:
    """Write the configuration of a toy."""
    inputs = {role: given.pop(role) for role in ("left", "right") if role in given}
    inputs |= {f"any/{i}": name for i, name in enumerate(given.pop("any", ()), start=1)}
    return {"_target_": "toys.Toy", "seed": seed, "inputs": inputs, "value": value, **given}


def use_toys(patch: Any) -> None:
    """Let plans find toys."""
    patch("alignlab.plan.locate", locate)


assert {f.name for f in fields(Engine)} == set(ENGINE)
ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("toy_worker.py")
