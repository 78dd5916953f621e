"""How long a stage will take: its FLOPs over the rate that this store has seen.

Before anything has run, the rate is a fixed share of what a plain matrix product reaches here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignlab.run import Store
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
                seen.append(Seen(run.kind, params, flops, float(record["seconds"])))
        return cls(seen)

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


def _alike(left: int, right: int) -> bool:
    return left > 0 and right > 0 and abs(math.log(left / right)) <= math.log(LIKE)


def matrix_rate() -> float:
    """FLOP/s of an fp32 matrix product with NumPy on this machine.

    The best of many short ones: beside other work a product on several threads waits for the one
    whose core is taken, and is then tens of times slower.
    """
    import numpy as np

    size = 384
    a = np.ones((size, size), np.float32)
    best = math.inf
    for _ in range(30):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / max(best, 1e-6)
