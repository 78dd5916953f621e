"""Colours and shapes: one per method, the same in every figure and table of every report.

The hues are Okabe and Ito's and two of Tol's muted set (both made for colour-blind readers); every
method also has its own marker, so that nothing depends on colour alone. Each has a second value
for a dark page.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from alignlab.report.table import Method

INK, MUTED, LINE, PAPER = "#1d2430", "#5d6673", "#d9dee4", "#ffffff"
COLOURS = (  # light page, dark page
    ("#d55e00", "#f08a4b"), ("#0072b2", "#58a9e0"), ("#e69f00", "#f2bd4a"), ("#009e73", "#3cc79d"),
    ("#cc79a7", "#e39cc4"), ("#56b4e9", "#8fd0f5"), ("#332288", "#a39af0"), ("#999933", "#c9c95f"),
    ("#882255", "#d9709f"), ("#44aa99", "#7ad3c5"),
)  # fmt: skip
CONTROLS = {"baseline": ("#6f7782", "#a9b2bd"), "best_of": ("#3d4550", "#d3d9e0")}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
FAMILIES = ("ppo", "dpo", "grpo", "kto", "ipo", "orpo", "simpo", "rloo", "slic", "reinforce")


@dataclass(frozen=True)
class Look:
    """How one method is drawn."""

    colour: str
    dark: str
    marker: str

    @property
    def variable(self) -> str:
        """CSS custom property of this colour; figures use the light value as its stand-in."""
        return f"--c{self.colour.lstrip('#')}"


def looks(methods: Sequence[Method]) -> dict[str, Look]:
    """Give each method id a look, the same to all points of one sweep."""
    first: dict[str, Method] = {}
    for method in methods:
        first.setdefault(method.family or method.id, method)
    found = _looks(list(first.values()))
    return {m.id: found[first[m.family or m.id].id] for m in methods}


def _looks(methods: Sequence[Method]) -> dict[str, Look]:
    """Looks by method id: a known name has its own one, others the next that nobody has."""
    found: dict[str, Look] = {}
    taken: set[int] = set()
    waiting: list[Method] = []
    for method in methods:
        family = _family(method)
        if method.baseline or method.best_of > 1:
            pair = CONTROLS["baseline" if method.baseline else "best_of"]
            found[method.id] = Look(*pair, "*" if method.best_of > 1 else "h")
        elif family is not None and family not in taken:
            taken.add(family)
            found[method.id] = Look(*COLOURS[family], MARKERS[family])
        else:
            waiting.append(method)
    free = [i for i in range(len(COLOURS)) if i not in taken] or list(range(len(COLOURS)))
    for place, method in enumerate(waiting):
        index = free[place % len(free)]
        found[method.id] = Look(
            *COLOURS[index], MARKERS[(index + place // len(free)) % len(MARKERS)]
        )
    return found


def _family(method: Method) -> int | None:
    words = method.label.lower().replace("-", " ").split()
    return next((i for i, name in enumerate(FAMILIES) if words and words[0] == name), None)


def stylesheet(found: dict[str, Look]) -> str:
    """CSS variables of the colours, each with its value for a light and for a dark page."""
    unique = {look.variable: look for look in found.values()}
    rules = "".join(f"{n}:light-dark({k.colour},{k.dark});" for n, k in unique.items())
    return f":root{{{rules}}}"


SHAPES = {
    "o": '<circle cx="6" cy="6" r="4.2"/>',
    "s": '<rect x="2.2" y="2.2" width="7.6" height="7.6"/>',
    "^": '<path d="M6 1.4 10.6 10H1.4z"/>',
    "v": '<path d="M6 10.6 1.4 2h9.2z"/>',
    "<": '<path d="M1.4 6 10 1.4v9.2z"/>',
    ">": '<path d="M10.6 6 2 10.6V1.4z"/>',
    "D": '<path d="M6 .8 11.2 6 6 11.2.8 6z"/>',
    "P": '<path d="M4 1h4v3h3v4H8v3H4V8H1V4h3z"/>',
    "X": '<path d="M3 1l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z"/>',
    "p": '<path d="M6 1l5 3.6-1.9 5.9H2.9L1 4.6z"/>',
    "h": '<path d="M6 .8l4.6 2.6v5.2L6 11.2 1.4 8.6V3.4z"/>',
    "*": '<path d="M6 .4l1.5 3.8 4.1.3-3.1 2.6 1 4L6 8.9l-3.5 2.2 1-4L.4 4.5l4.1-.3z"/>',
}


def swatch(look: Look, name: str = "") -> str:
    """Small inline SVG of a method's marker in its colour."""
    title = f"<title>{html.escape(name)}</title>" if name else ""
    return (
        f'<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true" '
        f'style="fill:var({look.variable})">{title}{SHAPES[look.marker]}</svg>'
    )
