"""Put names beside points so that they stand clear of each other and of the points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from alignlab.report.style import INK, MUTED

# (dx, dy, horizontal, vertical) in points, nicest first; far ones get a thin line to their point
PLACES = (
    (9, 6, "left", "bottom"), (-9, 6, "right", "bottom"), (9, -6, "left", "top"),
    (-9, -6, "right", "top"), (0, 12, "center", "bottom"), (0, -12, "center", "top"),
    (26, 20, "left", "bottom"), (-26, 20, "right", "bottom"), (26, -20, "left", "top"),
    (-26, -20, "right", "top"), (0, 34, "center", "bottom"), (0, -34, "center", "top"),
    (46, 40, "left", "bottom"), (-46, 40, "right", "bottom"), (46, -40, "left", "top"),
    (-46, -40, "right", "top"),
)  # fmt: skip


CROWD = 16  # points from which a name that finds no free place is left out
LEADER = {"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkB": 5}


def place_labels(
    ax: Axes,
    points: Sequence[tuple[float, float]],
    labels: Mapping[str, str],
    bars: Sequence[tuple[float, float, float, float]] = (),
) -> None:
    """Annotate ``points`` (data units) with ``labels`` (method id → text).

    Each label takes the first free place around its point, else the least bad one; among more
    than `CROWD` points it is left out then. ``bars`` are lines (x0, y0, x1, y1) that should stay
    free too.
    """
    figure = ax.figure
    canvas = FigureCanvasAgg(figure.figure)
    figure.draw_without_rendering()  # type: ignore[union-attr]
    renderer = canvas.get_renderer()
    spots = ax.transData.transform(np.asarray(points, dtype=np.float64).reshape(-1, 2))
    marks = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in spots]
    corners = ax.transData.transform(np.asarray(bars, dtype=np.float64).reshape(-1, 2))
    lines = [Bbox(pair).padded(1.5) for pair in corners.reshape(-1, 2, 2)]
    taken: list[Bbox] = []
    frame = ax.get_window_extent(renderer)
    named = zip(points, labels.items(), strict=True)
    for (x, y), (key, label) in sorted(named, key=lambda item: -item[0][1]):
        best, least = None, float("inf")
        for rank, (dx, dy, ha, va) in enumerate(PLACES):
            far = abs(dx) + abs(dy) > 20
            text = ax.annotate(
                label, (x, y), xytext=(dx, dy), textcoords="offset points", ha=ha, va=va,
                color=INK, zorder=5, gid=f"m:{key}:", arrowprops=LEADER if far else None,
            )  # fmt: skip
            text.update_positions(renderer)
            box = Bbox(Text.get_window_extent(text, renderer)).padded(1)  # without its line
            outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 + 2 and frame.y0 <= box.y0)
            hits: float = sum(box.overlaps(other) for other in (*taken, *marks))
            hits += 0.3 * sum(box.overlaps(line) for line in lines)
            badness = 10 * hits + 40 * outside + 0.2 * rank
            if badness < least:
                if best is not None:
                    best.remove()
                best, least, kept, clear = text, badness, box, hits < 1 and not outside
            else:
                text.remove()
            if hits == 0 and not outside:
                break
        if len(labels) > CROWD and best is not None and not clear:
            best.remove()  # pointing at the mark still tells its name
        else:
            taken.append(kept)
