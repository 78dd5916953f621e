"""All that a training carries from one step to the next, and so all that a checkpoint holds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from alignlab.engine import checkpoint
from alignlab.engine.distributed import Engine, Workers
from alignlab.engine.metrics import Metrics
from alignlab.engine.optimizer import Ema, Optimizer
from alignlab.engine.stopping import EarlyStopping, Patience
from alignlab.engine.work import Evaluate, TrainResult, Work

if TYPE_CHECKING:
    from alignlab.models.backbone import Backbone
    from alignlab.run import Run

OWN_METRICS = ("loss", "grad_norm", "tokens_per_second", "tokens", "learning_rate")


class TrainState:
    """Weights, optimizer, average, patience, counters and unlogged metrics of one training."""

    def __init__(
        self,
        work: Work,
        backbone: Backbone,
        views: Sequence[str],
        optimizer: Optimizer,
        early_stopping: EarlyStopping | None,
        workers: Workers,
    ) -> None:
        named = {view: backbone.trainable_parameters(view) for view in views}
        self.work, self.backbone, self.workers = work, backbone, workers
        self.weights = {f"{v}/{n}": p for v, own in named.items() for n, p in own.items()}
        self.parameters = list({id(p): p for p in self.weights.values()}.values())
        workers.broadcast_(self.parameters)
        self.optimizer = optimizer.build(named)
        self.ema = Ema(self.parameters, optimizer.ema) if optimizer.ema else None
        self.patience = Patience(early_stopping, self.weights) if early_stopping else None
        self.metrics = Metrics()
        self.step = 0  # the last step that has been applied
        self.logged = 0  # the last step with a metrics line
        self.last_line: dict[str, float] = {}
        self.stopped = False
        self._tokens = 0  # of this process
        self._seconds = 0.0  # of the earlier sessions
        self._began = time.monotonic()

    def measure(self, metrics: Metrics, *, losses: Sequence[float], norm: float) -> None:
        """Add the loop's own metrics to a step's: its losses add up, over the processes too.

        Raises:
            ValueError: the work gave a metric one of the loop's own names.
        """
        if taken := [name for name in OWN_METRICS if name in metrics]:
            raise ValueError(f"the metrics {taken} are the loop's own; give yours other names")
        once = self._once
        metrics.add({"loss": (sum(losses), once), "grad_norm": (norm * once, once)})

    def finish_step(self, step: int, metrics: Metrics, tokens: int, seconds: float) -> None:
        """Count a step that has been applied; ``tokens`` are this process's."""
        self.step = step
        self._tokens += tokens
        if self.ema:
            self.ema.update()
        metrics.add({"tokens_per_second": (tokens, seconds * self._once)})
        self.metrics.merge(metrics)

    def log(self, run: Run, extra: Mapping[str, float]) -> dict[str, float]:
        """Write one line with the means since the last one; returns it on every process."""
        self.metrics.add({"tokens": (self._tokens, self._once)})
        self.last_line = {**self.metrics.flush(self.workers), **extra}
        self.logged = self.step
        if self.workers.is_main:
            run.log(self.step, self.last_line)
        return self.last_line

    def evaluate(self, evaluate: Evaluate, run: Run) -> None:
        """Evaluate the weights that would be saved now; how often this is done changes no weight.

        The random states are put back afterwards.
        """
        states = checkpoint.rng_state()
        self.backbone.train_mode(False)
        with self.ema.swapped() if self.ema else nullcontext():
            metrics = {name: float(value) for name, value in evaluate().items()}
            metrics = self.workers.from_main(metrics)
            if self.patience:
                self.stopped = self.patience.update(self.step, metrics)
        checkpoint.set_rng_state(states)
        if self.workers.is_main:
            run.log(self.step, metrics, split="eval")

    def save(self, run: Run, engine: Engine) -> None:
        """Write a checkpoint of the last finished step."""
        shared = {
            "weights": {name: p.detach() for name, p in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.average if self.ema else None,
            "patience": self.patience.state() if self.patience else None,
            "stopped": self.stopped,
            "seconds": self.seconds,
        }
        own = {
            "rng": checkpoint.rng_state(),
            "work": self.work.state(),
            "metrics": self.metrics.state(),
            "logged": (self.logged, self.last_line),
            "tokens": self._tokens,
        }
        checkpoint.save(
            run.state_dir,
            self.step,
            shared,
            own,
            workers=self.workers,
            keep=engine.keep_checkpoints,
        )

    def resume(self, run: Run) -> int:
        """Take back the newest checkpoint of ``run``, if any; returns its step, else 0."""
        loaded = checkpoint.load(run.state_dir, self.workers)
        if loaded is not None:
            shared, own = loaded.shared, loaded.own
            if shared["weights"].keys() != self.weights.keys():
                raise RuntimeError(f"{run.state_dir} is a checkpoint of other parameters")
            for name, saved in shared["weights"].items():
                self.weights[name].detach().copy_(saved)
            self.optimizer.load_state_dict(shared["optimizer"])
            if self.ema:
                self.ema.load(shared["ema"])
            if self.patience:
                self.patience.load(shared["patience"])
            self.step, self.stopped = loaded.step, shared["stopped"]
            self._seconds, self._tokens = shared["seconds"], own["tokens"]
            self.metrics.load(own["metrics"])
            self.logged, self.last_line = own["logged"]
            self.work.load_state(own["work"])
            checkpoint.set_rng_state(own["rng"])
        if self.workers.is_main:
            run.rewind(self.step)  # a step after the checkpoint will be done, and logged, again
        return self.step

    def result(self) -> TrainResult:
        """Leave the weights to be saved in the backbone, and say what the training took."""
        best_step = None
        if self.patience and self.patience.best is not None:
            self.patience.restore()
            best_step = self.patience.best_step
        elif self.ema:
            self.ema.swap_in()
        self.backbone.train_mode(False)
        tokens = self.workers.reduce_sums({"tokens": self._tokens})["tokens"]
        return TrainResult(self.step, int(tokens), self.seconds, best_step)

    @property
    def seconds(self) -> float:
        """Wall time of all sessions so far."""
        return self._seconds + time.monotonic() - self._began

    @property
    def _once(self) -> float:
        """Count of what is the same on every process, so that it counts once."""
        return 1.0 if self.workers.is_main else 0.0
