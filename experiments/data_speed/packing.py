"""How full packed micro-batches are, by rows that may share one and by the token budget."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from alignlab.data.pack import fullness, pack

BUDGETS = (2048, 4096, 8192, 16384, 32768)  # tokens of a micro-batch
ROWS = (32, 64, 128, 256, 512, 1024, 4096)  # rows of an optimizer step: only these are packed
STEPS = 50  # that the mean is taken over, or as many as there are


def table(sizes: np.ndarray) -> dict[str, Any]:
    """Share of the budget of all micro-batches that is used, and seconds for all rows at once."""
    result: dict[str, Any] = {"budgets": list(BUDGETS), "steps_of_rows": {}, "all_rows": {}}
    for rows in ROWS:
        steps = [sizes[i : i + rows] for i in range(0, len(sizes) - rows + 1, rows)][:STEPS]
        result["steps_of_rows"][rows] = [shares(steps, budget) for budget in BUDGETS]
    for budget in BUDGETS:
        began = time.perf_counter()
        bins = len(pack(sizes, budget))
        seconds = time.perf_counter() - began
        share = float(sizes.sum() / (budget * bins))
        result["all_rows"][budget] = {"efficiency": round(share, 4), "seconds": round(seconds, 3)}
    return result


def shares(steps: list[np.ndarray], budget: int) -> dict[str, float]:
    """Use of the budget in steps like these, and the most that any packing could use."""
    found = fullness(steps, budget)
    return {
        "all": round(found.used, 4),
        "most_possible": round(found.most, 4),
        "bins": round(found.micro_batches, 2),
    }
