"""Documents cut into windows of a fixed length, for pretraining: each by itself, or end to end.

A window is a group whose prompt is one token, the one before its first target, so that every token
of every document is a target exactly once. Windows are views of mapped documents: what is not
asked for is not in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from alignlab.data.group import DEMONSTRATION, TokenGroup
from alignlab.data.mapped import Groups, sizes_of

Packing = Literal["documents", "concatenated"]


class DocumentWindows(Groups):
    """Windows of single documents: no token is predicted from another document.

    The k-th window of a document holds its targets k·window … (k + 1)·window − 1 and the token
    before them. Short windows are laid beside each other when a micro-batch is made, each with
    positions and attention of its own, so nothing is padded and nothing is cut off.
    """

    def __init__(self, documents: Sequence[TokenGroup], window: int) -> None:
        self.documents, self.window = documents, window
        self._targets = sizes_of(documents) - 1  # of each document: all but its first token
        pieces = -(-self._targets // window)
        self._first = np.concatenate([[0], np.cumsum(pieces)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._first[-1])

    def at(self, position: int) -> TokenGroup:
        """Read the window at a position that exists."""
        number = int(np.searchsorted(self._first, position, side="right")) - 1
        start = (position - int(self._first[number])) * self.window
        document = self.documents[number]
        [body] = document.completions
        head = body[start - 1 : start] if start else document.prompt
        last = start + self.window >= len(body)
        return window_group(
            head, body[start : start + self.window], f"{document.id}:{start}", position, last
        )

    def sizes(self) -> np.ndarray:
        """Tokens of every window, its first one included; none is read."""
        place = np.arange(len(self)) - self._first[:-1].repeat(np.diff(self._first))
        left = self._targets.repeat(np.diff(self._first)) - place * self.window
        return np.minimum(left, self.window) + 1

    def counts(self) -> np.ndarray:
        """One completion per window."""
        return np.ones(len(self), dtype=np.int64)

    def owners(self) -> np.ndarray:
        """Document of every window (windows,)."""
        return np.arange(len(self.documents)).repeat(np.diff(self._first))


class ConcatenatedWindows(Groups):
    """Windows of all documents end to end, as GPT-3 was trained: attention crosses their seams.

    Every window but the last is full. With ``opened`` each document keeps its first token (BOS),
    which is then a target after the end of the document before; without, the end token of one
    document is what the next one starts from.
    """

    def __init__(self, documents: Sequence[TokenGroup], window: int, opened: bool) -> None:
        self.documents, self.window, self.opened = documents, window, opened
        lengths = sizes_of(documents) - (0 if opened else 1)
        if len(lengths) and not opened:
            lengths[0] += 1  # the first document has none before it
        self._ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return -(-self._targets() // self.window)

    def _targets(self) -> int:
        return int(self._ends[-1]) - 1 if len(self._ends) else 0

    def at(self, position: int) -> TokenGroup:
        """Read the window at a position that exists."""
        start = position * self.window
        end = min(start + self.window + 1, int(self._ends[-1]))
        number = int(np.searchsorted(self._ends, start, side="right"))
        name, found = self.documents[number].id, []
        while start < end:
            stop = min(end, int(self._ends[number]))
            begin = int(self._ends[number - 1]) if number else 0
            found += self._tokens(number, start - begin, stop - begin)
            start, number = stop, number + 1
        ids = np.concatenate(found)
        last = end == int(self._ends[number - 1])
        return window_group(ids[:1], ids[1:], f"{name}+{position}", position, last)

    def _tokens(self, number: int, start: int, stop: int) -> list[np.ndarray]:
        """Tokens ``start`` to ``stop`` of what a document adds to the stream."""
        document = self.documents[number]
        [body] = document.completions
        if not self.opened and number:
            return [body[start:stop]]
        return [document.prompt[start:stop], body[max(start - 1, 0) : stop - 1]]

    def sizes(self) -> np.ndarray:
        """Tokens of every window, its first one included; none is read."""
        sizes = np.full(len(self), self.window + 1, dtype=np.int64)
        if len(sizes):
            sizes[-1] = self._targets() - (len(sizes) - 1) * self.window + 1
        return sizes

    def counts(self) -> np.ndarray:
        """One completion per window."""
        return np.ones(len(self), dtype=np.int64)


def window_group(
    head: np.ndarray, body: np.ndarray, name: str, row: int, whole: bool
) -> TokenGroup:
    """One window: a first token to predict from, and its targets."""
    return TokenGroup(
        prompt=head,
        completions=(body,),
        verdict=DEMONSTRATION,
        row=row,
        id=name,
        truncated=(not whole,),
    )


def windows_of(
    documents: Sequence[TokenGroup], window: int, packing: Packing, *, opened: bool
) -> DocumentWindows | ConcatenatedWindows:
    """Cut documents into windows.

    Args:
        documents: groups of one completion each, the whole text with its end token, after a prompt
            of one token (BOS, else EOS).
        window: most targets of a window.
        packing: ``documents`` keeps them apart, ``concatenated`` lays them end to end.
        opened: whether the tokenizer starts a text with BOS.
    """
    if packing == "documents":
        return DocumentWindows(documents, window)
    return ConcatenatedWindows(documents, window, opened)
