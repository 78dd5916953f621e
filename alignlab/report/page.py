"""The report of a study: one self-contained page, with tables, figures and documents beside it."""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import alignlab
from alignlab.report import sections
from alignlab.report.analysis import Analysis, Score, analyse
from alignlab.report.chapters import chapters
from alignlab.report.concerns import Concern, concerns
from alignlab.report.document import write_documents
from alignlab.report.elements import clean
from alignlab.report.exports import write_exports
from alignlab.report.live import LiveState
from alignlab.report.part import Chapter
from alignlab.report.provenance import provenance
from alignlab.report.style import Look, looks, stylesheet, swatch
from alignlab.report.svg import for_the_page_alone
from alignlab.report.table import Places, read_study
from alignlab.report.verdict import verdict

REFRESH_SECONDS = 20  # how often the page of a running study looks for a newer one of itself
FEW_METHODS = 12  # the chips of more methods are folded away
SCRIPTS = ("page.js", "votes.js")


def build_report(study: str, store: Places, live: LiveState | None = None) -> Path:
    """Write ``studies/<study>/report/`` from the run folders and return the path of its index.html.

    With ``live``, the page says how far the study has come and reloads itself.
    Raises DataError when the study does not exist or has nothing to show.
    """
    return write_report(analyse(read_study(study, store)), store, live)


def write_report(analysis: Analysis, store: Places, live: LiveState | None = None) -> Path:
    """Write the report of an analysed study and return the path of its index.html."""
    folder = store.studies / analysis.study.name / "report"
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.png"), *folder.glob("*.svg"), *folder.glob("*.pdf"),
                *folder.glob("tables/*")):  # fmt: skip
        old.unlink()  # of methods that the study no longer has
    found = looks([s.method for s in analysis.scores])
    with for_the_page_alone() if live else nullcontext():
        made = chapters(analysis, found, folder)
    doubts = doubts_of(analysis, made)
    tables = {stem: rows for one in made for stem, rows in one.part.tables.items()}
    write_exports(analysis, tables, doubts, folder)
    sentences = verdict(analysis)
    write_documents(
        analysis.study.name, analysis.study.created[:16], sentences, made, doubts, folder
    )
    path = folder / "index.html"
    _replace(path, _page(analysis, found, made, doubts, folder, live))
    return path


def render(analysis: Analysis, folder: Path, live: LiveState | None = None) -> str:
    """Return the page as HTML; its figures are written into ``folder``."""
    found = looks([s.method for s in analysis.scores])
    made = chapters(analysis, found, folder)
    return _page(analysis, found, made, doubts_of(analysis, made), folder, live)


def doubts_of(analysis: Analysis, made: Sequence[Chapter]) -> list[Concern]:
    """Concerns about the study and those of its chapters, serious ones first, each once."""
    found = [*concerns(analysis), *(c for one in made for c in one.part.concerns)]
    return sorted(dict.fromkeys(found), key=lambda concern: concern.level != "serious")


