"""The axes of the reward–KL plane: a square-root scale of KL with round numbers of nats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from alignlab.report.figures import RC


@contextmanager
def new_figure(width: float, height: float, **grid: Any) -> Iterator[tuple[Figure, Any]]:
    """Make a figure with the report's settings; sizes in inches of 72 units."""
    with rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained", dpi=72)
        yield figure, figure.subplots(**grid)


def root(x: Any) -> Any:
    """Square root that keeps the sign: an estimated KL may fall below zero."""
    return np.sign(x) * np.sqrt(np.abs(x))


def square(x: Any) -> Any:
    """Inverse of `root`."""
    return np.sign(x) * np.square(x)


def root_ticks(low: float, top: float) -> list[float]:
    """Round numbers of nats that stand at least a tenth of the axis apart after the root."""
    apart = 0.1 * (math.sqrt(top) + math.sqrt(max(-low, 0.0)))
    ticks = [0.0]
    for power in range(-3, 5):
        for tick in (1.0 * 10**power, 2.0 * 10**power, 5.0 * 10**power):
            if tick <= top and math.sqrt(tick) - math.sqrt(ticks[-1]) > apart:
                ticks.append(tick)
    if top - ticks[-1] > 0.3 * top:
        ticks.append(1.5 * ticks[-1])
    return [-tick for tick in ticks[1:] if tick <= -low] + ticks
