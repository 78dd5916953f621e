"""Filters on single texts: length, diversity of words, repetition, characters, script, patterns.

A filter looks at ``part`` of a row: its ``prompt``, its ``best`` completion by the verdict, all
``completions``, or ``all`` texts; a row goes when one of them fails. With ``completions`` both
sides of a preference pair are held to the same standard; a filter on ``best`` alone would make
"well-formed" the thing that the pairs teach.
"""

from __future__ import annotations

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Literal

from alignlab.data.group import PromptGroup
from alignlab.data.quality.measures import distinct, matched_share, type_token
from alignlab.data.quality.step import Reason, Step, StepEffect, sieve
from alignlab.data.quality.texts import Part, parts, words
from alignlab.errors import DataError
from alignlab.typed import Range

Share = Annotated[float, Range(min=0, max=1)]
Bound = Annotated[int | None, Range(min=0)]

_URL = re.compile(r"(?:https?://|www\.)\S+")


@dataclass(frozen=True, kw_only=True)
class TextFilter(Step):
    """Base of the filters: drops a row when one of its texts has a complaint."""

    part: Part  # prompt, best (completion), completions, all

    @abstractmethod
    def complaint(self, text: str) -> Reason | None:
        """Return why a text is refused, None for a good one."""

    def apply(self, groups: Iterable[PromptGroup]) -> tuple[list[PromptGroup], StepEffect]:
        """Return the rows whose texts all pass."""

        def first(group: PromptGroup) -> Reason | None:
            found = (self.complaint(text) for text in parts(group, self.part))
            return next((reason for reason in found if reason is not None), None)

        return sieve(self.name, groups, first)


@dataclass(frozen=True, kw_only=True)
class ProseFilter(TextFilter):
    """Base of the filters whose measures mean something from a certain length on."""

    from_words: Annotated[int, Range(min=0)]  # shorter texts pass

    def complaint(self, text: str) -> Reason | None:
        """Return what is wrong with a text that is long enough to tell."""
        return self.fault(text) if len(text.split()) >= max(1, self.from_words) else None

    @abstractmethod
    def fault(self, text: str) -> Reason | None:
        """Return why a text of enough words is refused, None for a good one."""


@dataclass(frozen=True, kw_only=True)
class Length(TextFilter):
    """Bounds on the words and on the characters of a text, both ends included."""

    min_words: Bound  # null = no bound, here and below
    max_words: Bound
    min_characters: Bound
    max_characters: Bound

    def __post_init__(self) -> None:
        for low, high in (
            (self.min_words, self.max_words),
            (self.min_characters, self.max_characters),
        ):
            if low is not None and high is not None and low > high:
                raise DataError(f"No length is at least {low} and at most {high}.")

    def complaint(self, text: str) -> Reason | None:
        """Return which bound the text breaks."""
        sizes = (
            ("words", len(text.split()), self.min_words, self.max_words),
            ("characters", len(text), self.min_characters, self.max_characters),
        )
        for unit, size, low, high in sizes:
            if low is not None and size < low:
                return Reason(f"fewer than {low} {unit}", f"{size} {unit}")
            if high is not None and size > high:
                return Reason(f"more than {high} {unit}", f"{size} {unit}")
        return None


@dataclass(frozen=True, kw_only=True)
class LexicalDiversity(TextFilter):
    """Least type-token ratio and least distinct-n of a text.

    type-token = different words / words, the mean over all windows of ``window`` neighbouring words
    (the moving average of Covington & McFall 2010), because the plain ratio falls with the length;
    distinct-n = different n-grams / n-grams (Li et al. 2016, arXiv:1510.03055).
    """

    type_token: Share
    window: Annotated[int, Range(min=2)]  # words; a shorter text is one window
    distinct: Share
    ngram: Annotated[int, Range(min=1)]  # n of distinct-n

    def complaint(self, text: str) -> Reason | None:
        """Return which measure is too low; a text without words passes (see `Length`)."""
        tokens = words(text)
        ratio = type_token(tokens, self.window)
        if tokens and ratio < self.type_token:
            return Reason(f"type-token ratio below {self.type_token:g}", f"{ratio:.2f}")
        share = distinct([tokens], self.ngram)
        if len(tokens) >= self.ngram and share < self.distinct:
            return Reason(f"distinct-{self.ngram} below {self.distinct:g}", f"{share:.2f}")
        return None


