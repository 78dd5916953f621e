"""Rows of a split that cannot be tokenised, and what is said while a large split is checked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from alignlab.errors import DataError

if TYPE_CHECKING:
    from alignlab.data.gate.gate import Finding, Gate
    from alignlab.data.group import PromptGroup, TokenGroup
    from alignlab.data.template import Tokenization

CHUNK = 1024  # rows that are tokenised together
REFUSALS = 64  # rows in a row that cannot be tokenised before the rest is not tried
TELL = 8 * CHUNK  # rows between two signs of life on a terminal


class Refused:
    """Rows of a split that cannot be tokenised, and why."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.rows = 0  # rows so far
        self.reasons: list[tuple[int, str, str]] = []  # row, place, reason
        self.announced = False

    @property
    def hopeless(self) -> bool:
        """Whether nothing could be tokenised and it is time to stop trying."""
        return len(self.reasons) >= REFUSALS and len(self.reasons) == self.rows

    def tokenized(
        self, chunk: list[PromptGroup], tokenization: Tokenization
    ) -> tuple[list[PromptGroup], list[TokenGroup]]:
        """Return the groups of a chunk that can be tokenised, with their tokens."""
        first, self.rows = self.rows, self.rows + len(chunk)
        numbers = range(first, self.rows)
        try:
            return chunk, tokenization.groups(chunk, numbers)
        except DataError:
            return self._one_by_one(chunk, first, tokenization)

    def _one_by_one(
        self, chunk: list[PromptGroup], first: int, tokenization: Tokenization
    ) -> tuple[list[PromptGroup], list[TokenGroup]]:
        good, tokens = [], []
        for row, group in enumerate(chunk, first):
            try:
                tokens.extend(tokenization.groups([group], [row]))
                good.append(group)
            except DataError as error:
                self.reasons.append((row, str(group.meta.get("place", "")), str(error)))
                if len(self.reasons) >= REFUSALS and not good:
                    self.rows = row + 1
                    break
        return good, tokens

    def findings(self) -> Iterator[Finding]:
        """One error with the first reason."""
        from alignlab.data.gate.finding import SHOWN, Finding

        if self.reasons:
            first = self.reasons[:SHOWN]
            more = "; the rest was not tried" if self.hopeless else ""
            yield Finding(
                "error",
                "not_tokenizable",
                len(self.reasons),
                tuple(row for row, _, _ in first),
                f"Rows cannot be written as tokens{more}. The first: {first[0][2].rstrip('.')}",
                "Repair or drop the rows, or choose another template or data.style.",
                tuple(place for _, place, _ in first),
            )

    def announce(self, gate: Gate) -> None:
        """Say on a terminal how far it is, and that there are errors as soon as there are."""
        if self.rows % TELL or not sys.stderr.isatty():
            return
        if not self.announced:
            for finding in (*self.findings(), *gate.findings()):
                if finding.severity == "error":
                    self.announced = True
                    print(f"{self.split}: {finding.message} ({finding.where()})", file=sys.stderr)
        print(f"{self.split}: {self.rows:,} rows …", file=sys.stderr)
