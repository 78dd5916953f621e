"""A rollout that was not used yet, kept in a file: an interrupted one goes on at the same token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignlab.files import beside
from alignlab.images import Reference, identity
from alignlab.rollout.sampling import Sampling

MOST_BYTES = 2 * 2**30  # more takes longer to write than a scheduler waits


def rollout_file(folder: Path, rank: int) -> Path:
    """Where a process's rollout lies until the next one, in case a signal comes meanwhile."""
    return folder / f"rollout-{rank}.pt"


class Unfinished:
    """The file of one rollout. It is known by what is asked for, not by when.

    What it holds was drawn by the weights that ask for it: they are those of the checkpoint that
    was saved with it, or were trained again from an earlier one.
    """

    def __init__(self, path: Path, asked: str, device: torch.device | str) -> None:
        self.path, self.asked, self.device = path, asked, device

    @classmethod
    def of(
        cls,
        path: Path,
        prompts: Sequence[np.ndarray],
        n: int,
        sampling: Sampling,
        stop: torch.Tensor,
        seeds: Sequence[int],
        images: Sequence[Sequence[Reference]] = (),
    ) -> Unfinished:
        """Name the rollout that the arguments of `sampler.sample` ask for."""
        digest = hashlib.sha256(repr((n, sampling, stop.tolist(), list(seeds))).encode())
        for prompt in prompts:
            digest.update(f"{len(prompt)}:".encode())
            digest.update(np.ascontiguousarray(prompt, dtype=np.int64).tobytes())
        for shown in images:
            digest.update(repr([identity(image) for image in shown]).encode())
        return cls(path, digest.hexdigest(), stop.device)

    def read(self) -> dict[str, Any] | None:
        """How far it had come; None where the file is of another rollout, or is not there."""
        if not self.path.is_file():
            return None
        # Decoding has a memory and queues of its own classes; the file is this run's own.
        found = torch.load(self.path, map_location=self.device, weights_only=False)
        state: dict[str, Any] | None = found["state"] if found["asked"] == self.asked else None
        return state

    def write(self, state: dict[str, Any], memory: Sequence[torch.Tensor] = ()) -> None:
        """Keep how far it has come; nothing where the keys and values in ``memory`` are too much.

        Then it is sampled again.
        """
        if sum(part.nbytes for part in memory) > MOST_BYTES:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(self.path)
        torch.save({"asked": self.asked, "state": state}, temporary)
        temporary.replace(self.path)
