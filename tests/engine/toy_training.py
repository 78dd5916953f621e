"""A regression small enough to check by hand; also a script, for tests that need a process to kill.

The rows of a step are a function of (seed, step); micro-batches may be cut at will.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from alignlab.engine.distributed import Engine
from alignlab.engine.loop import Micro, train
from alignlab.engine.optimizer import Optimizer
from alignlab.run import Run

ROWS, FEATURES = 32, 3


def engine(**changes: Any) -> Engine:
    values: dict[str, Any] = {
        "device": "cpu",
        "token_budget": 64,
        "threads": 1,
        "data_workers": 0,
        "zero": 0,
        "deterministic": True,
        "checkpoint_every_seconds": 1e9,
        "keep_checkpoints": 2,
        "log_every": 2,
        "progress": False,
    }
    return Engine(**{**values, **changes})


def optimizer(**changes: Any) -> Optimizer:
    values: dict[str, Any] = {
        "learning_rate": 0.05,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup": 0.2,
        "floor": 0.1,
        "max_grad_norm": 1.0,
    }
    return Optimizer(**{**values, **changes})


class ToyBackbone:
    """One small network per view; a view cannot be opened inside another."""

    def __init__(self, *views: str, dropout: float = 0.0, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.models = {
            view: nn.Sequential(nn.Linear(FEATURES, 4), nn.Dropout(dropout), nn.Linear(4, 1))
            for view in views or ("policy",)
        }
        self.active: str | None = None
        self.training = False
        self.config = SimpleNamespace(adapter=SimpleNamespace(rates={}))

    @contextmanager
    def view(self, name: str):
        assert self.active is None
        self.active = name
        try:
            yield self.models[name]
        finally:
            self.active = None

    def trainable_parameters(self, name: str) -> dict[str, nn.Parameter]:
        return dict(self.models[name].named_parameters())

    def changing(self, names: Any) -> None:
        """Nothing of it changes beside what the optimizer moves."""

    def train_mode(self, on: bool) -> None:
        self.training = on
        for model in self.models.values():
            model.train(on)

    def weights(self) -> dict[str, torch.Tensor]:
        return {
            f"{view}.{name}": value.detach().clone()
            for view, model in self.models.items()
            for name, value in model.state_dict().items()
        }


class ToyWork:
    """Squared error over ``batch`` rows per step, cut into micro-batches of ``micro`` rows.

    The first view trains on all of them, the others on the first micro-batch only.
    """

    def __init__(self, *, batch: int = 8, micro: int = 8, views=("policy",), world=(0, 1)) -> None:
        self.batch, self.micro, self.views, (self.rank, self.world) = batch, micro, views, world
        self.memory = 0.0  # a state that is not a function of the step
        self.before_loss: Any = None
        draw = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(ROWS, FEATURES, generator=draw)
        self.targets = self.inputs.sum(1, keepdim=True) + 0.5

    def micros(self, step: int) -> list[Micro]:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(step))
        rows = order[: self.batch].split(self.micro)
        self.memory = 0.9 * self.memory + float(torch.rand(()))  # uses the global random state
        micros = [
            Micro(view, part, 10 * len(part), f"{view}:{part.tolist()}")
            for i, part in enumerate(rows)
            for view in (self.views if i == 0 else self.views[:1])
        ]
        return micros[self.rank :: self.world]

    def loss(self, view: Any, micro: Micro):
        if self.before_loss:
            self.before_loss(micro)
        error = view(self.inputs[micro.data]) - self.targets[micro.data]
        errors = error.square().sum()
        loss = errors * (1 + 0.01 * self.memory) / self.batch
        return loss, {"error": (errors.detach(), len(micro.data)), "memory": (self.memory, 1.0)}

    def state(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def load_state(self, state: dict[str, Any]) -> None:
        self.memory = state["memory"]


def no_gloo_left() -> None:
    """A thread of gloo that lives on may abort the interpreter while it winds down."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()]
    left = [name for name in names if "gloo" in name]
    assert not left, left  # on stderr: the exit code says nothing any more


def main(folder: str, mode: str) -> None:
    """Train; ``slow`` takes its time, so that the parent can send a signal."""
    atexit.register(no_gloo_left)  # called after the engine's own, which ends the group
    workers = engine().workers()
    if workers.world > 1:  # what other libraries import at some time, each with the group at hand
        import deepspeed  # noqa: F401
        from torch.distributed.nn import functional  # noqa: F401
    slow = mode == "slow"
    many = mode.startswith("many")
    views = ["policy", "value"] if many else ["policy"]
    if many:  # 11 micro-batches: 6 on the first process, 5 on the second, which has all of "value"
        world = (workers.rank, workers.world)
        work = ToyWork(batch=10, micro=1, views=views, world=world)
        work.loss = _without_memory(work)  # type: ignore[method-assign]
    else:
        work = ToyWork()
    if mode == "many stop" and workers.rank == 1:  # one process alone gets the signal
        calls = iter(range(1, 1000))
        work.before_loss = lambda _: next(calls) == 14 and os.kill(os.getpid(), signal.SIGTERM)
    if mode == "many nan" and workers.rank == 1:  # one process alone has a bad batch
        work.targets = work.targets * float("nan")
    if slow:
        work.before_loss = lambda _: time.sleep(0.05)
    # Fresh weights may differ between processes; the loop begins with those of the first.
    backbone = ToyBackbone(*views, seed=workers.rank, dropout=0.2 if not many else 0.0)
    run = Run(Path(folder))
    result = train(
        work,
        backbone,
        views,
        optimizer=optimizer(ema=0.9 if not many else None),
        steps=40 if slow or mode == "fast" else 12,
        run=run,
        engine=engine(),
        seed=3,
        evaluate=lambda: {"zero": 0.0},
        evaluate_every=7,
    )
    if workers.is_main:
        torch.save(backbone.weights(), run.path / "weights.pt")
        (run.path / "result.json").write_text(
            json.dumps([result.steps, result.tokens, workers.world])
        )


def _without_memory(work: ToyWork):
    def loss(view: Any, micro: Micro):
        if work.before_loss:
            work.before_loss(micro)
        errors = (view(work.inputs[micro.data]) - work.targets[micro.data]).square().sum()
        return errors / work.batch, {"error": (errors.detach(), len(micro.data))}

    return loss


if __name__ == "__main__":
    from alignlab.errors import AlignlabError

    try:
        main(*sys.argv[1:])
    except AlignlabError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)  # threads of gloo may abort an interpreter that winds down
