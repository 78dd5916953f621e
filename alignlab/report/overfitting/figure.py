"""Figure of overfitting: held-out and trained-on rows as each training went on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from alignlab.report.figures import FEW_LINES, RC
from alignlab.report.overfitting.numbers import Course
from alignlab.report.style import COLOURS, INK, MUTED

COLUMNS, MOST = 3, 12  # panels in a row, and in all
OWN = COLOURS[0][0]


def drawn(found: Mapping[str, Sequence[Course]]) -> dict[tuple[str, str], list[Course]]:
    """Courses with a line to draw, by title and metric: the first metric that each title has."""
    panels: dict[tuple[str, str], list[Course]] = {}
    for title, own in found.items():
        lines = [course for course in own if len(course.steps) > 1]
        if lines:
            metric = lines[0].metric
            panels[title, metric] = [c for c in lines if c.metric == metric]
    return dict(list(panels.items())[:MOST])


def trajectories(found: Mapping[str, Sequence[Course]]) -> Figure | None:
    """Draw held-out rows dashed and trained-on rows solid, seed by seed; a ring at the best."""
    panels = drawn(found)
    if not panels:
        return None
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    with rc_context(RC):
        figure = Figure(figsize=(0.6 + 2.3 * columns, 1.9 * lines), layout="constrained", dpi=72)
        axes = figure.subplots(lines, columns, squeeze=False)
        for ax in list(axes.flat)[len(panels) :]:
            ax.set_axis_off()
        for ax, ((title, metric), own) in zip(axes.flat, panels.items(), strict=False):
            for course in own[:FEW_LINES]:
                tag = f"m::s{course.run.record.get('seed')}"
                if np.isfinite(course.train).any():
                    ax.plot(course.steps, course.train, color=OWN, lw=1.4, gid=tag)
                ax.plot(course.steps, course.held_out, color=MUTED, lw=1.2, ls=(0, (3, 2)),
                        marker=".", ms=4, gid=tag)  # fmt: skip
                if course.best is not None:
                    ax.plot(course.steps[course.best], course.held_out[course.best], "o", ms=7,
                            mfc="none", mec=INK, gid=tag)  # fmt: skip
            ax.set_title(f"{title}\n{metric.replace('nll', 'nats per token')}", fontsize=9)
            ax.locator_params(nbins=4)
            ax.set_xlabel("step")
    return figure
