"""One of the processes: trains a few steps, and says what it holds. Started by run.py.

``python worker.py JOB.json ANSWER.json`` in the environment that torchrun would give.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(field)


def resident() -> int:
    """Resident memory after the allocator has given back what nobody uses."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status("VmRSS")


def tensors() -> int:
    """Bytes of all tensors that this process can reach, each storage once."""
    import torch

    found: dict[int, int] = {}
    for item in gc.get_objects():
        if not isinstance(item, torch.Tensor):
            continue
        for tensor in (item, item.grad if item.is_leaf else None, getattr(item, "ds_tensor", None)):
            if tensor is not None and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


class Measure:
    """Looks at the process while it trains: at the first step's end, and at the last's."""

    def __init__(self, steps: int, before: int) -> None:
        self.steps, self.before = steps, before
        self.found: dict[str, Any] = {}
        self.began = 0.0

    def at(self, step: int) -> None:
        """After ``step`` was applied. From the second step on all states are there."""
        if step == 1:
            self.found["resident_between_steps"] = resident() - self.before
            self.found["tensor_bytes"] = tensors()
            Path("/proc/self/clear_refs").write_text("5")
            self.began = time.monotonic()
        if step == self.steps:
            self.found["seconds_per_step"] = (time.monotonic() - self.began) / (self.steps - 1)
            self.found["peak_in_steps"] = status("VmHWM") - self.before


def main(job: dict[str, Any], answer: Path) -> None:
    """Train as the job says and write what was found."""
    from alignlab import typed
    from alignlab.compose import compose
    from alignlab.engine.distributed import Engine
    from alignlab.engine.state import TrainState
    from alignlab.plan import build_stage
    from alignlab.run import Store

    config = compose(job["overrides"])
    stage = build_stage(config["stages"]["sft"], "stages.sft")
    engine = typed.build(Engine, config["engine"], "engine")
    engine.workers()
    import peft  # noqa: F401  (what every stage imports sooner or later is no cost of the model)
    import transformers.models.llama.modeling_llama  # noqa: F401

    measure = Measure(job["steps"], resident())
    finish = TrainState.finish_step

    def finished(state: TrainState, step: int, *rest: Any) -> None:
        finish(state, step, *rest)
        measure.at(step)

    TrainState.finish_step = finished  # type: ignore[method-assign]
    run = Store(Path(job["store"])).run("sft", job["key"])
    stage.run({}, run, engine)
    workers = engine.workers()
    parts = workers.gather(measure.found)
    if workers.is_main:
        record = run.record
        names = ("sharding", "params_total", "params_trained", "tokens_trained", "prompts", "dtype")
        kept = {name: record.get(name) for name in names}
        answer.write_text(json.dumps({**kept, "processes": parts}), encoding="utf-8")
    workers.barrier()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