@dataclass(frozen=True, kw_only=True)
class Characters(ProseFilter):
    """Most symbols, links and capitals, least letters, and a mean word length in bounds.

    A symbol is a character that is no letter, digit, space or common punctuation. The rules on
    words and symbols follow Gopher's (Rae et al. 2021, arXiv:2112.11446, section A.1.1).
    """

    symbols: Share  # most symbols, share of the characters
    links: Share  # most characters inside URLs, share of the characters
    capitals: Share  # most capitals, share of the cased letters
    alphabetic: Share  # least words with a letter, share of the words
    min_word: Annotated[float, Range(min=0)]  # mean characters of a word, at least
    max_word: Annotated[float, Range(min=0)]  # ... and at most

    def fault(self, text: str) -> Reason | None:
        """Return which share or mean is out of bounds."""
        tokens = text.split()
        links = matched_share(_URL, text)
        bare = _URL.sub(" ", text)
        symbols = sum(_is_symbol(c) for c in bare) / max(1, len(bare))
        cased = [c for c in bare if c.lower() != c.upper()]
        capitals = sum(c.isupper() for c in cased) / max(1, len(cased))
        alphabetic = sum(any(c.isalpha() for c in t) for t in tokens) / len(tokens)
        mean = sum(map(len, tokens)) / len(tokens)
        broken = (
            ("too many links", links, links > self.links),
            ("too many symbols", symbols, symbols > self.symbols),
            ("too many capitals", capitals, capitals > self.capitals),
            ("too few words with letters", alphabetic, alphabetic < self.alphabetic),
            ("words too short", mean, mean < self.min_word),
            ("words too long", mean, mean > self.max_word),
        )
        return next((Reason(why, f"{value:.2f}") for why, value, bad in broken if bad), None)


@dataclass(frozen=True, kw_only=True)
class Script(TextFilter):
    """Least share of the letters that are of the named scripts (latin, cyrillic, cjk, arabic …).

    A letter's script is the first word of its Unicode name.
    """

    scripts: tuple[str, ...]
    share: Share

    def __post_init__(self) -> None:
        for script in self.scripts:
            if not re.fullmatch(r"[a-z]+", script):
                raise DataError(f"scripts: {script!r} must be a small-letter word such as latin.")

    def complaint(self, text: str) -> Reason | None:
        """Return the share if it is too low; a text without letters passes."""
        found = [_script(c) for c in text if c.isalpha()]
        share = sum(script in self.scripts for script in found) / max(1, len(found))
        if found and share < self.share:
            other = max(set(found), key=lambda s: (s not in self.scripts, found.count(s), s))
            return Reason("other scripts", f"{share:.2f} of the letters; most are {other}")
        return None


@dataclass(frozen=True, kw_only=True)
class Vocabulary(ProseFilter):
    """Least number of different words out of a list, for the language that a text is written in.

    With the function words of a language this is a test for that language. Gopher asks for two
    of eight English ones (Rae et al. 2021, arXiv:2112.11446, section A.1.1).
    """

    words: tuple[str, ...]
    least: Annotated[int, Range(min=1)]

    def fault(self, text: str) -> Reason | None:
        """Return how many of the words there are if they are too few."""
        found = set(words(text)) & {word.casefold() for word in self.words}
        if len(found) < self.least:
            return Reason(f"fewer than {self.least} of the expected words", f"{len(found)} found")
        return None


@dataclass(frozen=True, kw_only=True)
class Patterns(TextFilter):
    """Regular expressions that a text must match, and ones that it must not."""

    must: tuple[str, ...]  # each has to be found somewhere in the text
    must_not: tuple[str, ...]  # none may be found
    case: Literal["exact", "ignore"]

    def __post_init__(self) -> None:
        self._compiled  # noqa: B018 (a wrong pattern is refused now)

    @cached_property
    def _compiled(self) -> dict[str, re.Pattern[str]]:
        flags = re.IGNORECASE if self.case == "ignore" else 0
        compiled = {}
        for pattern in (*self.must, *self.must_not):
            try:
                compiled[pattern] = re.compile(pattern, flags | re.MULTILINE)
            except re.error as error:
                raise DataError(f"{pattern!r} is no regular expression: {error}.") from error
        return compiled

    def complaint(self, text: str) -> Reason | None:
        """Return the first pattern that is missing or must not be there."""
        for pattern in self.must:
            if not self._compiled[pattern].search(text):
                return Reason(f"does not match {pattern}")
        for pattern in self.must_not:
            if found := self._compiled[pattern].search(text):
                return Reason(f"matches {pattern}", found[0][:80])
        return None


def _is_symbol(character: str) -> bool:
    return not (character.isalnum() or character.isspace() or character in ".,;:!?'\"()-–—’‘“”")


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "unknown").split(" ")[0].split("-")[0].lower()
