"""Weights of a view on their way to a sampler: a folder, with the adapter alone if there is one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from alignlab.models.backbone import Backbone

ADAPTER = "adapter_config.json"


class Together(Protocol):
    """The processes that train together, as far as a sampler needs to know."""

    @property
    def is_main(self) -> bool:
        """Whether this one writes files."""
        ...

    def barrier(self) -> None:
        """Wait for all."""
        ...


@dataclass(frozen=True)
class Shipped:
    """Where a sampler finds the weights."""

    model: Path  # folder of the whole model, or of the base of the adapter
    adapter: Path | None
    rank: int  # of the adapter; 0 without one
    tokenizer: Path
    dtype: str  # that the trainer computes in


def ship(backbone: Backbone, view: str, folder: Path, count: int, workers: Together) -> Shipped:
    """Write a view for the ``count``-th time; what was written before the last time is removed.

    The main process writes; all must call, and the files are there when any returns.
    """
    target = folder / str(count)
    with backbone.whole(view):
        if workers.is_main:
            shutil.rmtree(target, ignore_errors=True)  # of an interrupted attempt
            backbone.save(view, target)
            for old in folder.iterdir():
                if old.name.isdigit() and int(old.name) < count - 1:
                    shutil.rmtree(old)
    workers.barrier()
    config = target / ADAPTER
    if not config.is_file():
        return Shipped(target, None, 0, target, backbone.dtype_name)
    rank = int(json.loads(config.read_text(encoding="utf-8"))["r"])
    return Shipped(backbone.base_folder, target, rank, target, backbone.dtype_name)
