"""What is drawn: a random stream for every sample, and the tokens that it led to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def uniform_stream(seed: int, index: int, steps: int) -> np.ndarray:
    """Uniforms (steps,) float64 in [0, 1) of sample ``index`` of a prompt: Philox keyed by both."""
    key = np.array([seed % 2**64, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(steps)


def uniforms_of(
    samples: Sequence[tuple[int, int]], steps: int, device: torch.device | str
) -> Tensor:
    """Streams (R, steps) of R samples, each a prompt's seed and the sample's index."""
    streams = [uniform_stream(seed, index, steps) for seed, index in samples]
    return torch.from_numpy(np.stack(streams)).to(device)


@dataclass(frozen=True)
class Drawn:
    """Tokens of all samples while they are drawn; one row each."""

    ids: Tensor  # (rows, limit) int64
    logps: Tensor  # (rows, limit) fp32
    length: Tensor  # (rows,) int64
    finished: Tensor  # (rows,) bool, ended with a stop token

    @classmethod
    def empty(cls, rows: int, limit: int, device: torch.device | str) -> Drawn:
        """Nothing drawn yet; every row may become ``limit`` tokens long."""
        return cls(
            ids=torch.zeros(rows, limit, dtype=torch.int64, device=device),
            logps=torch.zeros(rows, limit, dtype=torch.float32, device=device),
            length=torch.full((rows,), limit, device=device),
            finished=torch.zeros(rows, dtype=torch.bool, device=device),
        )
