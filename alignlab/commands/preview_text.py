"""The token view in a terminal: coloured on a screen, unambiguous in a pipe."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TextIO

from alignlab.data.view import MEANING, CompletionView, Kind, Piece, RowView, quoted, visible

RESET = "\x1b[0m"
BOLD = "\x1b[1m"
DIM = "\x1b[2m"
STYLE: dict[Kind, str] = {  # colour and a second sign, for those who do not see the colour
    "prompt": "\x1b[36m",
    "target": "\x1b[32m",
    "end": "\x1b[1;4;32m",
    "masked": "\x1b[2;3;35m",
    "cut": "\x1b[2;9;31m",
}
SPECIAL = "\x1b[7m"


def has_colour(stream: TextIO) -> bool:
    """Whether to write colours: a terminal, and NO_COLOR is not set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def row_text(view: RowView, *, ids: bool, colour: bool) -> str:
    """Write one row: a line of facts, then the prompt, then every completion."""
    facts = heading(view)
    lines = [f"{BOLD}{facts}{RESET}" if colour else facts]
    lines += _part("prompt", prompt_facts(view), view.prompt, ids, colour)
    for number, completion in enumerate(view.completions):
        name = f"completion {number}" if len(view.completions) > 1 else "completion"
        lines += _part(name, completion_facts(completion), completion.pieces, ids, colour)
    return "\n".join(lines)


def legend(colour: bool) -> str:
    """Say what the kinds mean, in a line each."""
    lines = [f"  {_name(kind, colour)}  {meaning}" for kind, meaning in MEANING.items()]
    sign = f"{SPECIAL}<…>{RESET}    " if colour else f"{'<…>':<7}"
    quotes = "" if colour else ', text stands in "quotes"'
    return "\n".join([*lines, f"  {sign}  a special token{quotes}"])


def heading(view: RowView) -> str:
    """Number, id and place of a row, and what is known about its completions."""
    parts = (f"row {view.row}", view.id and f"id {view.id}", view.place, view.verdict)
    return " · ".join("".join(map(visible, part)) for part in parts if part)


def prompt_facts(view: RowView) -> str:
    """Length of the prompt and what of it is cut."""
    cut = f", {view.prompt_cut} cut on the left" if view.prompt_cut else ""
    return f"{view.prompt_tokens} tokens{cut}"


def completion_facts(view: CompletionView) -> str:
    """Length of a completion, its targets, what is cut and what the verdict says."""
    facts = [view.label] if view.label else []
    facts.append(f"{view.tokens} tokens, {view.targets} targets")
    if view.cut:
        facts.append(f"{view.cut} cut on the right, so no end")
    if not view.targets:
        facts.append("NOTHING TO LEARN FROM")
    return " · ".join(facts)


def _part(name: str, facts: str, pieces: Iterable[Piece], ids: bool, colour: bool) -> Iterator[str]:
    yield f"  {DIM}{name} · {facts}{RESET}" if colour else f"  {name} · {facts}"
    if colour:
        flowing = "".join(_coloured(piece, ids) for piece in pieces)
        yield "\n".join("    " + line for line in flowing.split("\n"))
        return
    for kind, run in groupby(pieces, key=lambda piece: piece.kind):
        yield f"    {kind:<7} {_plain(list(run), ids)}"


def _plain(pieces: list[Piece], ids: bool) -> str:
    if ids:
        return " ".join(f"{_word(p)}:{'+'.join(map(str, p.ids))}" for p in pieces)
    written = []
    for special, run in groupby(pieces, key=lambda piece: piece.special):
        if special:
            written += [_word(piece) for piece in run]
        else:
            written.append(quoted("".join(piece.text for piece in run)))
    return " ".join(written)


def _word(piece: Piece) -> str:
    """A special token bare, any other text in quotes."""
    return quoted(piece.text)[1:-1] if piece.special else quoted(piece.text)


def _coloured(piece: Piece, ids: bool) -> str:
    style = STYLE[piece.kind] + (SPECIAL if piece.special else "")
    signs = "".join(map(visible, piece.text))
    if not piece.special and (signs.isspace() or signs.endswith(" ") or "  " in signs):
        signs = signs.replace(" ", "·")
    number = f"{DIM}{'+'.join(map(str, piece.ids))}{RESET} " if ids else ""
    breaks = piece.text.count("\n")  # after the sign, so that the text keeps its shape
    return f"{style}{signs}{RESET}{number}" + "\n" * min(breaks, 1)


def _name(kind: Kind, colour: bool) -> str:
    return f"{STYLE[kind]}{kind:<7}{RESET}" if colour else f"{kind:<7}"
