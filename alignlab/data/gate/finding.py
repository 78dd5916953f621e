"""What the data gate says: one finding for all rows that show the same thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]
Need = Literal["", "prompt", "demonstration", "pairs", "thumbs", "scores"]
SHOWN = 8  # rows that a finding names


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with some rows."""

    severity: Severity
    code: str
    count: int  # rows that show it
    rows: tuple[int, ...]  # the first few; none where rows were left out before they had a number
    message: str
    advice: str
    places: tuple[str, ...] = ()  # file and line of the first few, "" where a row has none

    def where(self) -> str:
        """Name the first rows: by file and line where they have one, else by their number."""
        if not self.rows and not self.places:
            return ""
        known = list(self.places)  # of rows that were never numbered
        if self.rows:
            named = zip(self._places(), self.rows, strict=True)
            known = [place or f"row {row}" for place, row in named]
        starts = {place.rpartition(" ")[0] for place in known}
        if len(known) > 1 and len(starts) == 1:  # "pairs.jsonl, line 3, 9, 12"
            [start] = starts
            known = [known[0], *(place.removeprefix(f"{start} ") for place in known[1:])]
        more = ", …" if self.count > len(known) else ""
        return ", ".join(known) + more

    def counted(self) -> str:
        """How many rows, and which are the first: ``2 rows: pairs.jsonl, line 3, 9``."""
        return f"{self.count} row{'s' * (self.count != 1)}: {self.where()}"

    def _places(self) -> tuple[str, ...]:
        return self.places or ("",) * len(self.rows)
