"""How long a stage will take: its FLOPs over the rate that this store has seen.

Before anything has run, the rate is a fixed share of what a plain matrix product reaches here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.capacity.device import matrix_rate
from alignlab.files import read_json

if TYPE_CHECKING:
    from alignlab.run import Run, Store
    from alignlab.stages.stage import Estimate

RECORDS = 200  # newest finished runs that are looked at
LIKE = 4.0  # models within this factor in size count as alike
EFFICIENCY = 0.25  # of a plain matrix product, what training reaches before any run is known


@dataclass(frozen=True)
class Seen:
    """What one finished run of the store took."""

    kind: str
    params: int
    flops: float
    seconds: float
    gpu: str = ""  # name of the GPU it ran on; empty: on the CPU
    processes: int = 1


@dataclass
class Rates:
    """Seconds of stages, from finished runs of the same kind and models of about the same size."""

    seen: Sequence[Seen]
    machine: float | None = None  # FLOP/s, measured when first needed

    @classmethod
    def of(cls, store: Store) -> Rates:
        """Read the newest finished runs of ``store``."""
        runs = sorted(store.runs(), key=lambda run: run.path.stat().st_mtime, reverse=True)
        seen = []
        for run in runs[:RECORDS]:
            record = run.record if run.done else {}
            if record.get("seconds"):
                params = int(record.get("params_total") or 0)
                flops = float(record.get("flops") or 0.0)
                gpu = _gpu(run) if record.get("peak_gpu_memory_bytes") else ""
                world = int((record.get("processes") or {}).get("at_work") or 1)
                taken = float(record["seconds"])
                seen.append(Seen(run.kind, params, flops, taken, gpu, world))
        return cls(seen)

    def on(self, gpu: str, kind: str, estimate: Estimate, processes: int) -> float | None:
        """Seconds of a stage by runs of its kind on GPUs of this name; None where none is known.

        Work that is shared is done the faster the more share it.
        """
        same = [s for s in self.seen if gpu in s.gpu and s.kind == kind and s.flops > 0]
        same = [s for s in same if _alike(s.params, estimate.params_total)]
        if not gpu or not same or estimate.flops <= 0:
            return None
        each = statistics.median([s.seconds * s.processes / s.flops for s in same])
        return each * estimate.flops / processes

    def seconds(self, kind: str, estimate: Estimate) -> float:
        """Estimated wall seconds of a stage."""
        same = [s for s in self.seen if s.kind == kind]
        if estimate.flops <= 0:
            return statistics.median([s.seconds for s in same]) if same else 0.0
        counted = [s for s in same if s.flops > 0]
        alike = [s for s in counted if _alike(s.params, estimate.params_total)] or counted
        if alike:
            return statistics.median([s.seconds / s.flops for s in alike]) * estimate.flops
        if self.machine is None:
            self.machine = matrix_rate() * EFFICIENCY
        return estimate.flops / self.machine


def _gpu(run: Run) -> str:
    hardware = (read_json(run.path / "env.json") or {}).get("hardware") or {}
    return str((hardware.get("gpus") or [""])[0]).partition(",")[0]


def _alike(left: int, right: int) -> bool:
    return left > 0 and right > 0 and abs(math.log(left / right)) <= math.log(LIKE)
