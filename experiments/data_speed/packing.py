"""How full packed micro-batches are, by rows that may share one and by the token budget."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from alignlab.data.pack import pack

BUDGETS = (2048, 4096, 8192, 16384, 32768)  # tokens of a micro-batch
ROWS = (32, 64, 128, 256, 512, 1024, 4096)  # rows of an optimizer step: only these are packed
STEPS = 50  # that the mean is taken over, or as many as there are


def table(sizes: np.ndarray) -> dict[str, Any]:
    """Share of the budget of all micro-batches that is used, and seconds for all rows at once."""
    result: dict[str, Any] = {"budgets": list(BUDGETS), "steps_of_rows": {}, "all_rows": {}}
    for rows in ROWS:
        steps = [sizes[i : i + rows] for i in range(0, len(sizes) - rows + 1, rows)][:STEPS]
        result["steps_of_rows"][rows] = [fullness(steps, budget) for budget in BUDGETS]
    for budget in BUDGETS:
        began = time.perf_counter()
        bins = len(pack(sizes, budget))
        seconds = time.perf_counter() - began
        share = float(sizes.sum() / (budget * bins))
        result["all_rows"][budget] = {"efficiency": round(share, 4), "seconds": round(seconds, 3)}
    return result


def fullness(steps: list[np.ndarray], budget: int) -> dict[str, float]:
    """Mean use of the budget in each step, of all bins and of all but the last one.

    The last bin of a step holds what is left over, whatever the packing: a step of 1.2 budgets
    needs two bins.
    """
    used = fitting = bins = whole = 0.0
    for sizes in steps:
        totals = sorted((int(sizes[part].sum()) for part in pack(sizes, budget)), reverse=True)
        used, bins = used + sum(totals), bins + len(totals)
        fitting, whole = fitting + sum(totals[:-1]), whole + len(totals) - 1
    return {
        "all": round(used / (bins * budget), 4) if bins else 0.0,
        "but_the_last": round(fitting / (whole * budget), 4) if whole else 0.0,
        "bins": round(bins / max(len(steps), 1), 2),
    }
