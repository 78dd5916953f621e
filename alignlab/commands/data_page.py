"""The findings of ``alignlab data check`` as one self-contained page, in the look of the report."""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import alignlab
from alignlab.commands.data_text import languages_of, summary
from alignlab.errors import ConfigError
from alignlab.files import replace
from alignlab.report.elements import cell, heading, table

if TYPE_CHECKING:
    from alignlab.commands.data_check import Checked, Report
    from alignlab.data.gate.finding import Finding
    from alignlab.data.group import PromptGroup, Text, Verdict

LONGEST = 2000  # characters of a text that the page shows

CSS = """
.finding{border:1px solid var(--line);border-left-width:4px;border-radius:.4rem}
.finding{margin:.6rem 0;padding:.55rem .9rem;max-width:60rem}
.finding.error{border-left-color:var(--warn)}
.finding summary b{margin-right:.5rem}.finding.error summary b{color:var(--warn)}
.finding .advice{color:var(--muted)}
.finding article{border-top:1px solid var(--line);padding:.5rem 0}
.finding h4{margin:.2rem 0;font-size:.82rem;color:var(--muted);font-weight:600}
.finding dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem .9rem}
.finding dl{margin:.2rem 0;font-size:.86rem}
.finding dt{color:var(--muted)}.finding dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
@media (max-width:40rem){.finding dl{grid-template-columns:1fr}}
@media print{.finding{break-inside:avoid-page}}
"""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="alignlab $version">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#findings">Skip to the findings</a>
<header>
<p class="eyebrow">alignlab data check <span>$data</span></p>
<h1>$verdict</h1>
<p class="more">$setting</p>
</header>
<main>
<section id="findings"><h2>Findings</h2>
<p class="lead">Errors stop a stage before it trains; warnings go to its run record. Open a finding
for the first rows that show it.</p>
$findings
</section>
<section id="splits"><h2>Splits</h2>
<p class="lead">Tokens after truncation; lengths of a row before it. What a row is written in is
told by its characters, so it is a script and not a language.</p>
$splits
</section>
</main>
<footer class="end">alignlab $version</footer>
</body>
</html>
""")


def write_page(report: Report, path: Path) -> None:
    """Write the page.

    Raises:
        ConfigError: the folder does not exist or cannot be written to.
    """
    try:
        replace(path, page(report))
    except OSError as error:
        raise ConfigError(f"--html {path}: cannot be written ({error.strerror}).") from error


def page(report: Report) -> str:
    """Return the page as HTML."""
    style = (resources.files("alignlab.report") / "page.css").read_text(encoding="utf-8")
    found = [_finding(report, splits, finding) for splits, finding in report.merged()]
    return PAGE.substitute(
        title=escape(f"{report.data}: {summary(report)}"),
        version=escape(alignlab.__version__),
        style=style + CSS,
        data=escape(report.data),
        verdict=escape(summary(report)),
        setting=escape(
            f"Tokens of {report.backbone} ({report.vocabulary:,} ids), at most {report.max_prompt}"
            f" of a prompt and {report.max_completion} of a completion."
        ),
        findings="".join(found) or "<p>Nothing was found.</p>",
        splits=_splits(report),
    )


def _finding(report: Report, splits: tuple[str, ...], finding: Finding) -> str:
    rows = f", {finding.count:,} row{'s' * (finding.count != 1)}" if finding.count else ""
    checked = next(s for s in report.splits if s.split == splits[0])
    shown = "".join(
        _row(place or f"row {row}", checked.examples[row])
        for row, place in zip(finding.rows, finding.places, strict=False)  # lost rows: places only
        if row in checked.examples
    )
    where = "" if shown or not finding.where() else f"<p>{escape(finding.where())}</p>"
    opened = " open" if finding.severity == "error" else ""
    return (
        f'<details class="finding {finding.severity}"{opened}><summary><b>{finding.severity}</b>'
        f"{escape(finding.message)} "
        f'<span class="quiet">{escape(", ".join(splits))}: {escape(finding.code)}{rows}</span>'
        f'</summary><p class="advice">{escape(finding.advice)}</p>{where}{shown}</details>'
    )


def _row(place: str, group: PromptGroup) -> str:
    known = _worth(group.verdict) or [""] * len(group.completions)
    parts = [("prompt", group.prompt)]
    for number, (completion, worth) in enumerate(zip(group.completions, known, strict=True), 1):
        parts.append((f"completion {number}{worth}", completion))
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{_text(text)}</dd>" for name, text in parts)
    return f"<article><h4>{escape(place)}</h4><dl>{listed}</dl></article>"


def _worth(verdict: Verdict) -> list[str]:
    """What the verdict says of each completion; nothing for none and demonstration."""
    if verdict.ranks:
        return [f", rank {rank + 1}" for rank in verdict.ranks]
    if verdict.scores:
        return [f", score {score:g}" for score in verdict.scores]
    return [", desirable" if thumb else ", undesirable" for thumb in verdict.thumbs]


def _text(text: Text) -> str:
    if not isinstance(text, str):
        text = "\n".join(f"{m['role']}: {m.get('content') or ''}" for m in text)
    # What a page cannot hold (half characters, control characters) is shown by its escape.
    shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text[:LONGEST])
    return escape(shown) + (" …" if len(text) > LONGEST else "")


def _splits(report: Report) -> str:
    names = ("Split", "Rows", "Completions", "Tokens", "Targets", "Cut rows", "Cut tokens")
    lengths = ("Prompt", "Completion", "Row")
    head = "".join(heading(name, sortable=False) for name in names)
    head += "".join(heading(n, "median / 99 % / longest", sortable=False) for n in lengths)
    head += heading("Verdicts", kind="text", sortable=False)
    head += heading("Scripts", kind="text", sortable=False)
    head += heading("Languages", "of up to 2,000 rows", kind="text", sortable=False)
    rows = [_split(one) for one in report.splits]
    return table(head, rows, "splits", "Lengths in tokens: median / 99 % / longest")


def _split(checked: Checked) -> str:
    s = checked.statistics
    lost = s.lost_tokens / max(s.tokens + s.lost_tokens, 1)
    verdicts = ", ".join(f"{kind} {rows:,}" for kind, rows in sorted(s.verdicts.items()))
    scripts = ", ".join(f"{name} {share:.1%}" for name, share in s.scripts.items())
    numbers = (s.rows, s.completions, s.tokens, s.targets)
    cells = [cell(f"{number:,}") for number in numbers]
    cells += [cell(f"{s.truncated_rows / max(s.rows, 1):.1%}"), cell(f"{lost:.1%}")]
    cells += [cell(f"{q[1]:,} / {q[3]:,} / {q[4]:,}") for q in (s.prompt, s.completion, s.row)]
    cells += [cell(escape(verdicts), kind="text"), cell(escape(scripts), kind="text")]
    cells += [cell(escape(languages_of(s)), kind="text")]
    return f'<tr><th scope="row">{escape(checked.split)}</th>{"".join(cells)}</tr>'
