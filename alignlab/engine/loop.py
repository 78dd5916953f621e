"""The one training loop: every stage that trains hands it a ``Work`` and reads the metrics.

A step is: the work gives micro-batches; each goes forward and backward inside the view it trains;
gradients are summed over the processes, clipped, and applied. What a step computes is a function of
(seed, step, weights), so a run that is killed and continued ends in the same bits.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from alignlab import interruption
from alignlab.engine import checkpoint
from alignlab.engine.distributed import Engine
from alignlab.engine.metrics import Metrics
from alignlab.engine.optimizer import Optimizer
from alignlab.engine.progress import Progress
from alignlab.engine.state import TrainState
from alignlab.engine.stopping import EarlyStopping
from alignlab.engine.work import Evaluate, Micro, TrainResult, Work
from alignlab.errors import ConfigError, DivergenceError, Interrupted

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.models.backbone import Backbone, View
    from alignlab.run import Run

__all__ = ["Micro", "TrainResult", "Work", "train"]


def train(
    work: Work,
    backbone: Backbone,
    views: Sequence[str],
    *,
    optimizer: Optimizer,
    steps: int,
    run: Run,
    engine: Engine,
    seed: int,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 0,
    early_stopping: EarlyStopping | None = None,
    after_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train ``views`` of ``backbone`` for ``steps`` steps, or continue the run's checkpoint.

    Afterwards the backbone holds the weights to save: the best ones under early stopping, else the
    moving average if there is one, else the last. Metrics go to ``run`` under the 1-based step.

    ``after_step(step)`` is called on every process after each step that was applied, before its
    evaluation and checkpoint; what it changes beside trained weights belongs in ``work.state()``.

    Raises:
        ConfigError: early stopping without evaluations, or on a metric they do not give.
        Interrupted: a signal came (see `interruption`); the last whole step is saved.
        DivergenceError: a loss or a gradient is not finite.
    """
    if early_stopping:
        _require_evaluations(evaluate_every if evaluate else 0, steps, run)
    workers = engine.workers()
    checkpoint.seed_all(seed, workers.rank)
    state = TrainState(work, backbone, views, optimizer, early_stopping, engine)
    first = _begin(state, run, engine, steps)
    run.update_record(steps=steps)  # how far there is to go, for who watches
    name = run.path.name
    shown = engine.progress and workers.is_main
    with (
        interruption.noting("saving a checkpoint, then leaving", alone=workers.world == 1),
        Progress(name, steps, start=first - 1, shown=shown) as progress,
    ):
        for step in range(first - int(state.owes_evaluation), steps + 1):
            if state.stopped:
                break
            rate = optimizer.set_rate(state.optimizer, step, steps)
            try:
                _step(work, backbone, state, run, step, after_step)
                if evaluate and evaluate_every and step % evaluate_every == 0:
                    state.evaluate(evaluate, run)
                logged = None
                if step % engine.log_every == 0 or step == steps or state.stopped:
                    logged = state.log(run, {"learning_rate": rate})
                progress.update(step, logged)
                state.save_when_due(run, engine, more=step < steps)
            except Interrupted as error:
                state.save(run, engine)
                raise _interrupted(error.signal_number, state.step, steps) from None
    return _finished(state, run)


def _finished(state: TrainState, run: Run) -> TrainResult:
    """Leave the weights to save, and record what there is to know of them."""
    if holdings := state.update.holdings():
        run.update_record(sharding=holdings)
    result, change = state.result(), state.update.change
    best = result.best_step
    if change is not None and best is not None and (told := change.taken_early(best)):
        run.warn(told)
    return result


def _require_evaluations(every: int, steps: int, run: Run) -> None:
    """Refuse early stopping without evaluations, and say where the first comes too late."""
    if not every:
        raise ConfigError(
            "early_stopping needs evaluations: set evaluate_every above 0, and keep rows for them."
        )
    if every > steps:
        run.warn(
            f"early_stopping does nothing: evaluate_every={every}, and there are {steps} steps."
        )


def _begin(state: TrainState, run: Run, engine: Engine, steps: int) -> int:
    """Make ready for ``steps`` steps, read a checkpoint if there is one; gives the next step."""
    if engine.zero and not state.update.holdings():
        run.warn(f"engine.zero={engine.zero}: one process has nobody to share with and holds all.")
    if state.update.change is not None:
        state.update.change.begin(steps)
    return state.resume(run) + 1


def _step(
    work: Work,
    backbone: Backbone,
    state: TrainState,
    run: Run,
    step: int,
    after: Callable[[int], None] | None,
) -> None:
    """Do optimizer step ``step``, or raise before anything has changed."""
    if step <= state.step:
        return  # resumed behind it, with its evaluation still to do
    began = time.perf_counter()
    update = state.update
    state.open_step()
    backbone.train_mode(False)
    micros = work.micros(step)
    micros = update.even(micros)
    backbone.train_mode(True)
    losses, metrics = [], Metrics()
    for micro in micros:
        interruption.check()
        with backbone.view(micro.view) as view:  # open until the backward is done
            loss, measured = work.loss(view, micro) if micro.data is not None else nothing(view)
            update.backward(loss, micro.view)
        losses.append(loss.detach())
        metrics.add(measured)
    values, applied = update.apply(losses)
    state.measure(metrics, losses=values[1:], norm=values[0])
    if not applied:
        raise _not_finite(state, run, step, micros, metrics, values)
    state.finish_step(step, metrics, sum(m.tokens for m in micros), time.perf_counter() - began)
    if after is not None:
        after(step)


def nothing(view: View) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """Loss and metrics of a micro-batch that is there only so that all make the same passes."""
    return view.nothing(), {}


def _not_finite(
    state: TrainState,
    run: Run,
    step: int,
    micros: Sequence[Micro],
    metrics: Metrics,
    values: Sequence[float],
) -> DivergenceError:
    """Log what is known up to here, and name the micro-batch to look at."""
    last = state.log(run, {}) if state.step > state.logged else state.last_line
    state.step, state.metrics = step, metrics
    state.log(run, {})
    bad = [m.label for m, x in zip(micros, values[1:], strict=True) if not math.isfinite(x)]
    bad = [label for part in state.workers.gather(bad) for label in part]
    if bad:
        what = f"The loss of micro-batch {bad[0]} is not finite"
    else:
        labels = [x for part in state.workers.gather([m.label for m in micros]) for x in part]
        what = f"The gradient norm is {values[0]} (micro-batches {', '.join(labels)})"
    return DivergenceError(
        f"{what} at step {step}; the weights are still those of step {step - 1}. "
        f"Last metrics: {_listed(last) or 'none yet'}. Try a lower learning rate or a longer "
        "warm-up, and look at that batch."
    )


def _listed(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _interrupted(number: int, step: int, steps: int) -> Interrupted:
    name = signal.Signals(number).name
    return Interrupted(
        f"Stopped by {name} after step {step} of {steps}; a checkpoint is saved, and the same "
        "command continues it.",
        number,
    )
