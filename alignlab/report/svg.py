"""A matplotlib figure as PNG and SVG files, and as SVG that lives inside the page.

The inline SVG has no XML header and no namespace address, its ids carry the figure's name, and its
colours are the page's CSS variables, so that it follows light and dark.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from alignlab.report.style import INK, LINE, MUTED, PAPER, Look

THEME = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--paper"}


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write ``name.png`` (160 dpi) and ``name.svg``, both on white, and return the SVG's text."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once; drawing again must not move anything
    FigureCanvasAgg(figure).print_figure(folder / f"{name}.png", dpi=160, facecolor=PAPER)
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

    An artist whose gid is ``m:METHOD:…`` becomes a group that the page can hide with its method;
    ``titles`` gives the text that a reader sees when pointing at ``m:METHOD:point``.
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
    text = re.sub(r'<g id="m:([^":]+):[^"]*">', r'<g data-m="\1">', text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    colours = dict(THEME)
    colours |= {look.colour: look.variable for look in looks.values()}
    for colour, variable in colours.items():
        text = text.replace(colour, f"var({variable})")
    label = html.escape(description, quote=True)
    return re.sub(
        r"<svg[^>]*viewBox", f'<svg role="img" aria-label="{label}" viewBox', text, count=1
    )
