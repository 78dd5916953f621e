"""Rows that cannot be read: the first one stops the reading, or each is left out and counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from alignlab.errors import DataError

Policy = Literal["refuse", "leave_out"]

WAY_OUT = " To leave out such rows, counted: data.bad_rows=leave_out."
BAD_ROWS = "bad_rows"  # the kind of the data card's entry
SHOWN = 8  # rows that are named
REASONS = 20  # that are counted apart; messages may hold values, and values are without end
HOPELESS = 1000  # rows after which a source without one good row is given up
_OTHERS = "other reasons"


@dataclass(frozen=True)
class Losses:
    """What was left out of a source: how many rows of how many, why, and which were the first."""

    rows: int  # all, those left out among them
    count: int
    why: Mapping[str, int]  # reason -> rows
    first: tuple[tuple[str, str], ...] = ()  # (place, what was wrong there)

    def entry(self) -> dict[str, Any]:
        """The same as an entry of the data card, as a quality step has one."""
        examples = [{"why": kind_of(text), "detail": text, "place": at} for at, text in self.first]
        return {
            "step": "read",
            "kind": BAD_ROWS,
            "rows_in": self.rows,
            "rows_out": self.rows - self.count,
            "why": dict(sorted(self.why.items(), key=lambda item: (-item[1], item[0]))),
            "examples": examples,
        }

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> Losses:
        """Losses that `entry` gave."""
        first = tuple((shown["place"], shown["detail"]) for shown in entry["examples"])
        return cls(entry["rows_in"], entry["rows_in"] - entry["rows_out"], entry["why"], first)


class BadRows:
    """Takes the bad rows of one reading: raises at the first, or counts them all."""

    def __init__(self, policy: Policy = "refuse", way_out: str = "") -> None:
        self.leave_out = policy == "leave_out"
        self.way_out = "" if self.leave_out else way_out
        self.good = self.count = 0
        self.why: Counter[str] = Counter()
        self.first: list[tuple[str, str]] = []

    def take(self, message: str, place: str, reason: str, cause: Exception | None = None) -> None:
        """Raise ``message``, or count the row at ``place`` under its ``reason``.

        Raises:
            DataError: bad rows are refused.
        """
        if not self.leave_out:
            raise DataError(message + self.way_out) from cause
        self.count += 1
        kind = kind_of(reason)
        self.why[kind if kind in self.why or len(self.why) < REASONS else _OTHERS] += 1
        if len(self.first) < SHOWN:
            self.first.append((place, reason))

    def give_up(self, where: str) -> NoReturn:
        """Say that there is no row that can be read, with what was wrong with the first."""
        place, reason = self.first[0]
        raise DataError(f"{where}: none of {self.count:,} rows can be read; {place}: {reason}")

    def losses(self) -> Losses:
        """What was left out so far."""
        return Losses(self.good + self.count, self.count, dict(self.why), tuple(self.first))


@dataclass(frozen=True)
class InFile:
    """Where the reader of one file hands its bad rows."""

    where: str  # the file, as messages call it
    bad: BadRows
    name: str  # before a place

    def take(self, place: str, reason: str, cause: Exception | None = None) -> None:
        """As `BadRows.take`, for a row of this file."""
        shown = f"{self.name}, {place}"
        self.bad.take(f"{self.where}, {place}: {reason}", shown, reason, cause)


def kind_of(reason: str) -> str:
    """What rows are counted by: a reason's first sentence, without numbers and what was found."""
    sentence = re.split(r"\.(?:\s|$)|; it is ", reason, maxsplit=1)[0]
    return re.sub(r"(?<![\w-])\d[\d,]*(?!\w)", "N", sentence)[:100]


def joined(parts: Mapping[str, Losses]) -> Losses:
    """Losses of several sources as one, places under the names of the sources."""
    why: Counter[str] = Counter()
    for losses in parts.values():
        why.update(losses.why)
    first = [(f"{name}: {at}", text) for name, one in parts.items() for at, text in one.first]
    total = sum(losses.rows for losses in parts.values())
    count = sum(losses.count for losses in parts.values())
    return Losses(total, count, dict(why), tuple(first[:SHOWN]))
