"""What a value of a row looks like, and which fields of which looks make a row of one format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.data.formats.chat import is_message
from alignlab.data.formats.fields import Row, from_json, kind_of
from alignlab.data.group import PromptGroup
from alignlab.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Shape:
    """A look that a value can have, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _list_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    """Whether a list opens so; which of its members is wrong, the reading of the row says."""
    return isinstance(value, list) and bool(value) and fits(value[0])


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lstrip("+-").replace(".", "", 1).isdigit()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_messages(value: Any) -> bool:
    return _list_of(value, is_message) or is_message(value)


def _has(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and all(key in value for key in keys)


def _is_line(value: Any) -> bool:
    """A line of a chat, or the lines of one turn."""
    if isinstance(value, list):
        return _list_of(value, lambda v: _has(v, "sender", "text"))
    return _has(value, "sender", "text")


def _are_said(value: Any) -> bool:
    """Texts, or messages, in a list."""
    return _list_of(value, lambda v: _is_text(v) or _are_messages(v))


TEXT = Shape("text", _is_text)
NUMBER = Shape("a number", _is_number)
MESSAGES = Shape("a list of messages", lambda v: _list_of(from_json(v), is_message))
SAID = Shape("text or a list of messages", lambda v: _is_text(v) or _are_messages(v))
SHARED = Shape("a list of {from, value}", lambda v: _list_of(from_json(v), is_message))
COMPLETIONS = Shape("a list of texts or of lists of messages", _are_said)
LIST = Shape("a list", lambda v: isinstance(v, list))
VALUES = Shape("a list of values", lambda v: isinstance(v, list) and bool(v))
OBJECT = Shape("an object", lambda v: isinstance(from_json(v), dict))
OBJECTS = Shape(
    "a list of objects that are no messages",
    lambda v: _list_of(v, lambda i: isinstance(i, dict) and not is_message(i)),
)
LOG = Shape("a list of {sender, text}", lambda v: _list_of(v, _is_line))
SPOKEN = Shape(
    "a list of texts or of {input, output}",
    lambda v: _list_of(v, lambda t: _is_text(t) or _has(t, "input", "output")),
)
ASKED = Shape(
    "a list of texts or of {content}",
    lambda v: _list_of(v, lambda t: _is_text(t) or (_has(t, "content") and "role" not in t)),
)
CALLS = Shape(
    "a list of calls {name, arguments}",
    lambda v: _list_of(from_json(v), lambda c: _has(c, "name", "arguments")),
)
ANSWER = Shape("text or a number", lambda v: _is_text(v) or _is_number(v))
ANY = Shape("any value", lambda v: True)


@dataclass(frozen=True)
class Need:
    """A field that a format needs, under one of several names, and its look."""

    names: tuple[str, ...]
    shape: Shape

    def found(self, row: Row) -> str:
        """Return the first of the names that the row has, or an empty text."""
        return next((name for name in self.names if row.get(name) is not None), "")

    def check(self, row: Row, form: str) -> None:
        """Refuse a row that lacks the field, or whose value has another look."""
        field = self.found(row)
        if not field:
            others = f" (or {', '.join(self.names[1:])})" if self.names[1:] else ""
            hint = did_you_mean(self.names[0], row)
            raise DataError(f"no '{self.names[0]}'{others}, which the format '{form}' needs.{hint}")
        if not self.shape.fits(row[field]):
            raise DataError(self.complaint(row) + ".")

    def complaint(self, row: Row) -> str:
        """Say what the row lacks of this need; an empty text if nothing."""
        name = self.found(row)
        if not name:
            others = f" (or {', '.join(self.names[1:])})" if self.names[1:] else ""
            return f"{self.names[0]} is missing{others}"
        if not self.shape.fits(row[name]):
            return f"'{name}' must be {self.shape.words}; it is {kind_of(row[name])}"
        return ""


def need(shape: Shape, *names: str) -> Need:
    """Return the need of a field with one of the names."""
    return Need(names, shape)


@dataclass(frozen=True)
class Format:
    """The fields that make a row of one format, and the function that reads it.

    ``may`` holds fields that are read if there; of several names in a tuple, the first one there.
    ``rank`` orders formats that fit one row: 0 = with a verdict, 1 = demonstrations, 2 = bare.
    """

    read: Callable[[Row], PromptGroup]
    needs: tuple[Need, ...]
    may: tuple[str | tuple[str, ...], ...] = ()
    rank: int = 1
    more: Callable[[Row], Sequence[str]] | None = None  # fields of any name; at least one is needed
    together: bool = False  # rows of one prompt are one group (see grouping.py)

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field name that the format knows."""
        may = (name for one in self.may for name in ((one,) if isinstance(one, str) else one))
        return (*(name for need in self.needs for name in need.names), *may)

    def complaints(self, row: Row) -> list[str]:
        """Say what the row lacks; nothing where it fits."""
        said = [text for need in self.needs if (text := need.complaint(row))]
        if not said and self.more and not self.more(row):
            said.append(f"{self.more.__name__.replace('_', ' ')} are missing")
        return said

    def used(self, row: Mapping[str, Any]) -> frozenset[str]:
        """Return the fields of the row that the format reads; the others become ``meta``."""
        own = {need.found(row) for need in self.needs}
        for one in self.may:
            found = one if isinstance(one, str) else next((n for n in one if n in row), "")
            if found in row:
                own.add(found)
        return frozenset(own | set(self.more(row)) if self.more else own)
