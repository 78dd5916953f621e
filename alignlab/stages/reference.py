"""Reference log-probabilities, per token, computed once and shared by every later stage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from alignlab.data.pack import flatten
from alignlab.files import beside
from alignlab.images import identity, images_of
from alignlab.objectives.stable import segment_sum
from alignlab.stages.session import parts

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone
    from alignlab.run import Run


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
        out: dict[int, list[np.ndarray]] = {}
        with torch.no_grad(), self.backbone.view("reference", alike=True) as view:
            for positions, part in parts(groups, self.engine.budget):
                batch = flatten(part).to(self.engine.workers().device)
                logps = view.logps(batch).float().cpu().numpy()
                pieces = iter(np.split(logps, np.cumsum(batch.lengths.cpu().numpy())[:-1]))
                for position, group in zip(positions, part, strict=True):
                    out[position] = [next(pieces) for _ in group.completions]
        return [piece for i in range(len(groups)) for piece in out[i]]

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
    """Log-probabilities (C,) of all completions under ``view``, in the order of ``groups``."""
    sums: dict[int, Tensor] = {}
    with backbone.view(view, alike=True) as active:
        for positions, part in parts(groups, engine.budget):
            batch = flatten(part).to(engine.workers().device)
            values = segment_sum(active.logps(batch), batch.target_completion, batch.completions)
            first = 0
            for position, group in zip(positions, part, strict=True):
                sums[position] = values[first : first + len(group.completions)]
                first += len(group.completions)
    return torch.cat([sums[i] for i in range(len(groups))])
