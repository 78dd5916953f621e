"""Texts as TF-IDF vectors over hashed words and word pairs, and choices among such vectors."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from alignlab.data.quality.texts import ngram_hashes, words

_DECIMALS = 9  # gains are compared to so many places, so that rounding in a sum decides nothing


def vectors(texts: Sequence[str], dimensions: int) -> np.ndarray:
    """Return float32 (N, dimensions): unit vectors, 0 for a text without words.

    A word or pair that occurs c times in a text and in df of the N texts weighs
    (1 + ln c) · (1 + ln((1 + N) / (1 + df))). It is added to the coordinate that its hash names,
    with a sign by its hash, so that collisions cancel on average (Weinberger et al. 2009,
    arXiv:0902.2206).
    """
    hashed, counts = [], []
    for text in texts:
        tokens = words(text)
        grams = np.concatenate([ngram_hashes(tokens, 1), ngram_hashes(tokens, 2)])
        found, count = np.unique(grams, return_counts=True)
        hashed.append(found)
        counts.append(count)
    if not hashed:
        return np.zeros((0, dimensions), np.float32)
    gram, owner = np.concatenate(hashed), np.repeat(np.arange(len(texts)), list(map(len, hashed)))
    _, which, df = np.unique(gram, return_inverse=True, return_counts=True)
    weight = (1 + np.log(np.concatenate(counts))) * (1 + np.log((1 + len(texts)) / (1 + df[which])))
    weight *= np.where((gram >> np.uint64(40)) & np.uint64(1), 1.0, -1.0)
    place = owner * dimensions + (gram % np.uint64(dimensions)).astype(np.int64)
    dense = np.bincount(place, weight, len(texts) * dimensions).reshape(len(texts), dimensions)
    norm = np.linalg.norm(dense, axis=1, keepdims=True)
    return (dense / np.where(norm > 0, norm, 1)).astype(np.float32)


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the values as ranks in [0, 1], highest 1; equal ones share their mean rank."""
    _, which, count = np.unique(values, return_inverse=True, return_counts=True)
    mean = np.cumsum(count) - (count + 1) / 2  # mean rank of each distinct value, from 0
    return np.asarray(mean[which] / max(1, len(values) - 1), np.float64)


def k_center(found: np.ndarray, quality: np.ndarray, budget: int, diversity: float) -> list[int]:
    """Choose greedily by (1 − diversity) · quality + diversity · distance to what is chosen.

    With ``diversity`` 1 this is the farthest-first traversal of Gonzalez 1985, which covers the
    data with balls at most twice as wide as the best possible ones; it starts at the best quality.

    Args:
        found: (N, D) unit vectors; the distance is 1 − cosine, cut to [0, 1].
        quality: (N,) in [0, 1].
        budget: how many to choose; all when there are no more.
        diversity: in [0, 1].

    Returns:
        Row numbers in the order of choice; the lower number wins a tie.
    """
    distance = np.ones(len(found))
    chosen: list[int] = []
    free = np.ones(len(found), bool)
    for _ in range(min(budget, len(found))):
        worth = (1 - diversity) * quality + diversity * distance if chosen else quality
        best = int(np.argmax(np.where(free, np.round(worth, _DECIMALS), -np.inf)))
        chosen.append(best)
        free[best] = False
        distance = np.minimum(distance, np.clip(1 - found @ found[best], 0, 1))
    return chosen


def facility_location(
    found: np.ndarray, quality: np.ndarray, budget: int, diversity: float
) -> list[int]:
    """Choose S greedily to make every text near to a chosen one, and the chosen ones good.

    F(S) = diversity / N · Σ_i max_{j ∈ S} s_ij + (1 − diversity) / budget · Σ_{j ∈ S} quality_j
    with s_ij = max(0, cosine). F is monotone and submodular, so the greedy choice reaches at least
    1 − 1/e of the optimum (Nemhauser et al. 1978); gains are evaluated lazily (Minoux 1978).

    Arguments and result as in `k_center`. Time is about N² · D for the first gains.
    """
    covered = np.zeros(len(found))
    scale = diversity / max(1, len(found)), (1 - diversity) / max(1, min(budget, len(found)))

    def gain(j: int) -> float:
        more = np.maximum(found @ found[j] - covered, 0).sum()
        return round(float(scale[0] * more + scale[1] * quality[j]), _DECIMALS)

    alone = _coverage(found)  # what each text would cover as the only one
    first = np.round(scale[0] * alone + scale[1] * quality, _DECIMALS)
    heap = [(-float(value), j, 0) for j, value in enumerate(first)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < budget:
        _, j, known = heapq.heappop(heap)
        if known == len(chosen):
            chosen.append(j)
            covered = np.maximum(covered, found @ found[j])
        else:
            heapq.heappush(heap, (-gain(j), j, len(chosen)))
    return chosen


def _coverage(found: np.ndarray, block: int = 512) -> np.ndarray:
    """Sum of max(0, cosine) of each row to all rows, float64 (N,), a block at a time."""
    parts = [
        np.maximum(found[start : start + block] @ found.T, 0).sum(axis=1, dtype=np.float64)
        for start in range(0, len(found), block)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)
