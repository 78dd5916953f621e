"""Learning-rate schedules: the factor on the full rate at every optimizer step, as pure functions.

Each is a function of the 1-based ``step`` of ``steps``, ``warm`` warm-up steps, the last rate
``floor`` as a share of the full one and, where there is such a phase, ``cool`` steps of decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Name = Literal[
    "constant", "linear", "cosine", "inverse_sqrt", "wsd", "wsd_sqrt", "slanted_triangular"
]
Curve = Callable[[int, int, int, float, int], float]

COOLED = ("wsd", "wsd_sqrt")  # that have a phase of decay of its own


def steps_of(amount: float, steps: int) -> int:
    """Steps that ``amount`` stands for: below 1 a share of ``steps``, rounded up; else a number."""
    return math.ceil(amount * steps) if amount < 1 else int(amount)


def _constant(step: int, steps: int, warm: int, floor: float, cool: int) -> float:
    return 1.0


def _linear(step: int, steps: int, warm: int, floor: float, cool: int) -> float:
    return 1 - (1 - floor) * (step - 1 - warm) / (steps - warm)


def _cosine(step: int, steps: int, warm: int, floor: float, cool: int) -> float:
    progress = (step - 1 - warm) / (steps - warm)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def _inverse_sqrt(step: int, steps: int, warm: int, floor: float, cool: int) -> float:
    return max(floor, math.sqrt(max(warm, 1) / step))


def _cooled(step: int, steps: int, cool: int) -> float:
    """Share of the decay phase that lies behind ``step``: 0 before it, and in its first step."""
    return max(0.0, (step - 1 - (steps - cool)) / cool) if cool else 0.0


def _wsd(step: int, steps: int, warm: int, floor: float, cool: int) -> float:
    return 1 - (1 - floor) * _cooled(step, steps, cool)


def _wsd_sqrt(step: int, steps: int, warm: int, floor: float, cool: int) -> float:
    return 1 - (1 - floor) * math.sqrt(_cooled(step, steps, cool))


CURVES: dict[str, Curve] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "inverse_sqrt": _inverse_sqrt,
    "wsd": _wsd,
    "wsd_sqrt": _wsd_sqrt,
}


def slanted(step: int, steps: int, cut: int, floor: float) -> float:
    """ULMFiT's slanted triangle: up to the ``cut``-th step, down to the last one.

    ``(1 + p (ratio - 1)) / ratio`` with ``p = t / cut`` for ``t < cut`` and
    ``1 - (t - cut) / (T - cut)`` after it, ``floor = 1 / ratio`` (Howard & Ruder 2018,
    https://arxiv.org/abs/1801.06146; there the last denominator is ``cut (1 / cut_frac - 1)``,
    which is ``T - cut`` wherever ``T cut_frac`` is whole, and leads below the floor elsewhere).
    """
    p = step / cut if step < cut else 1 - (step - cut) / max(1, steps - cut)
    return floor + (1 - floor) * p


def factor(
    name: Name, step: int, steps: int, *, warmup: float, floor: float, decay: float
) -> float:
    """Factor on the learning rate of optimizer step ``step`` (1-based) of ``steps``.

    With w warm-up steps it is step / w while step <= w (so the first step already learns). Then,
    with p = (step - 1 - w) / (steps - w):

    ==================  ==========================================================================
    constant            1
    linear              1 - (1 - floor) p
    cosine              floor + (1 - floor)(1 + cos(pi p)) / 2 (Loshchilov & Hutter 2017,
                        https://arxiv.org/abs/1608.03983, one cycle)
    inverse_sqrt        sqrt(w / step), at least floor (Vaswani et al. 2017,
                        https://arxiv.org/abs/1706.03762, equation 3)
    wsd                 1, and over the last d steps 1 - (1 - floor) q with
                        q = (step - 1 - (steps - d)) / d (Hu et al. 2024,
                        https://arxiv.org/abs/2404.06395, section 4.2, the decay linear)
    wsd_sqrt            as wsd, 1 - (1 - floor) sqrt(q) (Hägele et al. 2024,
                        https://arxiv.org/abs/2405.18392)
    slanted_triangular  `slanted`, whose way up is the warm-up
    ==================  ==========================================================================

    Raises:
        ValueError: ``step`` is not in 1..``steps``.
    """
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} is not in 1..{steps}")
    warm = steps_of(warmup, steps)
    if name == "slanted_triangular":
        return slanted(step, steps, max(1, warm), floor)
    if step <= warm:
        return step / warm
    cool = min(steps_of(decay, steps), steps - warm)
    return CURVES[name](step, steps, warm, floor, cool)
