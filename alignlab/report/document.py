"""The report without a browser: report.md with linked figures, and report.tex that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from html import unescape
from pathlib import Path
from string import Template

from alignlab.report.concerns import Concern
from alignlab.report.elements import clean
from alignlab.report.part import Chapter
from alignlab.report.writing import (
    READABLE,
    escape_latex,
    escape_markdown,
    latex,
    markdown,
    readable,
)

MOST_FIGURES = 8  # of a chapter; the others are named
SIDEWAYS = 9  # a table with more columns than this is scaled to the width of the page

LATEX = Template(r"""% Compile with pdflatex, lualatex or xelatex, in the folder of this file.
\documentclass[11pt,a4paper]{article}
\usepackage{iftex}
\ifPDFTeX\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}\else\usepackage{fontspec}\fi
\usepackage[margin=2.2cm]{geometry}
\usepackage{amssymb,booktabs,graphicx,float}
\title{$title}
\date{$date}
\begin{document}
\maketitle
$body
\end{document}
""")


def write_documents(
    study: str,
    created: str,
    sentences: Sequence[str],
    chapters: Sequence[Chapter],
    concerns: Sequence[Concern],
    folder: Path,
) -> None:
    """Write report.md and report.tex: verdict, doubts, then every chapter's figures and tables."""
    lines = [f"# {escape_markdown(clean(study))}", f"**{_md(sentences[0])}**"]
    lines += [_md(sentence) for sentence in sentences[1:]]
    for chapter in chapters:
        if shown := _markdown_chapter(chapter):  # samples are for the page alone
            lines += [f"## {_md(chapter.title)}", *shown]
    lines += ["## What could be wrong with this comparison", _markdown_doubts(concerns)]
    text = "\n\n".join(line for line in lines if line)
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")

    body = [_tex(" ".join(sentences))]
    for chapter in chapters:
        if shown := _latex_chapter(chapter, folder):
            body += [rf"\section*{{{_tex(chapter.title)}}}", *shown]
    body += [r"\section*{What could be wrong with this comparison}", _latex_doubts(concerns)]
    page = LATEX.substitute(
        title=_tex(study), date=_tex(created), body="\n\n".join(part for part in body if part)
    )
    (folder / "report.tex").write_text(page, encoding="utf-8")


def _md(text: str) -> str:
    return escape_markdown(clean(unescape(text)))


def _tex(text: str) -> str:
    return escape_latex(clean(unescape(text)))


def _markdown_chapter(chapter: Chapter) -> list[str]:
    shown = [f"![{_md(chapter.title)}: {name}]({name}.png)" for name in _few(chapter)]
    for stem, rows in chapter.part.tables.items():
        if 0 < len(rows) <= READABLE:
            shown.append(markdown(rows).rstrip())
        if rows:
            shown.append(f"[{stem}.csv](tables/{stem}.csv), {len(rows):,} rows")
    return shown


def _markdown_doubts(concerns: Sequence[Concern]) -> str:
    if not concerns:
        return "Nothing was found by the automatic checks."
    return "\n".join(f"- **{_md(c.topic)}** ({c.level}): {_md(c.text)}." for c in concerns)


def _few(chapter: Chapter) -> Sequence[str]:
    return chapter.figures[:MOST_FIGURES]


def _file(name: str, folder: Path) -> str:
    """The figure as PDF; as PNG where it is a page of a PDF with others."""
    return f"{name}.pdf" if (folder / f"{name}.pdf").is_file() else f"{name}.png"


def _latex_chapter(chapter: Chapter, folder: Path) -> list[str]:
    shown = [
        "\\begin{figure}[H]\n\\centering\n"
        f"\\includegraphics[width=0.85\\linewidth]{{{_file(name, folder)}}}\n\\end{{figure}}"
        for name in _few(chapter)
    ]
    for stem, rows in chapter.part.tables.items():
        if len(rows) > READABLE:
            shown.append(_tex(f"The {len(rows):,} rows of {stem} are in tables/{stem}.csv."))
        elif rows:
            wide = len(readable(rows).head) > SIDEWAYS
            table = latex(rows).rstrip()
            fitted = f"\\resizebox{{\\linewidth}}{{!}}{{%\n{table}}}" if wide else table
            shown.append(
                f"\\begin{{table}}[H]\n\\centering\\footnotesize\n{fitted}\n\\end{{table}}"
            )
    return shown


def _latex_doubts(concerns: Sequence[Concern]) -> str:
    if not concerns:
        return "Nothing was found by the automatic checks."
    items = "\n".join(rf"\item \textbf{{{_tex(c.topic)}}}: {_tex(c.text)}." for c in concerns)
    return f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}"
