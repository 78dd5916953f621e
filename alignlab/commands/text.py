"""Numbers and tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignlab.engine.progress import clock

if TYPE_CHECKING:
    from alignlab.plan import Node, Plan

HEADER = ("stage", "run", "", "parameters", "trained", "tokens", "FLOPs", "memory", "time")


def count(number: float, unit: str = "") -> str:
    """Shorten a number to three figures: ``3.84M``, ``128``; a dash for nothing."""
    if number <= 0:
        return "-"
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}{unit}"
    return f"{number:.0f}{unit}"


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Align rows of text in columns; those in ``right`` to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def plan_table(plan: Plan) -> str:
    """Write a plan as a table, with the totals of what is still to do."""
    counted = plan.counted()
    rows = [HEADER, *(_row(node, node.run in counted) for node in plan.nodes.values())]
    todo = plan.pending()
    summary = f"{len(plan.nodes)} stages of {len(plan.jobs)} job{'s'[: len(plan.jobs) != 1]}, "
    if not todo:
        return f"{columns(rows, right=range(3, 9))}\n\n{summary}all in the store: nothing to do."
    flops = count(sum(node.estimate.flops for node in todo))
    seconds = sum(node.seconds for node in todo)
    peak = max(node.estimate.memory_bytes for node in todo)
    summary += (
        f"{len(todo)} to do: {flops} FLOPs, about {_time(seconds)} one after another, "
        f"peak {count(peak, 'B')} each. Estimates are upper bounds for texts at the length limit."
    )
    return f"{columns(rows, right=range(3, 9))}\n\n{summary}"


def _row(node: Node, counted: bool) -> tuple[str, ...]:
    known = node.estimate
    return (
        node.name,
        node.run,
        "cached" if node.cached else "counted" if counted else "to do",
        count(known.params_total),
        count(known.params_trained),
        count(known.tokens),
        count(known.flops),
        count(known.memory_bytes, "B"),
        _time(node.seconds),
    )


def _time(seconds: float) -> str:
    return "-" if seconds <= 0 else "<1s" if seconds < 1 else clock(seconds)
