"""Length-controlled win rates of a study: prompt difficulty from other methods, intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignlab.report import statistics as st
from alignlab.report.statistics import Interval
from alignlab.rewards.judge.length_control import (
    Controlled,
    at_equal_length,
    length_controlled_win_rate,
)

__all__ = [
    "Controlled",
    "Rows",
    "at_equal_length",
    "at_equal_length_interval",
    "controlled",
    "difficulty",
    "length_controlled_win_rate",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Decided matches of one method, over all seeds: n rows."""

    seed: NDArray[np.int64]  # (n,) index of the training seed
    prompt: NDArray[np.int64]  # (n,) index of the prompt, on an axis shared by all methods
    win: Array  # (n,) in {0, 0.5, 1}
    delta: Array  # (n,) tokens of the completion minus tokens of the opponent

    def cells(self, values: Any) -> Array:
        """Mean of the (n,) ``values`` in every (seed, prompt) cell; NaN where there is none."""
        shape = int(self.seed.max()) + 1, int(self.prompt.max()) + 1
        total, count = np.zeros(shape), np.zeros(shape)
        np.add.at(total, (self.seed, self.prompt), np.asarray(values, np.float64))
        np.add.at(count, (self.seed, self.prompt), 1.0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def difficulty(others: list[Rows], prompts: int) -> Array | None:
    """γ of every prompt, (prompts,): log-odds of a win there by the *other* methods, mean 0.

    Half a win and half a loss are added to each prompt. None where no other method was judged, or
    all of them say the same of every prompt.
    """
    if not others:
        return None
    won, count = np.zeros(prompts), np.zeros(prompts)
    for rows in others:
        np.add.at(won, rows.prompt, rows.win)
        np.add.at(count, rows.prompt, 1.0)
    found = np.log(won + 0.5) - np.log(count - won + 0.5)
    found -= found.mean()
    return found if np.ptp(found) > 0 else None


def controlled(
    rows: Rows, gamma: Array | None = None, *, draws: int = st.DRAWS, seed: int = 0
) -> tuple[Controlled, Interval]:
    """Length-controlled win rate of a method, with its interval over seeds and prompts.

    One model is fitted over all seeds. The influences of its rows, in a (seeds, prompts) table,
    are what the hierarchical bootstrap resamples: their mean is the estimate, and a seed's mean is
    the estimate that the seed speaks for.
    """
    difficulties = None if gamma is None else gamma[rows.prompt]
    found = length_controlled_win_rate(rows.win, rows.delta, difficulties, rows.prompt)
    return found, _interval(rows, found.influence, found.rate, draws, seed, (0.0, 1.0))


def at_equal_length_interval(
    rows: Rows, difference: Any, *, draws: int = st.DRAWS, seed: int = 0
) -> Interval:
    """Interval of what is left of a difference in reward at equal length (least squares)."""
    found = at_equal_length(difference, rows.delta)
    return _interval(rows, found.influence, found.value, draws, seed, (-np.inf, np.inf))


def _interval(
    rows: Rows, values: Array, estimate: float, draws: int, seed: int, span: tuple[float, float]
) -> Interval:
    made = st.hierarchical_bootstrap(rows.cells(values), draws=draws, seed=seed)
    # Unequal numbers of samples weigh cells otherwise than rows: the spread is the cells', the
    # place the estimate's.
    shift = estimate - made.value
    low, high = (min(max(end + shift, span[0]), span[1]) for end in (made.low, made.high))
    return replace(made, value=estimate, low=low, high=high)
