"""Small pieces of HTML that the sections share: cells, headings, numbers with intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from alignlab.report.analysis import Score
from alignlab.report.statistics import Interval
from alignlab.report.style import Look, swatch
from alignlab.report.verdict import between, digits_for, plain, signed

Looks = Mapping[str, Look]
# control characters, marks that reverse the direction of text, halves of surrogate pairs
UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def clean(text: str) -> str:
    """``text`` as a page can hold it: what is no character, or turns text around, as its escape."""
    return UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


def run_link(name: str, text: str = "") -> str:
    """A link to the row of run ``name`` in the provenance section; shows ``text``, else its name.

    ``text`` is taken as plain text and escaped.
    """
    shown = escape(clean(text or name))
    return f'<a class="run" href="#run-{escape(name, quote=True)}">{shown}</a>'


def method_link(method: str, text: str) -> str:
    """A link from a number to the method's configuration and runs, which it is a mean over.

    ``text`` is HTML, as `with_interval` writes it.
    """
    return f'<a class="number" href="#config-{escape(method, quote=True)}">{text}</a>'


def cell(text: str, order: float | str | None = None, kind: str = "") -> str:
    """One table cell; ``order`` is the value it sorts by."""
    data = "" if order is None or order != order else f' data-v="{escape(str(order), quote=True)}"'
    return f"<td{data}{_class(kind)}>{text}</td>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def heading(text: str, title: str = "", kind: str = "", *, sortable: bool = True) -> str:
    """One column heading, a button when the column can be sorted."""
    hint = f' title="{escape(title, quote=True)}"' if title else ""
    inner = f'<button type="button"{hint}>{text}</button>' if sortable else text
    return f'<th scope="col"{_class(kind)}>{inner}</th>'


def name_cell(score: Score, looks: Looks, *, settings: bool = True) -> str:
    """Row heading: marker, label and the settings below it."""
    method = score.method
    below = f"<small>{escape(method.settings)}</small>" if settings and method.settings else ""
    return (
        f'<th scope="row" data-v="{escape(method.label, quote=True)}">{swatch(looks[method.id])}'
        f'<a href="#config-{method.id}">{escape(method.label)}</a>{below}</th>'
    )


def with_interval(found: Interval | None, digits: int | None = None, *, sign: bool = False) -> str:
    """A number with its interval in small type, or a dash."""
    if found is None:
        return "—"
    places = digits_for(found.error) if digits is None else digits
    value = signed(found.value, places) if sign else plain(found.value, places)
    if found.error <= 0:
        return value
    return f"{value} <small>{between(found, places, sign=sign)}</small>"


def whisker(found: Interval, span: tuple[float, float], look: Look, zero: float | None) -> str:
    """A dot with its interval on the scale ``span`` as a small SVG; dashed line at ``zero``."""
    width, low = 120, span[0]
    scale = (width - 12) / ((span[1] - low) or 1)

    def x(value: float) -> float:
        return round(6 + (value - low) * scale, 1)

    line = ""
    if zero is not None:
        line = f'<path class="zero" d="M{x(zero)} 0V18"/>'
    return (
        f'<svg class="whisker" viewBox="0 0 {width} 18" aria-hidden="true">{line}'
        f'<g style="stroke:var({look.variable});fill:var({look.variable})">'
        f'<path d="M{x(found.low)} 9H{x(found.high)}"/>'
        f'<circle cx="{x(found.value)}" cy="9" r="3.6"/></g></svg>'
    )


def column_digits(found: Iterable[Interval | None]) -> int:
    """Decimals for one column, from the median standard error of its numbers."""
    errors = sorted(i.error for i in found if i is not None and i.error > 0)
    return digits_for(errors[len(errors) // 2]) if errors else 2


def table(head: str, rows: Sequence[str], kind: str, caption: str) -> str:
    """A table that scrolls by itself when the page is narrow."""
    return (
        '<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(caption, quote=True)}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
