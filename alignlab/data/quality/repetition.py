"""Repetition inside a text, by the rules that Gopher's training data were filtered with.

Rae et al. 2021 (arXiv:2112.11446), table A1: the shares of repeated lines and paragraphs, of the
most frequent n-gram (2 to 4 words) and of all repeated n-grams (5 to 10 words).
"""

from __future__ import annotations

from dataclasses import dataclass

from alignlab.data.quality.filters import ProseFilter, Share
from alignlab.data.quality.measures import (
    duplicate_ngram_share,
    duplicate_share,
    top_ngram_share,
)
from alignlab.data.quality.step import Reason
from alignlab.data.quality.texts import words
from alignlab.errors import DataError

TOP = (2, 3, 4)
REPEATED = (5, 6, 7, 8, 9, 10)


@dataclass(frozen=True, kw_only=True)
class Repetition(ProseFilter):
    """Most repetition that a text may have; every limit is a share, and 1 turns it off.

    Unlike in Gopher's rules an n-gram that occurs once is no repetition. The limits were made for
    web pages of 50 words and more; worked arithmetic and code repeat themselves by nature.
    """

    lines: Share  # repeated lines, of the lines
    line_characters: Share  # characters in repeated lines, of the characters
    paragraphs: Share  # repeated paragraphs, of the paragraphs
    paragraph_characters: Share  # characters in repeated paragraphs
    top: tuple[Share, ...]  # characters in the most frequent 2-, 3- and 4-gram
    repeated: tuple[Share, ...]  # characters in all n-grams that occurred before, n = 5 to 10

    def __post_init__(self) -> None:
        if len(self.top) != len(TOP) or len(self.repeated) != len(REPEATED):
            raise DataError(
                f"top needs a limit for each n of {TOP} and repeated for each of {REPEATED};"
                f" they have {len(self.top)} and {len(self.repeated)}."
            )

    def fault(self, text: str) -> Reason | None:
        """Return the first limit that the text is over."""
        lines = [line for line in map(str.strip, text.split("\n")) if line]
        paragraphs = [part for part in map(str.strip, text.split("\n\n")) if part]
        tokens = words(text)
        for why, pieces, of_pieces, of_characters in (
            ("repeated lines", lines, self.lines, self.line_characters),
            ("repeated paragraphs", paragraphs, self.paragraphs, self.paragraph_characters),
        ):
            share, characters = duplicate_share(pieces)
            if share > of_pieces or characters > of_characters:
                return Reason(why, f"{share:.2f} of them, {characters:.2f} of the characters")
        for n, limit in zip(TOP, self.top, strict=True):
            if limit < 1 and (value := top_ngram_share(tokens, n)) > limit:
                return Reason(f"one {n}-gram again and again", f"{value:.2f} of the characters")
        for n, limit in zip(REPEATED, self.repeated, strict=True):
            if limit < 1 and (value := duplicate_ngram_share(tokens, n)) > limit:
                return Reason(f"repeated {n}-grams", f"{value:.2f} of the characters")
        return None
