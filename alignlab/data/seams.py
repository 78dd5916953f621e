"""Token ids of a text whose parts must not share a token, and where in the ids each part starts.

A sampler starts from the ids of a prompt alone. Where a tokenizer would merge the prompt's last
characters with the first of an answer, the text is encoded in two pieces, split at that seam.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from alignlab.data.word_ids import WordIds

One = Callable[[str], list[int]]


class Encoder:
    """A tokenizer without the special tokens that it would add by itself."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._words = WordIds(tokenizer)

    def batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of every text."""
        return self._words(texts)

    def continued(
        self, heads: list[str], tails: list[list[str]]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Ids of every head, and of every head with each of its tails behind it, in order."""
        return self._words.continued(heads, tails)

    def one(self, text: str) -> list[int]:
        """Ids of a text."""
        return self.batch([text])[0]

    def at(
        self, text: str, seams: Sequence[int], ends: Sequence[int]
    ) -> tuple[list[int], dict[int, int]]:
        """Encode ``text``; return its ids and the index of the token at every given character.

        No token spans one of the ``seams``, and what stands before a seam has the ids that it has
        without what follows. An end-of-turn token may span one of the ``ends`` (it swallows a line
        break, as Phi 3's does); its index is the one of the next token.
        """
        return self._split(text, seams, ends, self.one)

    def continuation(self, head: Sequence[int], whole: Sequence[int], text: str) -> One:
        """How to encode ``text`` on its own so that after ``head`` it spells what ``whole`` does.

        SentencePiece writes a space before a text's first word, so there it is encoded after a
        line break, whose ids are dropped.
        """
        wanted = self._decode(whole)
        ways = (self.one, self.after_line_break)
        return next((way for way in ways if self._decode([*head, *way(text)]) == wanted), self.one)

    def after_line_break(self, text: str) -> list[int]:
        """Ids of a text that is not the first of its line of thought; see `continuation`."""
        return self.one("\n" + text)[len(self._line_break) :]

    @cached_property
    def _line_break(self) -> list[int]:
        return self.one("\n")

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _split(
        self, text: str, seams: Sequence[int], ends: Sequence[int], encode: One
    ) -> tuple[list[int], dict[int, int]]:
        ids, offsets = self._with_offsets(text, encode)
        found: dict[int, int] = {}
        for place in sorted({*seams, *ends}):
            index = _index(text, ids, place, place in seams, encode, offsets)
            if index is not None:
                found[place] = index
                continue
            left, known = self._split(
                text[:place], _before(seams, place), _before(ends, place), encode
            )
            right = text[place:]
            later, indices = self._split(
                right,
                _behind(seams, place),
                _behind(ends, place),
                self.continuation(left, ids, right),
            )
            shifted = {place + p: len(left) + i for p, i in indices.items()}
            return left + later, {**known, place: len(left), **shifted}
        return ids, found

    def _with_offsets(
        self, text: str, encode: One
    ) -> tuple[list[int], list[tuple[int, int]] | None]:
        if not getattr(self.tokenizer, "is_fast", False):
            return encode(text), None
        lead = "" if encode == self.one else "\n"
        encoded = self.tokenizer(
            lead + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        skip = len(self._line_break) if lead else 0
        offsets = [(a - len(lead), b - len(lead)) for a, b in encoded["offset_mapping"][skip:]]
        return encoded["input_ids"][skip:], _tiled(offsets)


def _before(places: Sequence[int], cut: int) -> list[int]:
    return [place for place in places if place < cut]


def _behind(places: Sequence[int], cut: int) -> list[int]:
    return [place - cut for place in places if place > cut]


def _index(
    text: str,
    ids: list[int],
    place: int,
    seam: bool,
    encode: One,
    offsets: list[tuple[int, int]] | None,
) -> int | None:
    """Index of the token that starts at character ``place``; None if a token spans it."""
    if place <= 0 or place >= len(text):
        return 0 if place <= 0 else len(ids)
    if offsets is None:
        part = encode(text[:place])
        return len(part) if ids[: len(part)] == part else None
    index = bisect_left(offsets, (place, 0))
    if not seam:
        return index
    if index and offsets[index - 1][1] > place:
        return None
    if text[place - 1] in " \t" and text[place - 2 : place - 1].isspace():
        # Pre-tokenizers divide a run of spaces differently before a word and at the end of a text.
        part = encode(text[:place])
        return index if ids[:index] == part else None
    return index


def _tiled(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Offsets without gaps: many tokenizers leave out the space that a token starts with."""
    tiled, end = [], 0
    for first, last in offsets:
        tiled.append((min(first, end), last))
        end = max(end, last)
    return tiled
