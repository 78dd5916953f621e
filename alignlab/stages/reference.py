"""Reference log-probabilities, per token, computed once and shared by every later stage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from alignlab.engine.dealt import Dealt, target_logps
from alignlab.files import beside
from alignlab.images import identity, images_of
from alignlab.objectives.stable import segment_sum

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone, View
    from alignlab.run import Run
    from alignlab.tensors import FlatBatch


class ReferenceLogps:
    """Log-probabilities of fixed completions under a finished run, cached in the store.

    The cache is keyed by the run's key, the compute dtype and the exact token ids, never by a
    configuration: a changed learning rate hits it, a changed template misses it.
    """

    def __init__(self, backbone: Backbone, source: Run, engine: Engine, cache: Path) -> None:
        self.backbone = backbone
        self.source = source
        self.engine = engine
        self.cache = cache
        self.logps: dict[str, np.ndarray] = {}  # group content → its targets', mapped

    def prepare(self, groups: Sequence[TokenGroup]) -> None:
        """Know the log-probabilities of ``groups``: from the cache, else by the reference view.

        The view is there only meanwhile: a stage does not carry a second model through training.
        """
        path = self.cache / "reference" / f"{self.key(groups)}.npy"
        # All compute or none does: another run may write the file at any moment.
        [missing] = self.engine.workers().highest(int(not path.exists()))
        if missing:
            self.backbone.add("reference", source=self.source.model_dir, trainable=False)
            flat = np.concatenate(self.compute(groups)) if groups else np.zeros(0, np.float32)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, flat)
            self.backbone.drop("reference")
        flat = np.asarray(np.load(path, mmap_mode="r" if groups else None))
        start = 0
        for group in groups:
            end = start + sum(group.targets())
            self.logps[content(group)] = flat[start:end]
            start = end

    def key(self, groups: Sequence[TokenGroup]) -> str:
        """Name of the cache entry: who scored what, in which arithmetic."""
        digest = hashlib.sha256(f"{self.source.key}:{self.backbone.dtype_name}".encode())
        for group in groups:
            digest.update(content(group).encode())
        return digest.hexdigest()[:24]

    def compute(self, groups: Sequence[TokenGroup]) -> list[np.ndarray]:
        """Per-token log-probabilities of every completion of ``groups``, in order."""
        dealt = Dealt(self.backbone, self.engine.workers(), self.engine.budget)
        return [*chain(*dealt.shared("reference", groups, target_logps))]

    def tokens(self, groups: Sequence[TokenGroup]) -> list[np.ndarray]:
        """Cached per-token log-probabilities of every completion, in order."""
        return [
            piece
            for group in groups
            for piece in np.split(self.logps[content(group)], np.cumsum(group.targets())[:-1])
        ]

    def sums(self, groups: Sequence[TokenGroup]) -> Tensor:
        """Cached log-probabilities (C,), summed over each completion (nats)."""
        values = [float(piece.sum(dtype=np.float64)) for piece in self.tokens(groups)]
        device = self.engine.workers().device
        return torch.tensor(values, dtype=torch.float32, device=device)


def content(group: TokenGroup) -> str:
    """Hash of a group's token ids, of what they leave out of the loss, and of its images."""
    digest = hashlib.sha256(np.ascontiguousarray(group.prompt, dtype=np.int32).tobytes())
    for completion in group.completions:
        digest.update(b"|")
        digest.update(np.ascontiguousarray(completion, dtype=np.int32).tobytes())
    for mask in group.masks:
        digest.update(b"/" if mask is None else b"/" + np.packbits(mask).tobytes())
    for image in images_of(group.meta):  # pictures of one size have the same tokens
        digest.update(f"#{identity(image)}".encode())
    return digest.hexdigest()


def write_atomically(path: Path, flat: np.ndarray) -> None:
    """Write through a temporary name, so that two processes can fill one entry."""
    temporary = beside(path)
    try:
        with temporary.open("wb") as file:
            np.save(file, flat)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def completion_sums(
    backbone: Backbone, view: str, groups: Sequence[TokenGroup], engine: Engine
) -> Tensor:
    """Log-probabilities (C,) of all completions under ``view``, in order, without gradients.

    Every process calls it with the same ``groups``; the passes are shared out.
    """

    def read(active: View, batch: FlatBatch) -> Sequence[float]:
        logps = active.logps(batch)
        found: list[float] = segment_sum(logps, batch.target_completion, batch.completions).tolist()
        return found

    return Dealt(backbone, engine.workers(), engine.budget).numbers(view, groups, read)
