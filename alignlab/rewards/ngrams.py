"""Hashed unigrams and bigrams, and logistic regression on them, vectorised over all texts."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BITS = 18  # 2^18 hashed features
_TOKEN = re.compile(r"[a-z0-9']+|[!?]")
_MIX = np.uint64(0x9E3779B97F4A7C15)  # golden-ratio multiplier (Fibonacci hashing)
_PAIR = np.uint64(0xC2B2AE3D27D4EB4F)
_CHUNK = 2048  # texts per sort: small sorts stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Features:
    """Which hashed n-grams each of D texts has, as compressed sparse rows without values."""

    columns: np.ndarray  # (E,) int32, sorted and distinct within a text
    starts: np.ndarray  # (D + 1,) int64, text d owns columns[starts[d]:starts[d + 1]]

    @property
    def weight(self) -> np.ndarray:
        """Value (D,) fp32 of each feature of a text: 1 / √(its features), 0 for an empty text."""
        count = np.diff(self.starts)
        return np.where(count > 0, 1 / np.sqrt(np.maximum(count, 1)), 0).astype(np.float32)


def features(texts: Sequence[str]) -> Features:
    """Hash every word and every pair of neighbouring words of every text.

    Lower-cased words and ``!``, ``?``; crc32 of a word, mixed by multiplication, so the columns are
    the same in every process and on every machine.
    """
    columns, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    known: dict[str, int] = {}
    for first in range(0, len(texts), _CHUNK):
        part = [_TOKEN.findall(text.lower()) for text in texts[first : first + _CHUNK]]
        column, count = _hash(part, known)
        columns.append(column)
        counts.append(count)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return Features(np.concatenate(columns), starts)


def _hash(texts: Sequence[Sequence[str]], known: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    words = [word for text in texts for word in text]
    for word in set(words).difference(known):
        known[word] = zlib.crc32(word.encode())
    hashed = np.fromiter(map(known.__getitem__, words), np.uint64, len(words))
    text = np.repeat(np.arange(len(texts)), [len(words) for words in texts])
    shift = np.uint64(64 - BITS)
    unigrams = (hashed * _MIX) >> shift
    bigrams = ((hashed[:-1] * _PAIR + hashed[1:]) * _MIX) >> shift
    inside = text[:-1] == text[1:]
    owner = np.concatenate([text, text[:-1][inside]])
    column = np.concatenate([unigrams, bigrams[inside]]).astype(np.int64)
    key = np.sort((owner << BITS) | column)  # sort and compare: np.unique is ten times slower
    key = key[np.concatenate([[True], key[1:] != key[:-1]])] if len(key) else key
    return (key & ((1 << BITS) - 1)).astype(np.int32), np.bincount(key >> BITS, None, len(texts))


def logits(found: Features, coefficients: np.ndarray, intercept: float) -> np.ndarray:
    """Logits (D,) float64: w·x + b with x = 1/√(features) at a text's features."""
    owner = np.repeat(np.arange(len(found.weight)), np.diff(found.starts))
    total = np.bincount(owner, coefficients[found.columns], minlength=len(found.weight))
    return total * found.weight + intercept


def fit(
    found: Features, labels: np.ndarray, *, l2: float, iterations: int
) -> tuple[np.ndarray, float]:
    """Logistic regression by L-BFGS from zero: mean log-loss + (l2 / 2) ‖w‖².

    Args:
        found: features of D texts.
        labels: (D,) 0 or 1.
        l2: strength of the penalty; the intercept has none.
        iterations: of L-BFGS.

    Returns:
        Coefficients (2^18,) float32, and the intercept.
    """
    from scipy import sparse
    from scipy.optimize import minimize

    values = np.repeat(found.weight, np.diff(found.starts))
    shape = (len(labels), 1 << BITS)
    matrix = sparse.csr_matrix((values, found.columns, found.starts), shape=shape)
    transposed = matrix.T.tocsr()
    sign = 2.0 * labels.astype(np.float64) - 1

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        margin = sign * (matrix @ weights.astype(np.float32) + bias)
        loss = np.logaddexp(0, -margin).mean() + 0.5 * l2 * (weights @ weights)
        pull = -sign * np.exp(-np.logaddexp(0, margin)) / len(sign)
        gradient = transposed @ pull.astype(np.float32) + l2 * weights
        return float(loss), np.append(gradient, pull.sum())

    start = np.zeros(shape[1] + 1)
    options = {"maxiter": iterations, "maxcor": 6}
    found_minimum = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return found_minimum.x[:-1].astype(np.float32), float(found_minimum.x[-1])
