"""Length: whether a method writes more, and what of its gain is left at equal length."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from alignlab.report import figures
from alignlab.report import statistics as st
from alignlab.report.analysis import Analysis, Score
from alignlab.report.elements import (
    Looks,
    cell,
    column_digits,
    heading,
    method_link,
    name_cell,
    table,
    with_interval,
)
from alignlab.report.part import Part
from alignlab.report.statistics import Interval
from alignlab.report.svg import picture

COLUMNS = (
    ("Method", ""),
    ("Tokens", "tokens per completion, 95 % interval"),
    ("Tokens over {base}", "paired difference on the same seeds and prompts"),
    ("EOS", "share of completions that end by themselves"),
    ("Gold over {base}", "paired difference on the same seeds and prompts"),
    ("at equal length", "the same without what longer completions of one method earn by length"),
)


def slope(gold: Mapping[str, np.ndarray], tokens: Mapping[str, np.ndarray]) -> float:
    """Gold reward per token within methods: pooled least squares after removing method means.

    ``gold`` and ``tokens`` map a method to its (seeds, prompts) table. NaN where length does not
    vary.
    """
    above, below = 0.0, 0.0
    for method, reward in gold.items():
        known = ~(np.isnan(reward) | np.isnan(tokens[method]))
        if known.sum() < 2:
            continue
        x, y = tokens[method][known], reward[known]
        above += float(((x - x.mean()) * (y - y.mean())).sum())
        below += float(((x - x.mean()) ** 2).sum())
    return above / below if below > 0 else float("nan")


def at_equal_length(analysis: Analysis) -> dict[str, Interval]:
    """Gain in gold over the baseline, minus the slope times the gain in tokens, per method."""
    base = analysis.baseline
    if base is None:
        return {}
    gold, tokens = analysis.cells["gold"], analysis.cells["tokens"]
    per_token = slope(gold, tokens)
    found = {}
    for score in analysis.scores:
        one, zero = score.method.id, base.method.id
        gain = gold[one] - gold[zero] - per_token * (tokens[one] - tokens[zero])
        if score is not base and not np.isnan(gain).all():
            found[one] = st.hierarchical_bootstrap(gain)
    return found


def part(analysis: Analysis, looks: Looks, folder: Path) -> Part:
    """Figure and table of the lengths; empty when no tokens were counted."""
    if not any("tokens" in score.metrics for score in analysis.scores):
        return Part()
    equal = at_equal_length(analysis)
    text = "Tokens per completion and share of finished completions; the numbers are in the table"
    figure = picture(figures.lengths(analysis, looks), "length", text, looks, folder)
    shown = figures.leading(analysis)
    places = {
        "tokens": column_digits(s.metrics.get("tokens") for s in shown),
        "more": column_digits(s.over_sft.get("tokens") for s in shown),
        "gold": column_digits(s.over_sft.get("gold") for s in shown),
    }
    rows = [_row(score, looks, equal.get(score.method.id), places) for score in shown]
    head = "".join(heading(t.format(base=escape(analysis.base_name)), hint) for t, hint in COLUMNS)
    caption = f"Lengths, and gains over {analysis.base_name} at equal length"
    listed = [_record(score, equal.get(score.method.id)) for score in analysis.scores]
    return Part(figure + table(head, rows, "sortable", caption), {"length": listed})


def _row(score: Score, looks: Looks, equal: Interval | None, places: Mapping[str, int]) -> str:
    tokens, finished = score.metrics.get("tokens"), score.metrics.get("finished")
    more, gold = score.over_sft.get("tokens"), score.over_sft.get("gold")
    cells = (
        (with_interval(tokens, places["tokens"]), tokens),
        (with_interval(more, places["more"], sign=True), more),
        (f"{finished.value:.0%}" if finished else "—", finished),
        (with_interval(gold, places["gold"], sign=True), gold),
        (with_interval(equal, places["gold"], sign=True), equal),
    )
    shown = "".join(
        cell(method_link(score.method.id, text) if found else text, found.value if found else None)
        for text, found in cells
    )
    name = name_cell(score, looks, settings=False)
    return f'<tr data-m="{score.method.id}">{name}{shown}</tr>'


def _record(score: Score, equal: Interval | None) -> dict[str, Any]:
    found = {
        "tokens": score.metrics.get("tokens"),
        "tokens_over_sft": score.over_sft.get("tokens"),
        "finished": score.metrics.get("finished"),
        "gold_over_sft": score.over_sft.get("gold"),
        "gold_over_sft_at_equal_length": equal,
    }
    row: dict[str, Any] = {"method": score.method.label}
    for name, interval in found.items():
        for field in ("value", "low", "high"):
            key = name if field == "value" else f"{name}_{field}"
            row[key] = getattr(interval, field) if interval else None
    return row
