"""What a measured process says about itself: times of optimizer steps, losses, memory."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START = time.perf_counter()  # when this process began to be ours


def peak_mb() -> float:
    """Largest resident memory of this process so far, MiB (Linux and macOS count differently)."""
    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return value / (2**20 if sys.platform == "darwin" else 2**10)


def gpu_peak_mb() -> float | None:
    """Largest allocated GPU memory, MiB; None without a GPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None


@dataclass
class Record:
    """Filled while a side works; ``write`` makes it the answer to the runner."""

    ends: list[float] = field(default_factory=list)  # when each update was over
    losses: list[float] = field(default_factory=list)  # of each update
    norms: list[float] = field(default_factory=list)  # of the gradient of each update, unclipped
    items: list[float] = field(default_factory=list)  # pairs, tokens, … of each update
    facts: dict[str, Any] = field(default_factory=dict)
    imports_mb: float = 0.0

    def imported(self) -> None:
        """Note the memory of the libraries, before any model is there."""
        self.imports_mb = peak_mb()

    def step(self, loss: float | None = None, items: float | None = None) -> None:
        """Note that an update is over."""
        self.ends.append(time.perf_counter())
        if loss is not None:
            self.losses.append(loss)
        if items is not None:
            self.items.append(items)

    def write(self, path: Path, items_per_update: float | None = None) -> None:
        """Write seconds and items of the updates after the first, losses and memory."""
        items = self.items or [items_per_update or 0.0] * len(self.ends)
        answer = {
            "seconds": self.ends[-1] - self.ends[0] if len(self.ends) > 1 else None,
            "items": sum(items[1:]),
            "items_per_update": items,
            "updates": len(self.ends),
            "first_update_at": self.ends[0] - START if self.ends else None,
            "update_seconds": [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)],
            "losses": self.losses,
            "gradient_norms": self.norms,
            "peak_mb": peak_mb(),
            "imports_mb": self.imports_mb,
            "gpu_peak_mb": gpu_peak_mb(),
            **self.facts,
        }
        path.write_text(json.dumps(answer, indent=1), encoding="utf-8")
