"""Win rates at equal length: a logistic model of a judge's verdicts, read where lengths are equal.

The model is AlpacaEval 2's (Dubois et al. 2024, arXiv:2404.04475):

    P(win) = σ(θ + φ · tanh(Δ / sd(Δ)) + ψ · γ)

Δ is the completion's length minus the opponent's, γ how hard the prompt is (known beforehand: from
other methods' results), θ what is left: how much better the method is. The length-controlled win
rate is the mean over the prompts of σ(θ + ψ · γ), the prediction at Δ = 0. A win is 1, a tie 0.5.
Differences from AlpacaEval: prompts are the folds of the cross-fitting, the coefficients have a
normal prior instead of a penalty towards the baseline, and γ comes from the study at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PRIOR = 5.0  # standard deviation of each coefficient's normal prior, on the logit scale
FOLDS = 5
STEPS = 100


@dataclass(frozen=True, eq=False)
class Controlled:
    """A length-controlled win rate, its parts, and the influence of every row on it."""

    rate: float  # cross-fitted prediction at equal length
    quality: float  # θ
    length: float  # φ: what length alone is worth to the judge, on the logit scale
    difficulty: float | None  # ψ
    influence: (
        Array  # (n,) rate + each row's influence: their mean is the rate, their spread its noise
    )
    overlap: float  # share of the rows whose Δ has the rarer sign: near 0, Δ = 0 is extrapolated


def length_controlled_win_rate(
    win: Any, delta: Any, difficulty: Any = None, clusters: Any = None
) -> Controlled:
    """Fit the model above and predict at equal length.

    Args:
        win: (n,) in [0, 1].
        delta: (n,) length of the completion minus that of its opponent, in any unit.
        difficulty: (n,) γ of each row's prompt, or None to leave the term out.
        clusters: (n,) whole number per row; rows of one prompt share it and are never divided
            between a fit and its predictions. None: every row is its own.

    Raises:
        ValueError: no rows, or lengths of the arguments that differ.
    """
    y, x = np.asarray(win, np.float64), design(delta, difficulty)
    if y.ndim != 1 or not y.size or len(x) != y.size:
        raise ValueError(f"need one win per row and at least one row, got {y.shape} and {len(x)}")
    folds = (np.arange(y.size) if clusters is None else np.asarray(clusters)) % FOLDS
    equal = x.copy()
    equal[:, 1] = 0.0
    predicted = np.empty_like(y)
    for fold in np.unique(folds):
        inside = folds == fold
        rest = ~inside if not inside.all() else inside
        predicted[inside] = sigmoid(equal[inside] @ fit(x[rest], y[rest]))
    whole = fit(x, y)
    rate = float(predicted.mean())
    signs = np.sign(np.asarray(delta, np.float64))
    return Controlled(
        rate=rate,
        quality=float(whole[0]),
        length=float(whole[1]),
        difficulty=None if difficulty is None else float(whole[2]),
        influence=rate + _influence(x, y, equal, whole),
        overlap=float(min((signs >= 0).mean(), (signs <= 0).mean())),
    )


def design(delta: Any, difficulty: Any = None) -> Array:
    """Columns 1, tanh(Δ / sd(Δ)) and, where it is given, γ: (n, 2) or (n, 3)."""
    length = np.asarray(delta, np.float64)
    spread = length.std()
    columns = [np.ones_like(length), np.tanh(length / spread) if spread > 0 else 0 * length]
    if difficulty is not None:
        columns.append(np.asarray(difficulty, np.float64))
    return np.stack(columns, axis=1)


def fit(x: Array, y: Array, prior: float = PRIOR) -> Array:
    """Coefficients that maximise Σ log-likelihood − ‖β‖² / (2 prior²), by Newton's method.

    The prior keeps a method that always wins, or a length that always decides, finite; on data that
    are neither it moves a coefficient by about a hundredth of its standard error.
    """
    beta = np.zeros(x.shape[1])
    ridge = np.eye(x.shape[1]) / prior**2

    def objective(b: Array) -> float:
        z = x @ b
        return float(np.sum(y * z - np.logaddexp(0, z)) - b @ ridge @ b / 2)

    best = objective(beta)
    for _ in range(STEPS):
        p = sigmoid(x @ beta)
        gradient = x.T @ (y - p) - ridge @ beta
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge, gradient)
        if float(np.abs(step).max()) < 1e-10:
            break
        # The objective is concave, so a short enough step always climbs.
        while (value := objective(beta + step)) < best - 1e-12 and float(
            np.abs(step).max()
        ) > 1e-12:
            step = step / 2
        beta, best = beta + step, value
    return beta


def _influence(x: Array, y: Array, equal: Array, beta: Array) -> Array:
    """Influence function of the mean prediction at equal length, (n,), mean 0."""
    p, p0 = sigmoid(x @ beta), sigmoid(equal @ beta)
    information = (x * (p * (1 - p))[:, None]).T @ x + np.eye(x.shape[1]) / PRIOR**2
    slope = (equal * (p0 * (1 - p0))[:, None]).mean(axis=0)
    scores = x * (y - p)[:, None]
    found = (p0 - p0.mean()) + len(y) * (scores @ np.linalg.solve(information, slope))
    return np.asarray(found - found.mean())


def sigmoid(z: Any) -> Array:
    """Logistic function, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(z, np.float64))))


@dataclass(frozen=True, eq=False)
class Residual:
    """A mean difference at equal length by least squares: the simpler second view."""

    value: float  # intercept: the difference that is left at Δ = 0
    slope: float  # of the difference per unit of length
    influence: Array  # (n,) value + each row's influence


def at_equal_length(difference: Any, delta: Any) -> Residual:
    """Regress differences (n,) of a reward on differences in length; the intercept is the answer.

    Raises:
        ValueError: no rows.
    """
    d, length = np.asarray(difference, np.float64), np.asarray(delta, np.float64)
    if not d.size:
        raise ValueError("need at least one row")
    centred = length - length.mean()
    square = float(centred @ centred)
    slope = float(centred @ d) / square if square > 0 else 0.0
    value = float(d.mean() - slope * length.mean())
    residual = d - value - slope * length
    lever = 1 - length.size * length.mean() * centred / square if square > 0 else np.ones_like(d)
    return Residual(value, slope, value + residual * lever)
