"""What each method forgets at one and the same gain, read off its curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Point = tuple[float, float]  # (gained, forgotten)

PLAIN = "tuned"
# Weaker and weaker holds, or longer and longer training, end in the plain run.
ENDS_IN_PLAIN = (
    "stopped", "rehearsal", "l2sp", "ewc", "forward", "reverse", "js", "replay", "on_policy",
    "linear", "slerp",
)  # fmt: skip
OTHERS = ("arithmetic", "ties", "dare", "dare_ties")  # rules for two results, scaled up from none


def curves(points: Mapping[str, Point]) -> dict[str, list[Point]]:
    """Curves of one seed's points, by method: from the start (0, 0) on, sorted by what is gained.

    ``points`` are the differences to the start by name of the evaluated stage.
    """
    found: dict[str, list[Point]] = {}
    for method in (*ENDS_IN_PLAIN, *OTHERS):
        own = [at for name, at in points.items() if name.partition(",")[0] == method]
        end = [points[PLAIN]] if method in ENDS_IN_PLAIN and PLAIN in points else []
        if own:
            found[method] = sorted([(0.0, 0.0), *own, *end])
    return found


def forgotten_at(curve: Sequence[Point], gain: float) -> float | None:
    """What is forgotten where the curve reaches ``gain``, by straight lines between its points.

    None where it does not reach it. Points than which another gains more and forgets less are left
    out: nobody would stop there.
    """
    kept = [
        (gained, forgotten)
        for gained, forgotten in curve
        if not any(g >= gained and f < forgotten for g, f in curve)
    ]
    gained, forgotten = np.array(kept).T
    return float(np.interp(gain, gained, forgotten)) if gained[-1] >= gain else None
