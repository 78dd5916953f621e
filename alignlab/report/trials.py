"""The section on a sweep whose settings were chosen by results: every trial, whatever its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from alignlab import files
from alignlab.report.analysis import Analysis
from alignlab.report.concern import Concern, note, serious
from alignlab.report.elements import cell, clean, heading, table
from alignlab.report.part import Part
from alignlab.report.style import Look

FILE = "trials.json"  # in the folder of the study
LEAD = (
    "Settings were chosen by the results so far. The values are those that the sampler saw{on}; a "
    "trial that diverged or failed was paid for and counts. Bold: {best}."
)


def part(analysis: Analysis, looks: Mapping[str, Look], folder: Path) -> Part:
    """A table of the trials of a sweep, and the doubts that it raises."""
    content = files.read_json(analysis.study.root / "studies" / analysis.study.name / FILE)
    if not content or not content["trials"]:
        return Part()
    on = ", on validation prompts" if content["split"] == "validation" else ""
    several = len(content["objectives"]) > 1
    best = "not dominated by any other" if several else "the best one"
    counts = {
        state: sum(row["state"] == state for row in content["trials"])
        for state in ("done", "diverged", "failed", "running")
    }
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    sampler = str(content["sampler"].get("_target_", "")).rpartition(".")[2]
    share = f"{len(content['trials'])} of {content['n_trials']} trials"
    html = (
        f'<p class="lead">{LEAD.format(on=on, best=best)}</p>'
        f"<p>{share}, chosen by {escape(sampler)}: {told}.</p>{_table(content)}"
    )
    return Part(html, {"sweep_trials": trial_rows(content)}, tuple(doubts(content, counts)))


def trial_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every trial as a row for files: number, state, values, settings, why it has no values."""
    names = [objective["name"] for objective in content["objectives"]]
    return [
        {
            "trial": row["number"],
            "state": row["state"],
            **dict(zip(names, row["values"] or [None] * len(names), strict=True)),
            **row["params"],
            "reason": row["reason"],
        }
        for row in content["trials"]
    ]


def doubts(content: Mapping[str, Any], counts: Mapping[str, int]) -> Iterator[Concern]:
    """What could be wrong with a choice among trials."""
    if content["split"] == "test":
        yield serious(
            "chosen on test prompts",
            f"The settings of {len(content['trials'])} trials were chosen by scores on the prompts "
            "that are reported, where the best one looks better than it is; with "
            "hydra.sweeper.split=validation they are chosen on others.",
        )
    if broken := counts["diverged"] + counts["failed"]:
        yield note(
            "trials without a value",
            f"{broken} of {len(content['trials'])} trials: {counts['diverged']} diverged, "
            f"{counts['failed']} failed.",
        )


def _table(content: Mapping[str, Any]) -> str:
    names = [objective["name"] for objective in content["objectives"]]
    fields = list(dict.fromkeys(key for row in content["trials"] for key in row["params"]))
    head = "".join(
        [
            heading("trial"),
            heading("end", kind="text"),
            *(heading(escape(clean(name))) for name in names),
            *(heading(escape(clean(field))) for field in fields),
        ]
    )
    sign = -1.0 if content["objectives"][0]["direction"] == "maximize" else 1.0
    ordered = sorted(
        content["trials"],
        key=lambda row: (not row["values"], sign * (row["values"] or [0.0])[0], row["number"]),
    )
    best = set(content["best"])
    rows = [_row(row, names, fields, row["number"] in best) for row in ordered]
    return table(head, rows, "trials", "Every trial of the sweep, best first.")


def _row(row: Mapping[str, Any], names: Sequence[str], fields: Sequence[str], best: bool) -> str:
    number = f"<b>{row['number']}</b>" if best else str(row["number"])
    why = f"{row['state']}: {row['reason']}" if row["reason"] else row["state"]
    values = row["values"] or [None] * len(names)
    cells = [
        cell(number, row["number"]),
        cell(f"<small>{escape(clean(why))}</small>", kind="text"),
        *(cell("—" if v is None else f"{v:.4g}", v) for v in values),
        *(_setting(row["params"].get(field)) for field in fields),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _setting(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return cell(f"{value:.4g}", value)
    return cell(escape(clean(str(value))), kind="text")
