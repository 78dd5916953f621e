"""results.json for people: a table in Markdown and a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
    "work",
    "unit",
    "alignlab",
    "TRL tuned",
    "TRL default",
    "times tuned",
    "loss difference",
    "peak MiB (ours / tuned)",
    "process s (ours / tuned)",
)


def machine() -> dict[str, Any]:
    """Hardware and versions, as every run of alignlab records them."""
    from alignlab.environment import hardware, versions

    return {"hardware": hardware(), "packages": versions()}


def write(out: Path, results: Mapping[str, Any]) -> None:
    """``results.md`` and ``results.png`` beside results.json."""
    lines = [markdown(results), ""]
    (out / "results.md").write_text("\n".join(lines), encoding="utf-8")
    chart(out / "results.png", results["rows"])


def markdown(results: Mapping[str, Any]) -> str:
    """One table per model and adapter."""
    parts = [f"`{results['command']}`"]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        groups.setdefault((row["model"], row["adapter"]), []).append(row)
    for (model, adapter), rows in groups.items():
        parts.append(f"## {model}, {adapter}\n")
        parts.append("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
        parts[-1] += "".join("\n| " + " | ".join(cells(row)) + " |" for row in rows)
        notes = [f"- {row['work']}: {note}" for row in rows for note in row["notes"]]
        if notes:
            parts.append("\n".join(notes))
    return "\n\n".join(parts)


def text(results: Mapping[str, Any]) -> str:
    """The same for a terminal: the ratios alone."""
    lines = []
    for row in results["rows"]:
        name = f"{row['work']} {row['model']} {row['adapter']}"
        found = f"{row['ratio']:.2f} times tuned TRL" if row["ratio"] else "no ratio"
        parity = "losses agree" if row["parity"]["passed"] else "NO PARITY"
        lines.append(f"{name:32} {found:24} {parity}")
    return "\n".join(lines)


def cells(row: Mapping[str, Any]) -> list[str]:
    """Cells of one row."""
    memory, seconds = row["peak_memory"], row["process_seconds"]
    ratio = f"**{row['ratio']:.2f}**" if row["ratio"] else "–"
    return [
        row["work"],
        row["unit"],
        *(rate(row, side) for side in ("ours", "trl_tuned", "trl_default")),
        ratio,
        parity(row["parity"]),
        f"{number(memory.get('ours'))} / {number(memory.get('trl_tuned'))}",
        f"{number(seconds.get('ours'))} / {number(seconds.get('trl_tuned'))}",
    ]


def rate(row: Mapping[str, Any], side: str) -> str:
    """Median with the range of the repeats."""
    if row[side] is None:
        return "–"
    low, high = row["spread"][side]
    span = f" ({three(low)} to {three(high)})" if row["repeats"][side] > 1 else ""
    return three(row[side]) + span


def three(value: float) -> str:
    """Three digits, with commas and never an exponent."""
    return f"{float(f'{value:.3g}'):,g}"


def parity(found: Mapping[str, Any]) -> str:
    """Largest difference of a loss in float32, and of the mean loss of the timed runs."""
    strict = found["strict"].get("largest")
    parts = ["–" if strict is None else f"{strict:.1e} fp32"]
    timed = [t["mean"] for t in found["timed"].values()]
    if timed:
        parts.append(f"{max(timed):.1e} timed (mean)")
    return ", ".join(parts) + ("" if found["passed"] else " **fails**")


def number(value: float | None) -> str:
    """Whole number, or a dash."""
    return "–" if value is None else f"{value:.0f}"


def chart(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Speed relative to tuned TRL, one bar per work and side, with the range of the repeats."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["trl_tuned"] and row["ours"]]
    if not shown:
        return
    figure = Figure(figsize=(8, 0.8 + 0.55 * len(shown)), layout="constrained")
    axes = figure.subplots()
    sides = {"ours": "#1b6ca8", "trl_tuned": "#8a8a8a", "trl_default": "#cfcfcf"}
    names = {"ours": "alignlab", "trl_tuned": "TRL 1.16, tuned", "trl_default": "TRL 1.16, default"}
    for offset, (side, colour) in enumerate(sides.items()):
        for place, row in enumerate(shown):
            if row[side] is None:
                continue
            base = row["trl_tuned"]
            value = row[side] / base
            low, high = (x / base for x in row["spread"][side])
            axes.barh(
                place + 0.26 * (offset - 1),
                value,
                height=0.24,
                color=colour,
                xerr=[[value - low], [high - value]],
                label=names[side] if place == 0 else None,
                hatch=None if row["parity"]["passed"] else "///",
                error_kw={"linewidth": 1},
            )
    labels = [f"{row['work']}\n{row['model']}, {row['adapter']}" for row in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.set_xlabel("items per second, tuned TRL = 1 (hatched: losses do not agree)")
    axes.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)
