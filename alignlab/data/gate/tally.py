"""What the checks remember between chunks: counts, first rows, hashes, a histogram of lengths."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from alignlab.data.gate.finding import SHOWN
from alignlab.data.group import TokenGroup


class Tally:
    """How many rows show something, and the positions of the first ones."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[int] = []

    def add(self, start: int, rows: Iterable[int]) -> None:
        """Count distinct ``rows`` of a chunk that begins at position ``start``."""
        positions = [start + int(row) for row in rows]
        self.count += len(positions)
        self.first.extend(positions[: SHOWN - len(self.first)])


class Column:
    """Numbers of 8 bytes, one after the other; grows in place."""

    def __init__(self, kind: str) -> None:
        self._numbers = array(kind)  # Q: uint64, q: int64

    def add(self, values: np.ndarray) -> None:
        """Append."""
        self._numbers.frombytes(np.ascontiguousarray(values).tobytes())

    def __len__(self) -> int:
        return len(self._numbers)

    def values(self) -> np.ndarray:
        """Return all numbers so far, as a copy."""
        return np.array(self._numbers, dtype=np.uint64 if self._numbers.typecode == "Q" else "i8")


class Histogram:
    """Exact counts of small whole numbers such as lengths in tokens."""

    CAP = 1 << 20  # larger values count as this one: memory stays bounded

    def __init__(self) -> None:
        self._counts = np.zeros(0, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count values ≥ 0."""
        counts = np.bincount(np.minimum(values, self.CAP), minlength=len(self._counts))
        counts[: len(self._counts)] += self._counts
        self._counts = counts

    def total(self) -> int:
        """Sum of the values."""
        return int((self._counts * np.arange(len(self._counts))).sum())

    def quantile(self, share: float) -> int:
        """Smallest value that at least this share of the values do not exceed; 0 for none."""
        below = np.cumsum(self._counts)
        if not len(below):
            return 0
        return int(np.searchsorted(below, max(1, np.ceil(share * below[-1]))))

    def above(self, bound: float) -> int:
        """Return the number of values greater than ``bound``."""
        return int(self._counts[int(bound) + 1 :].sum())


class Ledger:
    """Row number and place in a file of every row that was seen, in 20 bytes each."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._names = array("l")
        self._numbers = array("q")
        self._known: dict[str, int] = {}  # "pairs.jsonl, line" -> its index

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, tokens: Sequence[TokenGroup]) -> None:
        """Remember the next rows."""
        for token in tokens:
            place = str(token.meta.get("place", ""))
            name, _, number = place.rpartition(" ")
            plain = number.isascii() and number.isdigit() and str(int(number)) == number
            name = name if plain else place
            self._rows.append(token.row)
            self._names.append(self._known.setdefault(name, len(self._known)))
            self._numbers.append(int(number) if plain else -1)

    def rows(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Row numbers of some positions."""
        return tuple(self._rows[p] for p in positions)

    def places(self, positions: Sequence[int]) -> tuple[str, ...]:
        """Places of some positions, "" where a row had none."""
        names = list(self._known)
        found = ((names[self._names[p]], self._numbers[p]) for p in positions)
        return tuple(name if number < 0 else f"{name} {number}" for name, number in found)
