"""A matplotlib figure as PNG, SVG and PDF files, and as SVG that lives inside the page.

The inline SVG has no XML header and no namespace address, its ids carry the figure's name, and its
colours are the page's CSS variables, so that it follows light and dark.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf, PdfPages
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from alignlab.report.style import INK, LINE, MUTED, PAPER, Look

THEME = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--paper"}
_PRINTED = ContextVar("printed", default=True)  # whether PDF files are written
UNDATED = {"CreationDate": None, "Creator": None, "Producer": None}


def picture(
    figure: Figure | None,
    name: str,
    description: str,
    looks: Mapping[str, Look],
    folder: Path,
    *,
    titles: Mapping[str, str] | None = None,
    kind: str = "main",
    caption: str = "",
    method: str = "",
    pages: PdfPages | None = None,
) -> str:
    """Write a figure's files into ``folder`` and return it as a ``<figure>``; "" for no figure.

    ``caption`` is HTML; ``method`` is the id of the method that the whole figure belongs to, and
    that hides it.
    """
    if figure is None:
        return ""
    drawing = inline(save(figure, folder, name, pages), name, description, looks, titles)
    owner = f' data-m="{html.escape(method, quote=True)}"' if method else ""
    title = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="{kind}" data-figure="{name}"{owner}>{title}{drawing}</figure>'


@contextmanager
def for_the_page_alone() -> Iterator[None]:
    """Leave the PDF files out, which take longer than all the rest; while a study runs."""
    token = _PRINTED.set(False)
    try:
        yield
    finally:
        _PRINTED.reset(token)


@contextmanager
def shared_pdf(path: Path) -> Iterator[PdfPages | None]:
    """One PDF file for many figures; None where no PDF files are written."""
    if not _PRINTED.get():
        yield None
        return
    with rc_context({"pdf.fonttype": 42}), PdfPages(path, metadata=UNDATED) as pages:
        yield pages


def save(figure: Figure, folder: Path, name: str, pages: PdfPages | None = None) -> str:
    """Write ``name.png`` (160 dpi), ``.svg`` and ``.pdf`` on white; return the SVG's text.

    The PDF embeds its fonts as TrueType (type 42), which journals ask for. That takes longer than
    all the rest, so many small figures may share the ``pages`` of one. No file holds a date: the
    same runs give the same bytes.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once; drawing again must not move anything
    FigureCanvasAgg(figure).print_figure(folder / f"{name}.png", dpi=160, facecolor=PAPER)
    with rc_context({"pdf.fonttype": 42}):
        if pages is not None:
            pages.savefig(figure, facecolor=PAPER)
        elif _PRINTED.get():
            FigureCanvasPdf(figure).print_figure(
                folder / f"{name}.pdf", facecolor=PAPER, metadata=UNDATED
            )
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    background = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    filled = re.sub(r"(<svg[^>]*>)", rf"\1{background}", text, count=1)
    (folder / f"{name}.svg").write_text(filled, encoding="utf-8")
    return text


def inline(
    svg: str,
    name: str,
    description: str,
    looks: Mapping[str, Look],
    titles: Mapping[str, str] | None = None,
) -> str:
    """Return the text of an SVG file as an ``<svg>`` element for an HTML page.

    An artist whose gid is ``m:METHOD:…`` becomes a group that the page can hide with its method,
    and one whose gid is ``m:METHOD:s3`` belongs to training seed 3 as well (``m::s3``: to the seed
    only). ``titles`` gives the text that a reader sees when pointing at ``m:METHOD:point``.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font-family:[^;\"]*;?\s*", "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for method, title in (titles or {}).items():
        point = f'<g id="m:{method}:point">'
        text = text.replace(point, f"{point}<title>{html.escape(title)}</title>")
    text = re.sub(r'<g id="m::s(-?\d+)">', r'<g data-s="\1">', text)
    text = re.sub(r'<g id="m:([^":]+):s(-?\d+)">', r'<g data-m="\1" data-s="\2">', text)
    text = re.sub(r'<g id="m:([^":]+):[^"]*">', r'<g data-m="\1">', text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'\b(d|x|y)="[^"]*"', _rounded, text)
    text = re.sub(r"\n\s*", "\n", text)
    colours = dict(THEME)
    colours |= {look.colour: look.variable for look in looks.values()}
    for colour, variable in colours.items():
        text = text.replace(colour, f"var({variable})")
    label = html.escape(description, quote=True)
    return re.sub(
        r"<svg[^>]*viewBox", f'<svg role="img" aria-label="{label}" viewBox', text, count=1
    )


def _rounded(attribute: re.Match[str]) -> str:
    """Coordinates to a hundredth of a pixel: half the bytes of a long curve."""
    return re.sub(r"(-?\d+\.\d\d)\d+", r"\1", attribute[0])
