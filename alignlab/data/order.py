"""Which data rows an optimizer step sees: a pure function of the step, so that resume is exact."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


def step_rows(step: int, batch: int, rows: int, seed: int) -> list[int]:
    """Return the ``batch`` row indices of optimizer step ``step`` (from 0), out of ``rows`` rows.

    Rows come from an endless sequence of seeded permutations, one per epoch. A step may cross the
    end of an epoch, so every step has the same number of rows and every epoch shows each row once.
    """
    if step < 0 or batch < 1 or rows < 1:
        raise ValueError(f"step_rows needs step ≥ 0, batch ≥ 1, rows ≥ 1: {step}, {batch}, {rows}.")
    first, last = step * batch, (step + 1) * batch
    picked: list[int] = []
    for epoch in range(first // rows, (last - 1) // rows + 1):
        begin, end = max(first - epoch * rows, 0), min(last - epoch * rows, rows)
        picked.extend(_permutation(rows, seed, epoch)[begin:end].tolist())
    return picked


def steps_of(epochs: float, batch: int, rows: int) -> int:
    """Optimizer steps that show every row ``epochs`` times: ceil(epochs · rows / batch)."""
    return math.ceil(round(epochs * rows / batch, 9))  # 1.1 · 90 / 3 must be 33, not 34


@lru_cache(maxsize=8)
def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(rows)
