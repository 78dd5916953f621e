"""One doubt about a comparison: how serious it is, what it is about, and what to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["serious", "note"]


@dataclass(frozen=True)
class Concern:
    """One thing a reader should know before believing the ranking."""

    level: Level
    topic: str
    text: str


def serious(topic: str, text: str) -> Concern:
    """A doubt that can change the answer."""
    return Concern("serious", topic, text)


def note(topic: str, text: str) -> Concern:
    """Something to know that need not change the answer."""
    return Concern("note", topic, text)


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ("; " if any("," in name for name in names) else ", ").join(names[:shown]) + more
