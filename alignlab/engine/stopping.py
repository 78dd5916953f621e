"""When a training ends before its last step: a metric that stopped improving, or a signal."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from alignlab.errors import ConfigError, did_you_mean
from alignlab.typed import Range

if TYPE_CHECKING:
    from torch import Tensor

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # USR1: Slurm's --signal warning


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
        self._best_weights: dict[str, Tensor] = {}

    def update(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take in one evaluation; True when training should stop.

        Raises:
            ConfigError: the evaluation has no such metric.
        """
        name = self.rule.metric
        if name not in metrics:
            raise ConfigError(
                f"early_stopping.metric is '{name}', but the evaluation gives "
                f"{', '.join(sorted(metrics))}.{did_you_mean(name, metrics)}"
            )
        if self._improves(metrics[name]):
            self.best, self.best_step, self.bad = metrics[name], step, 0
            self._best_weights = {
                key: value.detach().to("cpu", copy=True) for key, value in self._weights.items()
            }
        else:
            self.bad += 1
        return self.bad >= self.rule.patience

    def restore(self) -> None:
        """Put the weights of the best evaluation back, if there has been one."""
        for key, value in self._best_weights.items():
            self._weights[key].detach().copy_(value)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "bad": self.bad,
            "weights": self._best_weights,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` returned."""
        self.best, self.best_step, self.bad = state["best"], state["best_step"], state["bad"]
        self._best_weights = dict(state["weights"])

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        gain = value - self.best if self.rule.mode == "max" else self.best - value
        return gain > self.rule.min_delta


class StopSignals:
    """Notes SIGTERM, SIGINT and SIGUSR1 while inside, so that the loop can end a step cleanly.

    A second SIGINT (Ctrl-C twice) interrupts at once. Signals reach only the main thread, so in
    another thread this does nothing.
    """

    def __init__(self) -> None:
        self.number = 0  # the first signal received; 0: none
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.number:
            self.number = number
            again = " (Ctrl-C again: quit now, unsaved)" if number == signal.SIGINT else ""
            name = signal.Signals(number).name
            print(
                f"\n{name}: finishing this step, then saving a checkpoint{again}", file=sys.stderr
            )
