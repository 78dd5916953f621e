"""Which protected text shares a long word n-gram with a text: an index of hashed n-grams."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from alignlab.data.quality.evaluation_sets import Protected
from alignlab.data.quality.texts import ngram_hashes, words


class Overlap(NamedTuple):
    """A protected row, the words that a text shares with it, and the share of its n-grams."""

    row: Protected
    shared: str
    share: float


@dataclass(frozen=True)
class _Table:
    """The n-grams of one length, sorted by hash."""

    hashes: np.ndarray  # (E,) uint64
    text: np.ndarray  # (E,) which protected text the n-gram is from
    start: np.ndarray  # (E,) at which word it starts


class NgramIndex:
    """The n-grams of protected texts.

    A text of L words gives its n-grams of min(ngram, L) words when L ≥ ``least``. A shorter prompt
    counts as found only where it is a whole prompt; a shorter completion ("Paris.") names nothing.
    n-grams that occur in more than ``template_rows`` rows of a set are the set's template (an
    instruction that every row repeats) and tell nothing.
    """

    def __init__(
        self, rows: Iterable[Protected], *, ngram: int, least: int, template_rows: int
    ) -> None:
        self._ngram = ngram
        self._rows: list[Protected] = []
        self._tokens: list[list[str]] = []
        self._short: dict[tuple[str, ...], Protected] = {}
        for row in rows:
            prompt = words(row.prompt)
            if 0 < len(prompt) < least:
                self._short.setdefault(tuple(prompt), row)
            for tokens in (prompt, *map(words, row.completions)):
                if len(tokens) >= least:
                    self._rows.append(row)
                    self._tokens.append(tokens)
        self._tables = self._build(template_rows)
        self._counts = self._usable()

    def _build(self, template_rows: int) -> dict[int, _Table]:
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, tokens in enumerate(self._tokens):
            by_length[min(self._ngram, len(tokens))].append(i)
        tables = {}
        for n, members in by_length.items():
            hashed = [ngram_hashes(self._tokens[i], n) for i in members]
            text = np.repeat(np.array(members), [len(h) for h in hashed])
            start = np.concatenate([np.arange(len(h)) for h in hashed])
            hashes = np.concatenate(hashed)
            useful = ~self._template(hashes, text, template_rows)
            order = np.argsort(hashes[useful], kind="stable")
            tables[n] = _Table(hashes[useful][order], text[useful][order], start[useful][order])
        return tables

    def _template(self, hashes: np.ndarray, text: np.ndarray, most: int) -> np.ndarray:
        """Which entries are n-grams that more than ``most`` rows of their set have, bool (E,)."""
        numbers: dict[int, int] = {}
        row_of = np.array([numbers.setdefault(id(row), len(numbers)) for row in self._rows])
        names = {name: k for k, name in enumerate(dict.fromkeys(row.set for row in self._rows))}
        set_of = np.array([names[row.set] for row in self._rows])
        _, gram = np.unique(hashes, return_inverse=True)
        key = gram * max(1, len(names)) + set_of[text]
        pairs = np.unique(np.stack([key, row_of[text]]), axis=1)  # once per row
        counts = np.bincount(pairs[0], minlength=int(key.max(initial=0)) + 1)
        return counts[key] > most

    def _usable(self) -> np.ndarray:
        """How many n-grams of each protected text are in the index, int (texts,)."""
        counts = np.zeros(len(self._rows), np.int64)
        for table in self._tables.values():
            counts += np.bincount(table.text, minlength=len(counts))
        return counts

    def find(self, text: str, prompts: Sequence[str], share: float) -> Overlap | None:
        """Return the protected text that ``text`` overlaps with most, if enough, else None.

        One common n-gram is needed, and ``share`` of the protected text's n-grams. ``prompts`` are
        compared as wholes with the short protected prompts.
        """
        for prompt in prompts if self._short else ():
            whole = tuple(words(prompt))
            if whole in self._short:
                return Overlap(self._short[whole], " ".join(whole), 1.0)
        tokens = words(text)
        found: dict[int, set[int]] = defaultdict(set)
        for n, table in self._tables.items():
            for owner, start in self._hits(table, tokens, n):
                found[owner].add(start)
        best = max(found, key=lambda i: (len(found[i]) / self._counts[i], -i), default=None)
        if best is None or len(found[best]) / self._counts[best] < share:
            return None
        own = self._tokens[best]
        first = min(found[best])
        shared = " ".join(own[first : first + self._ngram])
        return Overlap(self._rows[best], shared, len(found[best]) / self._counts[best])

    def _hits(self, table: _Table, tokens: Sequence[str], n: int) -> list[tuple[int, int]]:
        """(protected text, its start) of every n-gram that the tokens have too, word by word."""
        hashed = ngram_hashes(tokens, n)
        low = np.searchsorted(table.hashes, hashed, "left")
        high = np.searchsorted(table.hashes, hashed, "right")
        hits = []
        for at in np.flatnonzero(high > low).tolist():
            for entry in range(low[at], high[at]):
                owner, start = int(table.text[entry]), int(table.start[entry])
                if self._tokens[owner][start : start + n] == list(tokens[at : at + n]):
                    hits.append((owner, start))
        return hits
