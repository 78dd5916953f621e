"""All that a training carries from one step to the next, and so all that a checkpoint holds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from alignlab import interruption
from alignlab.engine import checkpoint
from alignlab.engine.distributed import Engine
from alignlab.engine.metrics import Metrics
from alignlab.engine.optimizer import Ema, Optimizer
from alignlab.engine.sharded import update_of
from alignlab.engine.shares import Section
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
        engine: Engine,
    ) -> None:
        self.work, self.backbone, self.workers = work, backbone, engine.workers()
        self.update = update_of(backbone, views, optimizer, engine)
        self.optimizer, held = self.update.optimizer, self.update.weights
        self.ema = Ema(list(held.values()), optimizer.ema) if optimizer.ema else None
        self.patience = Patience(early_stopping, held) if early_stopping else None
        self.metrics = Metrics()
        self.step = 0  # the last step that has been applied
        self.logged = 0  # the last step with a metrics line
        self.last_line: dict[str, float] = {}
        self.stopped = False
        self.owes_evaluation = False  # one was left unfinished by a signal
        self._before: dict[str, Any] | None = None  # what the open step may have changed already
        self._tokens = 0  # of this process
        self._seconds = 0.0  # of the earlier sessions
        self._began = self._saved = time.monotonic()

    def measure(self, metrics: Metrics, *, losses: Sequence[float], norm: float) -> None:
        """Add the loop's own metrics to a step's: its losses add up, over the processes too.

        Raises:
            ValueError: the work gave a metric one of the loop's own names.
        """
        if taken := [name for name in OWN_METRICS if name in metrics]:
            raise ValueError(f"the metrics {taken} are the loop's own; give yours other names")
        once = self._once
        metrics.add({"loss": (sum(losses), once), "grad_norm": (norm * once, once)})

    def open_step(self) -> None:
        """Remember what the step may change before it is applied, in case it is dropped."""
        self._before = self._passing()

    def finish_step(self, step: int, metrics: Metrics, tokens: int, seconds: float) -> None:
        """Count a step that has been applied; ``tokens`` are this process's."""
        self.step, self._before = step, None
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
        self.owes_evaluation = True
        try:
            with self._averaged() if self.ema else nullcontext():
                metrics = {name: float(value) for name, value in evaluate().items()}
                metrics = self.workers.from_main(metrics)
                if self.patience:
                    self.stopped = self.patience.update(self.step, metrics)
        finally:
            checkpoint.set_rng_state(states)
        self.owes_evaluation = False
        if self.workers.is_main:
            run.log(self.step, metrics, split="eval")

    def save_when_due(self, run: Run, engine: Engine, *, more: bool) -> None:
        """Save a checkpoint from time to time while there is ``more`` to come.

        Raises:
            Interrupted: a signal came, on any process.
        """
        due = more and time.monotonic() - self._saved >= engine.checkpoint_every_seconds
        # All processes must agree, whoever got the signal and whichever clock is ahead.
        number, due_somewhere = self.workers.highest(interruption.requested(), int(due))
        if number:
            raise interruption.interrupted(number)
        if due_somewhere:
            self.save(run, engine)

    def save(self, run: Run, engine: Engine) -> None:
        """Write a checkpoint of the last finished step; of a step that is open, what was before."""
        names = self.update.weights
        tensors: dict[str, Section] = {"weights": dict(names)}
        if self.ema:
            tensors["average"] = dict(zip(names, self.ema.average, strict=True))
        if self.patience:
            tensors["best"] = self.patience.best_weights
        whole, shares = self.update.parted(tensors)
        shared = {
            "moved": self.update.moved(),
            "patience": self.patience.state() if self.patience else None,
            "stopped": self.stopped,
            "owes_evaluation": self.owes_evaluation,
            "seconds": self.seconds,
        }
        if self.update.change is not None:
            shared["change"] = self.update.change.state()
        own = {
            **(self._before or self._passing()),
            "metrics": self.metrics.state(),
            "logged": (self.logged, self.last_line),
            "tokens": self._tokens,
        }
        checkpoint.save(
            run.state_dir,
            self.step,
            shared,
            own,
            whole=whole,
            shares=shares,
            workers=self.workers,
            keep=engine.keep_checkpoints,
        )
        self._saved = time.monotonic()

    def resume(self, run: Run) -> int:
        """Take back the newest checkpoint of ``run``, if any; returns its step, else 0."""
        loaded = checkpoint.load(run.state_dir, self.workers)
        if loaded is not None:
            shared, tensors = loaded.shared, loaded.tensors
            if tensors.names("weights") != set(self.update.weights):
                raise RuntimeError(f"{run.state_dir} is a checkpoint of other parameters")
            self.update.load(tensors, shared["moved"])
            if self.update.change is not None:
                self.update.change.load_state(shared["change"])
            if self.ema:
                self.ema.load(list(self.update.mine(tensors, "average").values()))
            if self.patience:
                best = self.update.mine(tensors, "best") if tensors.names("best") else {}
                # Copies: what was read is mapped from a file that the next checkpoint removes.
                self.patience.load(shared["patience"], {n: t.clone() for n, t in best.items()})
            self.step, self.stopped = loaded.step, shared["stopped"]
            self.owes_evaluation, self._seconds = shared["owes_evaluation"], shared["seconds"]
            if loaded.world == self.workers.world:
                self._take(loaded.worker(self.workers.rank))
            else:
                self._divide(loaded, run)
        if self.workers.is_main:
            run.rewind(self.step)  # a step after the checkpoint will be done, and logged, again
        return self.step

    def _take(self, own: Mapping[str, Any]) -> None:
        """Go on as the process that ``own`` is of."""
        self._tokens = own["tokens"]
        self.metrics.load(own["metrics"])
        self.logged, self.last_line = own["logged"]
        self.work.load_state(own["work"])
        checkpoint.set_rng_state(own["rng"])

    def _divide(self, loaded: checkpoint.Loaded, run: Run) -> None:
        """Go on where another number of processes stopped; sums go to the main one."""
        first = loaded.worker(0)
        self.logged, self.last_line = first["logged"]
        self.work.load_state(first["work"])
        if self.workers.is_main:
            for own in map(loaded.worker, range(loaded.world)):
                self._tokens += own["tokens"]
                self.metrics.take(own["metrics"])
        checkpoint.seed_all(self.step, self.workers.rank)
        run.warn(
            f"continued at step {self.step} on {self.workers.world} process(es) what "
            f"{loaded.world} began: the same up to rounding, but dropout draws other numbers."
        )

    def result(self) -> TrainResult:
        """Leave the weights to be saved in the backbone, and say what the training took."""
        best_step = None
        if self.patience and self.patience.best is not None:
            self.patience.restore()
            best_step = self.patience.best_step
        elif self.ema:
            self.ema.swap_in()
            self._cut()
        self.backbone.train_mode(False)
        self.update.close()
        tokens = self.workers.reduce_sums({"tokens": self._tokens})["tokens"]
        return TrainResult(self.step, int(tokens), self.seconds, best_step)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The moving average in place of the weights, as it would be saved."""
        assert self.ema is not None
        with self.ema.swapped():
            self._cut()
            yield

    def _cut(self) -> None:
        """An average remembers what a technique has set to zero since."""
        if self.update.change is not None:
            self.update.change.cut()

    @property
    def seconds(self) -> float:
        """Wall time of all sessions so far."""
        return self._seconds + time.monotonic() - self._began

    def _passing(self) -> dict[str, Any]:
        """What a step uses up and moves on by itself: random numbers, the state of the work."""
        return {"rng": checkpoint.rng_state(), "work": self.work.state()}

    @property
    def _once(self) -> float:
        """Count of what is the same on every process, so that it counts once."""
        return 1.0 if self.workers.is_main else 0.0
