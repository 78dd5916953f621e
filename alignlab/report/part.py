"""One section of the page: what it shows, the same as rows for files, and the doubts it raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignlab.report.concerns import Concern


@dataclass(frozen=True)
class Part:
    """A section of a report; with no ``html`` it has nothing to show and is left out."""

    html: str = ""
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # stem → rows
    concerns: Sequence[Concern] = ()


@dataclass(frozen=True)
class Chapter:
    """A part at its place on the page, and the figures that were drawn for it."""

    id: str
    title: str
    lead: str  # HTML below the title
    part: Part
    figures: Sequence[str] = ()  # names of files in the report's folder, without their ending
