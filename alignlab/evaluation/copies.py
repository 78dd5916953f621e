"""Which n-grams of some texts occur in a corpus that streams by: every n at once, by their hashes.

What is held grows with the texts and not with the corpus. A place of the corpus is followed only as
long as what starts there is in some text, so most of them are dropped after a few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: a hash keeps all 64 bits of what came before


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length: where they start in the texts, and which of them were seen."""

    starts: np.ndarray  # (S,) places of the joined texts
    which: np.ndarray  # (S,) index into the distinct ones
    hashes: np.ndarray  # (D,) uint64, sorted
    seen: np.ndarray  # (D,) bool


class Copies:
    """n-grams of token sequences, told from others by a hash of 64 bits.

    Among 10⁶ tokens of texts and 10⁹ of the corpus, the chance that any of them is mistaken is
    below 10⁻⁴ for each n.
    """

    def __init__(self, texts: Sequence[np.ndarray]) -> None:
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._ends = np.cumsum(lengths)
        self._begins = self._ends - lengths
        joined = np.concatenate([*texts, np.zeros(0, dtype=np.int64)])
        self._tokens = _mixed(joined)
        self._room = np.repeat(self._ends, lengths) - np.arange(len(joined))  # to the text's end
        self._orders: list[_Order] = []
        self._rolling = np.zeros(len(joined), dtype=np.uint64)

    def read(self, ids: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> None:
        """Take in texts of the corpus: ``ids[begins[i] : ends[i]]``; an n-gram is in one text."""
        tokens = _mixed(ids)
        lengths = ends - begins
        before = np.repeat(begins - np.cumsum(lengths) + lengths, lengths)
        places = before + np.arange(int(lengths.sum()))
        room = np.repeat(ends, lengths) - places
        hashes = np.zeros(len(places), dtype=np.uint64)
        n = 0
        while len(places):
            n += 1
            order = self._order(n)
            if not len(order.hashes):
                return
            hashes = hashes * FACTOR + tokens[places + (n - 1)]
            at = np.minimum(np.searchsorted(order.hashes, hashes), len(order.hashes) - 1)
            known = order.hashes[at] == hashes
            order.seen[at[known]] = True
            longer = known & (room > n)
            places, room, hashes = places[longer], room[longer], hashes[longer]

    def found(self, text: int, n: int) -> tuple[int, int]:
        """How many of the n-grams of ``text`` the corpus has, and how many there are."""
        order = self._order(n)
        mine = (order.starts >= self._begins[text]) & (order.starts < self._ends[text])
        return int(order.seen[order.which[mine]].sum()), int(mine.sum())

    def longest(self, text: int) -> int:
        """Tokens of the longest run of ``text`` that stands in one text of the corpus."""
        low, high = 0, int(self._ends[text] - self._begins[text])
        while low < high:  # a run that is found is found without its last token
            middle = (low + high + 1) // 2
            if self.found(text, middle)[0]:
                low = middle
            else:
                high = middle - 1
        return low

    def _order(self, n: int) -> _Order:
        while len(self._orders) < n:
            size = len(self._orders) + 1
            starts = np.flatnonzero(self._room >= size)
            hashes = self._rolling[starts] * FACTOR + self._tokens[starts + (size - 1)]
            self._rolling[starts] = hashes
            distinct, which = np.unique(hashes, return_inverse=True)
            self._orders.append(_Order(starts, which, distinct, np.zeros(len(distinct), bool)))
        return self._orders[n - 1]


def _mixed(ids: np.ndarray) -> np.ndarray:
    """Token ids as numbers whose 64 bits all depend on the id (the finaliser of splitmix64)."""
    x = (ids.astype(np.uint64) + np.uint64(1)) * FACTOR
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
