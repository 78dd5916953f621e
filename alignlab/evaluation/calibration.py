"""Calibration of pairwise probabilities: whether a model that says 80 % is right 8 times of 10.

A pair has no natural order, so what is judged is the *confidence* max(p, 1 − p) that the reward
model has in the completion that it prefers, p = σ(r_chosen − r_rejected), against how often that
completion is the one people preferred (a tie is half).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram."""

    low: float
    high: float
    confidence: float  # mean in the bin
    accuracy: float  # share of its pairs that were ordered right
    count: int


def sigmoid(margin: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x), without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(margin, dtype=np.float64)))


def reliability(probabilities: Sequence[float], bins: int = BINS) -> list[Bin]:
    """Bins of equal width over confidence in [0.5, 1]; empty ones are left out.

    Args:
        probabilities: p of each pair, that its better completion is preferred.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    confidence = np.maximum(p, 1 - p)
    right = np.where(p == 0.5, 0.5, (p > 0.5).astype(np.float64))
    edges = np.linspace(0.5, 1.0, bins + 1)
    home = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    return [
        Bin(
            low=float(edges[b]),
            high=float(edges[b + 1]),
            confidence=float(confidence[home == b].mean()),
            accuracy=float(right[home == b].mean()),
            count=int((home == b).sum()),
        )
        for b in range(bins)
        if (home == b).any()
    ]


def expected_calibration_error(found: Sequence[Bin]) -> float:
    """ECE = Σ_b n_b / n · |accuracy_b − confidence_b| (Guo et al. 2017, eq. 3)."""
    total = sum(b.count for b in found)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in found) / max(total, 1)


def brier(probabilities: Sequence[float]) -> float:
    """Mean of (1 − p)²; 0.25 for a model that always says one half."""
    return float(np.mean((1 - np.asarray(probabilities, dtype=np.float64)) ** 2))


def log_loss(margins: Sequence[float]) -> float:
    """Mean of −log σ(margin) in nats, the reward model's own loss; log 2 for no knowledge."""
    return float(np.mean(np.logaddexp(0.0, -np.asarray(margins, dtype=np.float64))))


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share of ``count`` independent trials (1927); 95 % by default."""
    if count < 1:
        return 0.0, 1.0
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return middle - half, middle + half
