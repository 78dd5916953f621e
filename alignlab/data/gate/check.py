"""What every check of the gate is: it sees chunks of rows and says in the end what it found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from alignlab.data.gate.chunk import Chunk, Facts
from alignlab.data.gate.finding import Severity
from alignlab.data.gate.limits import Share
from alignlab.data.gate.tally import Tally


@dataclass(frozen=True)
class Found:
    """A finding whose rows are still positions in the stream that the gate saw."""

    severity: Severity
    code: str
    count: int
    positions: Sequence[int]  # the first few
    message: str
    advice: str


class Check(ABC):
    """One kind of thing that can be wrong with rows; remembers counts and hashes, no rows."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    @abstractmethod
    def see(self, chunk: Chunk) -> None:
        """Look at the next rows."""

    @abstractmethod
    def findings(self) -> Iterator[Found]:
        """Say what is wrong with the rows so far; may be called again after more."""


class RowCheck(Check):
    """A check that looks at each row by itself."""

    severity: Severity = "error"
    code: str
    message: str
    advice: str

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tally = Tally()
        self.rows = 0

    @abstractmethod
    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows of the chunk that show it, ascending, each once."""

    def see(self, chunk: Chunk) -> None:
        """Count the rows that show it."""
        self.rows += len(chunk.tokens)
        self.tally.add(chunk.start, self.look(chunk))

    def limit(self) -> Share | None:
        """Share of the rows from which it counts; None: always, with ``severity``."""
        return None

    def findings(self) -> Iterator[Found]:
        """One finding if any row shows it."""
        limit = self.limit()
        severity = limit.severity(self.tally.count, self.rows) if limit else self.severity
        if severity is not None:
            yield from found(severity, self.code, self.tally, self.message, self.advice)


def found(
    severity: Severity, code: str, tally: Tally, message: str, advice: str
) -> Iterator[Found]:
    """Yield one finding, or none if no row shows it."""
    if tally.count:
        yield Found(severity, code, tally.count, tuple(tally.first), message, advice)