def _replace(path: Path, text: str) -> None:
    """Write in one step, so that a reader who refreshes never sees half a page."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".index-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).chmod(0o644)
    Path(name).replace(path)


def _page(
    analysis: Analysis,
    found: dict[str, Look],
    made: Sequence[Chapter],
    doubts: Sequence[Concern],
    folder: Path,
    live: LiveState | None,
) -> str:
    sentences = verdict(analysis)
    script = "(() => {{{}}})();".format("".join(_file(name) for name in SCRIPTS))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_file("page.html")).substitute(
        live=f'data-live="{REFRESH_SECONDS}"' if live else "",
        title=escape(clean(f"{analysis.study.name}: {sentences[0]}")),
        version=escape(alignlab.__version__),
        hash=f"sha256-{digest}",
        style=stylesheet(found) + _file("page.css"),
        script=script,
        study=escape(analysis.study.name),
        created=escape(analysis.study.created.replace("T", " ")[:16]),
        running=_running(live) if live else "",
        headline=_headline(sentences[0], analysis),
        verdict="".join(f'<p class="more">{_together(escape(s))}</p>' for s in sentences[1:]),
        doubts=_count(doubts),
        nav=_navigation(made),
        filters=_filters(analysis, found),
        chapters="".join(map(_chapter, made)) or '<p class="quiet">Nothing to show yet.</p>',
        concerns=sections.concern_list(doubts),
        provenance=provenance(analysis, folder),
        files=_files(folder),
    )


def _file(name: str) -> str:
    return (resources.files("alignlab.report") / name).read_text(encoding="utf-8")


def _running(live: LiveState) -> str:
    failed = f", {live.failed} failed" if live.failed else ""
    now = datetime.datetime.now().astimezone()
    return (
        f'<span class="running" role="status" data-beat="{now.timestamp():.0f}">study is running: '
        f"{live.done} of {live.total} stages done, {live.running} at work{failed}; written "
        f"{now:%Y-%m-%d %H:%M}</span>"
    )


def _count(doubts: Sequence[Concern]) -> str:
    serious = sum(c.level == "serious" for c in doubts)
    notes = len(doubts) - serious
    return (
        f"{serious} serious doubt{'s' * (serious != 1)}, {notes} note{'s' * (notes != 1)} on "
        "this comparison"
    )


def _navigation(made: Sequence[Chapter]) -> str:
    titles = {one.id: one.title for one in made} | {"doubts": "Doubts", "provenance": "Provenance"}
    return "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title in titles.items())


def _chapter(one: Chapter) -> str:
    lead = f'<p class="lead">{one.lead}</p>' if one.lead else ""
    return f'<section id="{one.id}"><h2>{escape(one.title)}</h2>\n{lead}\n{one.part.html}</section>'


def _together(text: str) -> str:
    """Keep an interval, its number and ``p = …`` on one line."""
    space = "\u00a0"
    text = re.sub(r" ?\[([^\]]*)\]", lambda m: m[0].replace(" ", space), clean(text))
    return re.sub(r"\bp (=|&lt;) ", rf"p{space}\1{space}", text)


def _headline(sentence: str, analysis: Analysis) -> str:
    text = _together(escape(sentence))
    if not analysis.trained:
        return text
    name = escape(analysis.trained[0].method.label)
    return text.replace(name, f"<strong>{name}</strong>", 1)


def _filters(analysis: Analysis, found: dict[str, Look]) -> str:
    """Chips for the methods, and a choice of training seed."""
    count = len(analysis.scores)
    chips = "".join(_chip(s, found[s.method.id]) for s in analysis.scores)
    group = f'<div class="chips" role="group" aria-label="Show or hide methods">{chips}</div>'
    if count > FEW_METHODS:
        group = (
            f'<details class="many"><summary>Methods <span class="quiet" id="count">{count} of '
            f"{count} shown</span></summary>{group}</details>"
        )
    seeds = "".join(f'<option value="{s}">seed {s}</option>' for s in analysis.seeds)
    hidden = " hidden" if len(analysis.seeds) < 2 else ""
    return (
        f'{group}<button type="button" id="all" hidden>Show all</button>'
        f'<label class="seed"{hidden}><span class="sr">Training seed</span><select id="seed">'
        f'<option value="">all seeds</option>{seeds}</select></label>'
    )


def _chip(score: Score, look: Look) -> str:
    method = score.method
    return (
        f'<button type="button" aria-pressed="true" data-method="{method.id}">'
        f"{swatch(look)}{escape(method.label)}</button>"
    )


def _files(folder: Path) -> str:
    """Links to the tables and documents that stand beside the page."""
    names = [*sorted(p.name for p in folder.glob("*.csv")), "report.md", "report.tex"]
    links = [f'<a href="{name}">{name}</a>' for name in names if (folder / name).is_file()]
    stems = sorted({p.stem for p in folder.glob("tables/*.csv")})
    if stems:
        links.append(f'<a href="tables/">tables/</a> ({", ".join(stems)})')
    return ", ".join(links)
