"""The findings of ``alignlab data check`` for a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from alignlab.commands.text import columns

if TYPE_CHECKING:
    from alignlab.commands.data_check import Checked, Report
    from alignlab.data.gate.finding import Finding
    from alignlab.data.gate.statistics import Statistics

WIDTH = 100
HEAD = ("split", "rows", "completions", "tokens", "prompt", "completion", "row", "cut off", "kinds")
QUANTILES = "prompt, completion, row: tokens, median / 99 % / longest (row: before truncation)"


def text(report: Report) -> str:
    """Write sizes and findings of all splits."""
    parts = [
        f"{report.data}: tokens of {report.backbone}, at most {report.max_prompt} of a prompt and "
        f"{report.max_completion} of a completion",
        columns([HEAD, *map(_sizes, report.splits)], right=range(1, 8)),
        QUANTILES,
    ]
    parts.extend(_finding(", ".join(splits), finding) for splits, finding in report.merged())
    parts.append(f"{summary(report)} ({report.seconds:.1f} s)")
    return "\n\n".join(parts)


def summary(report: Report) -> str:
    """Say in one line how it went."""
    errors, warnings = report.count("error"), report.count("warning")
    said = [f"{n} {what}{'s' * (n != 1)}" for n, what in ((errors, "error"), (warnings, "warning"))]
    verdict = "training would be refused" if errors else "ready to train on"
    return f"{', '.join(said)}: {verdict}"


def _sizes(checked: Checked) -> tuple[str, ...]:
    s = checked.statistics
    lost = s.lost_tokens / max(s.tokens + s.lost_tokens, 1)
    kinds = ", ".join(f"{kind} {rows}" for kind, rows in sorted(s.verdicts.items()))
    scripts = ", ".join(f"{name} {share:.0%}" for name, share in s.scripts.items() if share >= 0.01)
    return (
        checked.split,
        f"{s.rows:,}",
        f"{s.completions:,}",
        f"{s.tokens:,}",
        *(f"{q[1]} / {q[3]} / {q[4]}" for q in (s.prompt, s.completion, s.row)),
        f"{s.truncated_rows / max(s.rows, 1):.0%} of rows, {lost:.0%} of tokens",
        f"{kinds or '-'}; {scripts or 'no letters'}; {languages_of(s)}",
    )


def languages_of(statistics: Statistics) -> str:
    """Languages of a split in one line: the shares of the rows that were looked at."""
    named = [f"{code or 'undecided'} {share:.0%}" for code, share in statistics.languages.items()]
    shown = named if len(named) <= 4 else [*named[:3], f"{len(named) - 3} more"]
    return ", ".join(shown) or "-"


def _finding(splits: str, finding: Finding) -> str:
    head = f"{finding.severity.upper()} {splits}: {finding.code}"
    if finding.count:
        head += f", {finding.count:,} row{'s' * (finding.count != 1)}"
    lines = [finding.message + ".", finding.where(), finding.advice]
    return "\n".join([head, *(_wrapped(line) for line in lines if line)])


def _wrapped(line: str) -> str:
    return textwrap.fill(
        line, WIDTH, initial_indent="    ", subsequent_indent="    ", break_long_words=False
    )
