"""The report in a terminal: verdict, table, doubts."""

from __future__ import annotations

import shutil
import textwrap

from alignlab.report.analysis import Analysis, Score, analyse
from alignlab.report.concerns import concerns
from alignlab.report.table import Places, read_study
from alignlab.report.verdict import (
    between,
    gold_digits,
    p_text,
    plain,
    seconds_text,
    signed,
    verdict,
)


def text_summary(study: str, store: Places) -> str:
    """Return the verdict, one line per method and the serious doubts of ``study`` as plain text."""
    return summary_of(analyse(read_study(study, store)))


def summary_of(analysis: Analysis) -> str:
    """Return the verdict, one line per compared method and the serious doubts as plain text."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    lines = [textwrap.fill(" ".join(verdict(analysis)), width), ""]
    if analysis.scores:
        lines += [*_table(analysis), ""]
    doubts = concerns(analysis)
    serious = [c for c in doubts if c.level == "serious"]
    for concern in serious:
        text = f"! {concern.topic}: {concern.text}"
        lines.append(textwrap.fill(text, width, subsequent_indent="  "))
    notes = len(doubts) - len(serious)
    if notes:
        lines.append(f"{notes} more note{'s' * (notes > 1)} on the page.")
    return "\n".join(lines).rstrip() + "\n"


def _table(analysis: Analysis) -> list[str]:
    digits = gold_digits(analysis)
    head = ["method", "gold", "", "over SFT", "p (Holm)", "audit", "proxy", "KL", "tokens", "time"]
    rows = [head, *(_row(score, digits) for score in analysis.compared)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            text.ljust(width) if i in (0, 2) else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "─" * max(map(len, lines)), *lines[1:]]


def _row(score: Score, digits: int) -> list[str]:
    gold, over = score.metrics["gold"], score.over_sft.get("gold")
    kl = score.value("kl")
    bound = "≤ " if score.kl_is_analytic else ""
    return [
        score.method.label,
        plain(gold.value, digits),
        between(gold, digits),
        signed(over.value, digits) if over else "—",
        p_text(score.p_over_sft),
        plain(score.value("audit"), digits),
        plain(score.value("proxy"), digits),
        f"{bound}{plain(kl)}",
        plain(score.value("tokens"), 0),
        seconds_text(score.cost.get("seconds")),
    ]
