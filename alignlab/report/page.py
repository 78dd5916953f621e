"""The report of a study: one self-contained page, with CSV, PNG and SVG files beside it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

import alignlab
from alignlab.report import figures, sections
from alignlab.report.analysis import Analysis, Score, analyse
from alignlab.report.browser import SHOWN_PROMPTS, provenance, samples
from alignlab.report.concerns import concerns
from alignlab.report.curves import read_curves
from alignlab.report.exports import write_csv
from alignlab.report.style import CONTROLS, Look, looks, stylesheet, swatch
from alignlab.report.svg import inline, save
from alignlab.report.table import Places, read_study, shared_stages
from alignlab.report.verdict import between, gold_digits, plain, verdict

SECTIONS = {
    "ranking": "Ranking",
    "plane": "Reward–KL plane",
    "optimisation": "Is the gain real?",
    "curves": "Training",
    "cost": "Cost",
    "wins": "Against each other",
    "samples": "Samples",
    "doubts": "Doubts",
    "provenance": "Provenance",
}


def build_report(study: str, store: Places) -> Path:
    """Write ``studies/<study>/report/`` from the run folders and return the path of its index.html.

    Raises DataError when the study does not exist or has nothing to show.
    """
    analysis = analyse(read_study(study, store))
    folder = store.studies / study / "report"
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(analysis, folder)
    page = render(analysis, folder)
    path = folder / "index.html"
    _replace(path, page)
    return path


def _replace(path: Path, text: str) -> None:
    """Write in one step, so that a reader who refreshes never sees half a page."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".index-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).chmod(0o644)
    Path(name).replace(path)


def render(analysis: Analysis, folder: Path) -> str:
    """Return the page as HTML; figures are also written into ``folder``."""
    found = looks([s.method for s in analysis.scores])
    files = resources.files("alignlab.report")
    read = {
        name: (files / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "page.js")
    }
    doubts = concerns(analysis)
    serious = sum(c.level == "serious" for c in doubts)
    sentences = verdict(analysis)
    empty = '<p class="quiet">Nothing to show yet.</p>'
    some = bool(analysis.scores)
    return Template(read["page.html"]).substitute(
        title=escape(f"{analysis.study.name}: {sentences[0]}"),
        version=escape(alignlab.__version__),
        style=stylesheet(found) + read["page.css"],
        script=read["page.js"],
        study=escape(analysis.study.name),
        created=escape(analysis.study.created.replace("T", " ")[:16]),
        headline=_headline(sentences[0], analysis),
        verdict="".join(f'<p class="more">{_together(escape(s))}</p>' for s in sentences[1:]),
        doubts=f"{serious} serious doubt{'s' * (serious != 1)}, {len(doubts) - serious} notes",
        nav="".join(f'<a href="#{key}">{escape(name)}</a>' for key, name in SECTIONS.items()),
        chips="".join(_chip(s, found[s.method.id]) for s in analysis.scores),
        ranking=sections.ranking(analysis, found) if some else empty,
        plane=_plane(analysis, found, folder) or empty,
        rewards=_rewards(analysis, found, folder),
        optimisation=sections.over_optimisation(analysis, found),
        curves=_curves(analysis, found, folder) or empty,
        cost=_cost(analysis, found, folder) or empty,
        shared=sections.shared_cost(analysis),
        wins=sections.wins(analysis, found) if some else empty,
        samples_note=_samples_note(analysis),
        samples=samples(analysis, found) if some else empty,
        concerns=sections.concern_list(doubts),
        provenance=provenance(analysis, folder),
    )


def _together(text: str) -> str:
    """Keep an interval, its number and ``p = …`` on one line."""
    space = "\u00a0"
    text = re.sub(r" ?\[([^\]]*)\]", lambda m: m[0].replace(" ", space), text)
    return re.sub(r"\bp (=|&lt;) ", rf"p{space}\1{space}", text)


def _headline(sentence: str, analysis: Analysis) -> str:
    text = _together(escape(sentence))
    if not analysis.trained:
        return text
    name = escape(analysis.trained[0].method.label)
    return text.replace(name, f"<strong>{name}</strong>", 1)


def _chip(score: Score, look: Look) -> str:
    method = score.method
    return (
        f'<button type="button" aria-pressed="true" data-method="{method.id}">'
        f"{swatch(look)}{escape(method.label)}</button>"
    )


def _samples_note(analysis: Analysis) -> str:
    count = min(SHOWN_PROMPTS, analysis.prompts)
    return (
        f"The first completion of every method for {count} of {analysis.prompts} held-out prompts, "
        "chosen by a hash of their ids. All of them are in samples.csv. Arrow keys move on."
    )


def _figure(svg: str, kind: str = "main", caption: str = "") -> str:
    title = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{title}{svg}</figure>'


def _drawn(
    figure: Figure | None,
    name: str,
    description: str,
    found: Mapping[str, Look],
    folder: Path,
    titles: Mapping[str, str] | None = None,
) -> str:
    if figure is None:
        return ""
    return inline(save(figure, folder, name), name, description, found, titles)


def _plane(analysis: Analysis, found: Mapping[str, Look], folder: Path) -> str:
    digits = gold_digits(analysis)
    titles = {}
    for score in analysis.scores:
        gold = score.metrics["gold"]
        text = f"{score.method.label}: gold {plain(gold.value, digits)} {between(gold, digits)}"
        titles[score.method.id] = f"{text}, KL {plain(score.value('kl'), 2)} nats"
    description = "Gold reward against KL to the reference, one point per method. " + "; ".join(
        titles.values()
    )
    svg = _drawn(figures.frontier(analysis, found), "frontier", description, found, folder, titles)
    return _figure(svg) if svg else ""


def _rewards(analysis: Analysis, found: Mapping[str, Look], folder: Path) -> str:
    text = "Gold, audit and proxy reward of every method; the numbers are in the ranking table"
    svg = _drawn(figures.rewards(analysis, found), "rewards", text, found, folder)
    return _figure(svg) if svg else ""


def _cost(analysis: Analysis, found: Mapping[str, Look], folder: Path) -> str:
    text = (
        "Seconds, tokens and FLOPs of each method's own stage; the numbers are in the ranking table"
    )
    svg = _drawn(figures.cost(analysis, found), "cost", text, found, folder)
    return _figure(svg) if svg else ""


def _curves(analysis: Analysis, found: Mapping[str, Look], folder: Path) -> str:
    """One small figure per trained method, then the shared stages in grey."""
    parts = []
    grey = Look(*CONTROLS["baseline"], "o")
    drawn = {**found, "shared": grey}
    plans = []
    for score in analysis.trained:
        runs = {s: r for s, r in score.method.policies.items() if r is not None}
        plans.append((score.method.id, score.method.label, runs, found[score.method.id]))
    for index, (title, folders) in enumerate(shared_stages(analysis.study).items()):
        plans.append((f"shared-{index}", title, dict(enumerate(folders)), grey))
    for key, title, runs, look in plans:
        curves = read_curves(title, runs)
        if curves is None:
            continue
        name = f"curve-{key}"
        description = f"Training curves of {title}: {', '.join(curves.panels)}"
        svg = _drawn(figures.curve(curves, look), name, description, drawn, folder)
        caption = f"{swatch(look)}{escape(title)}"
        hide = f' data-m="{key}"' if key in found else ""
        parts.append(_figure(svg, "small", caption).replace("<figure", f"<figure{hide}", 1))
    return f'<div class="grid">{"".join(parts)}</div>' if parts else ""
