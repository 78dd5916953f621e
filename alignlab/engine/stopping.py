"""When a training ends before its last step: a metric that stopped improving, or a signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from alignlab import interruption
from alignlab.errors import ConfigError, Interrupted, did_you_mean
from alignlab.typed import Range

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.engine.distributed import Workers

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Stop after ``patience`` evaluations in a row without a gain; the best weights come back."""

    metric: str  # a name that the evaluation returns
    mode: Literal["min", "max"]
    patience: Annotated[int, Range(min=1)]  # evaluations without a gain that end the training
    min_delta: Annotated[float, Range(min=0)]  # a smaller gain is none, in the metric's unit


class Patience:
    """Follows one metric over the evaluations and keeps a copy of the best weights."""

    def __init__(self, rule: EarlyStopping, weights: Mapping[str, Tensor]) -> None:
        self.rule = rule
        self._weights = weights
        self.best: float | None = None
        self.best_step = 0
        self.bad = 0  # evaluations since the best
        self.best_weights: dict[str, Tensor] = {}  # none before the first evaluation

    def update(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take in one evaluation; True when training should stop.

        Raises:
            ConfigError: the evaluation has no such metric, or none at all.
        """
        name = self.rule.metric
        if not metrics:
            raise ConfigError(
                "early_stopping: the evaluation measures nothing, because there are no held-out "
                "rows. Keep some for validation, or set early_stopping=null."
            )
        if name not in metrics:
            raise ConfigError(
                f"early_stopping.metric is '{name}', but the evaluation gives "
                f"{', '.join(sorted(metrics))}.{did_you_mean(name, metrics)}"
            )
        if self._improves(metrics[name]):
            self.best, self.best_step, self.bad = metrics[name], step, 0
            self.best_weights = {
                key: value.detach().to("cpu", copy=True) for key, value in self._weights.items()
            }
        else:
            self.bad += 1
        return self.bad >= self.rule.patience

    def restore(self) -> None:
        """Put the weights of the best evaluation back, if there has been one."""
        for key, value in self.best_weights.items():
            self._weights[key].detach().copy_(value)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside ``best_weights``."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "bad": self.bad,
        }

    def load(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` returned, and the best weights."""
        self.best, self.best_step, self.bad = state["best"], state["best_step"], state["bad"]
        self.best_weights = dict(weights)

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        gain = value - self.best if self.rule.mode == "max" else self.best - value
        return gain > self.rule.min_delta


def together(workers: Workers, work: Callable[[], T]) -> T:
    """Do ``work`` on every process; where a signal ended it on one, it ends on all.

    ``work`` may call `interruption.check`, and must not wait for another process.

    Raises:
        Interrupted: a signal came while it was done, on this process or on another.
    """
    done: T | None = None
    number = 0
    try:
        with interruption.leavable():
            done = work()
    except Interrupted as error:
        number = error.signal_number
    [number] = workers.highest(number)
    if number:
        raise interruption.interrupted(number)
    return cast("T", done)
