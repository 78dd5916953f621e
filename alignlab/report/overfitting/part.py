"""The section on overfitting: gaps and their courses, copying against human texts, and doubts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from alignlab.report.analysis import Analysis
from alignlab.report.concern import Concern, note, serious, some
from alignlab.report.elements import cell, heading, method_link, run_link, table, with_interval
from alignlab.report.overfitting.figure import drawn, trajectories
from alignlab.report.overfitting.numbers import Copied, Course, copied, courses, seeds_of
from alignlab.report.part import Part
from alignlab.report.statistics import Interval
from alignlab.report.style import Look
from alignlab.report.svg import picture
from alignlab.report.verdict import plain

RISES = 3  # evaluations after the best one from which on a doubt is stated
RISE = 0.05  # share of the best value from which on that doubt is serious
GAPS = {"nll": 0.5, "accuracy": 0.15}  # nats per token, share of pairs: gaps that are stated
Row = Mapping[str, Any]


def part(analysis: Analysis, looks: Mapping[str, Look], folder: Path) -> Part:
    """Tables, figure and doubts from the evaluations of trainings and from copying tasks."""
    found, verbatim = courses(analysis), copied(analysis)
    html = []
    if found:
        titles = ", ".join(title for title, _ in drawn(found))
        text = f"Held-out rows (dashed) and trained-on rows (solid) over the training of {titles}"
        html += [picture(trajectories(found), "overfitting", text, looks, folder), _gaps(found)]
    if verbatim:
        html += ["<h3>Verbatim copying</h3>", _copying(verbatim)]
    rows = {"overfitting": _course_rows(found), "copying": _copied_rows(verbatim)}
    return Part(
        html="".join(html),
        tables={stem: listed for stem, listed in rows.items() if listed},
        concerns=(*doubts(found), *_recitals(verbatim)),
    )


def _gaps(found: Mapping[str, Sequence[Course]]) -> str:
    head = (
        heading("training") + heading("seed") + heading("measure", kind="text")
        + heading("held out", "of the weights that were kept")
        + heading("trained on", "the same measure of rows that were trained on")
        + heading("gap", "how much better trained-on rows fare")
        + heading("best at step", "evaluation with the best held-out value")
        + heading("since", "evaluations after the best one")
        + heading("kept", kind="text")
    )  # fmt: skip
    rows = []
    for title, own in found.items():
        for course in own:
            best = None if course.best is None else int(course.steps[course.best])
            seed = course.run.record.get("seed")
            cells = [
                f'<th scope="row">{run_link(course.run.name, title)}</th>',
                cell(escape(str(seed)), seed),
                cell(escape(course.metric), kind="text"),
                *(_number(value) for value in (course.end, course.end_train, course.gap)),
                cell("—" if best is None else str(best), best),
                cell(str(course.since) if best is not None else "—", course.since),
                cell("best" if course.restored else "last", kind="text"),
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
    return table(head, rows, "gaps", "Held-out rows against rows that were trained on")


def _number(value: float) -> str:
    return cell(plain(value, 3) if math.isfinite(value) else "—", value)


def _copying(found: Sequence[Copied]) -> str:
    head = (
        heading("method") + heading("task", kind="text") + heading("measure", kind="text")
        + heading("policy", "95 % interval over training seeds and prompts")
        + heading("compared with", "human texts of the same prompts; rows not trained on")
        + heading("excess", "difference on the same prompts")
    )  # fmt: skip
    rows = []
    for one in found:
        excess = with_interval(one.excess, 3, sign=True)
        order = one.excess.value if one.excess else None
        cells = [
            f'<th scope="row">{escape(one.method.label)}</th>',
            cell(escape(one.task), kind="text"),
            cell(escape(one.metric.replace("_", " ")), kind="text"),
            cell(method_link(one.method.id, with_interval(one.value, 3)), one.value.value),
            cell(with_interval(one.other, 3), one.other.value),
            cell(f"<b>{excess}</b>" if one.surely else excess, order),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = "Share of n-grams, longest run and recitation of training rows; bold: beyond chance"
    return table(head, rows, "copying", caption)


def doubts(found: Mapping[str, Sequence[Course]]) -> Iterator[Concern]:
    """Trainings that went on after their best, and gaps beyond `GAPS`, each stage once."""
    for title, own in found.items():
        late = [c for c in own if c.lower and c.since >= RISES and c.worse > 0 and not c.restored]
        if late:
            worst = max(late, key=lambda course: course.worse)
            best = worst.best or 0
            raised = serious if worst.worse > RISE else note
            yield raised(
                "overfitting",
                f"{title} ({seeds_of(late)}): the {worst.metric} of held-out rows was lowest at"
                f" step {worst.steps[best]:.0f} ({worst.held_out[best]:.3f}) and higher at all"
                f" {worst.since} evaluations since (at last {worst.held_out[-1]:.3f}); the last"
                " weights were kept. early_stopping keeps the best ones",
            )
        for metric, bound in GAPS.items():
            wide = [c for c in own if c.metric == metric and c.gap > bound]
            if wide:
                most = max(wide, key=lambda course: course.gap)
                yield note(
                    "generalisation gap",
                    f"{title} ({seeds_of(wide)}): {metric} is {most.end_train:.3f} on rows that"
                    f" were trained on and {most.end:.3f} on held-out ones, a gap above {bound:g}:"
                    " what it has learnt holds for its own rows more than for others",
                )


def _recitals(found: Sequence[Copied]) -> Iterator[Concern]:
    """Methods that copy more than people do on the same prompts, or recite what they saw."""
    by_method: dict[str, list[Copied]] = {}
    for one in found:
        if one.surely:
            by_method.setdefault(one.method.label, []).append(one)
    for label, own in by_method.items():
        said = [
            f"{c.metric.replace('_', ' ')} {c.value.value:.3g} against {c.other.value:.3g}"
            for c in own
        ]
        recites = any(c.excess is None for c in own)
        text = f"{label} repeats its training rows more than texts that were not trained on do"
        yield (serious if recites else note)("verbatim copying", f"{text}: {some(said, 12)}")


def _course_rows(found: Mapping[str, Sequence[Course]]) -> list[Row]:
    return [
        {
            "training": title, "run": c.run.name, "seed": c.run.record.get("seed"),
            "measure": c.metric, "held_out": _known(c.end), "trained_on": _known(c.end_train),
            "gap": _known(c.gap),
            "best_step": None if c.best is None else int(c.steps[c.best]),
            "evaluations_since": c.since, "best_restored": c.restored,
        }
        for title, own in found.items()
        for c in own
    ]  # fmt: skip


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _copied_rows(found: Sequence[Copied]) -> list[Row]:
    return [
        {
            "method": c.method.full_label, "task": c.task, "measure": c.metric,
            **_ends("value", c.value), **_ends("compared_with", c.other),
            **_ends("excess", c.excess),
        }
        for c in found
    ]  # fmt: skip


def _ends(name: str, found: Interval | None) -> dict[str, float | None]:
    if found is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
