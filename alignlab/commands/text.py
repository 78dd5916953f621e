"""Numbers and tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignlab.engine.progress import clock

if TYPE_CHECKING:
    from alignlab.capacity.forecast import Forecast, Need
    from alignlab.plan import Node, Plan

HEADER = ("stage", "run", "", "parameters", "trained", "tokens", "FLOPs", "memory", "time")
WIDTH = 100  # characters of a terminal
SPARE = ("trained", "tokens", "parameters")  # columns that go where a table is wider


def count(number: float, unit: str = "") -> str:
    """Shorten a number to three figures: ``3.84M``, ``128``; a dash for nothing."""
    if number <= 0:
        return "-"
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
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


def plan_table(plan: Plan, forecast: Forecast | None = None) -> str:
    """Write a plan as a table, with the totals of what is still to do."""
    counted = plan.counted()
    needs = {} if forecast is None else forecast.needs
    priced = any(need.price is not None for need in needs.values())
    header = (*HEADER, "price") if priced else HEADER
    nodes = plan.nodes.values()
    rows = [header, *(_row(n, n.run in counted, needs.get(n.run), priced) for n in nodes)]
    table = columns(within(rows), right=range(3, 10))
    todo = plan.pending()
    summary = f"{len(plan.nodes)} stages of {len(plan.jobs)} job{'s'[: len(plan.jobs) != 1]}, "
    if not todo:
        return f"{table}\n\n{summary}all in the store: nothing to do.{_elsewhere(plan)}"
    flops = count(sum(node.estimate.flops for node in todo))
    seconds = sum(_seconds(node, needs.get(node.run)) for node in todo)
    peak = max(_bytes(node, needs.get(node.run)) for node in todo)
    summary += (
        f"{len(todo)} to do: {flops} FLOPs, about {_time(seconds)} one after another, "
        f"peak {count(peak, 'B')} each. Estimates are upper bounds for texts at the length limit."
    )
    return f"{table}\n\n{summary}{_elsewhere(plan)}"


def _elsewhere(plan: Plan) -> str:
    """Say how many runs come from where, if any do."""
    places = Counter(node.upstream for node in plan.nodes.values() if node.upstream)
    told = ", ".join(f"{number} from {place}" for place, number in places.items())
    return f"\nUpstream: {told}." if told else ""


def within(rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[Sequence[str]]:
    """Leave out columns of `SPARE` until a table fits into ``width`` characters."""
    kept = list(range(len(rows[0])))
    for name in ("", *SPARE):
        kept = [i for i in kept if rows[0][i] != name or not name]
        chosen = [[row[i] for i in kept] for row in rows]
        if max(map(len, columns(chosen).splitlines())) <= width:
            break
    return [tuple(row) for row in chosen]


def _row(node: Node, counted: bool, need: Need | None, priced: bool) -> tuple[str, ...]:
    known = node.estimate
    price = "-" if need is None or need.price is None else f"${need.price:,.2f}"
    return (
        node.name,
        node.run,
        _state(node, counted),
        count(known.params_total),
        count(known.params_trained),
        count(known.tokens),
        count(known.flops),
        count(_bytes(node, need), "B"),
        _time(_seconds(node, need)),
        *((price,) if priced else ()),
    )


def _state(node: Node, counted: bool) -> str:
    if node.cached:
        return "upstream" if node.upstream else "cached"
    return "counted" if counted else "to do"


def _bytes(node: Node, need: Need | None) -> int:
    known = need.memory if need is not None else None
    return node.estimate.memory_bytes if known is None else known.total


def _seconds(node: Node, need: Need | None) -> float:
    return node.seconds if need is None else need.seconds


def _time(seconds: float) -> str:
    return "-" if seconds <= 0 else "<1s" if seconds < 1 else clock(seconds)
