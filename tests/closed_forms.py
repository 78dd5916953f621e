"""Closed forms on bandits, and a minimiser exact enough to compare an objective with them.

Shared by the tests and by experiments/01_bandit_theory.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alignlab.tensors import PairLogps


def minimise(loss: Callable[[Tensor], Tensor], logits: Tensor, steps: int = 300) -> Tensor:
    """Log-probabilities of the arms at the minimum of ``loss(log_probs)``, by L-BFGS in float64."""
    logits = logits.clone().double().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits.log_softmax(-1))
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().log_softmax(-1)


def one_pair(logps: Tensor, chosen: int = 0, rejected: int = 1) -> PairLogps:
    one = torch.ones(1)
    return PairLogps(logps[chosen].reshape(1), logps[rejected].reshape(1), one, one)


def distance(p: np.ndarray, q: np.ndarray) -> float:
    """Total variation: the largest difference in the probability of any set of arms."""
    return float(np.abs(p - q).sum() / 2)


def tilted(reference: np.ndarray, gain: np.ndarray, beta: float) -> np.ndarray:
    """π ∝ π_ref e^{gain/β}: the maximum of E[gain] − β KL(π ‖ π_ref)."""
    weight = reference * np.exp((gain - gain.max()) / beta)
    return weight / weight.sum()


def reversed_tilt(reference: np.ndarray, gain: np.ndarray, beta: float) -> np.ndarray:
    """π = β π_ref/(λ − gain): the maximum of E[gain] − β KL(π_ref ‖ π). λ by bisection."""
    low, high = gain.max(), gain.max() + beta  # Σ is infinite at the one and ≤ 1 at the other
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if (beta * reference / (middle - gain)).sum() > 1 else (low, middle)
        )
    return beta * reference / (high - gain)
