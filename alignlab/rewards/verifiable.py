"""Rewards that can be checked: the final number, a pattern, words that must occur. 1 or 0."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from alignlab.errors import ConfigError, DataError
from alignlab.rewards.reward import Meta, Texts, fingerprint

_NUMBER = re.compile(
    r"(?<![\w.])[-−+]?\s?\$?\s?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))"
    r"(?:\s?/\s?\d+)?"
)
_MARK = "####"


def final_number(text: str) -> Fraction | None:
    r"""Return the number that a solution ends in, exactly; None without one.

    The first number after the last ``####`` (GSM8K), else the last number in the last
    ``\boxed{…}``, else the last number of the text. Thousands commas, ``$``, fractions ``a/b`` and
    ``\frac{a}{b}`` are understood; a mark with no number after it counts as no answer.
    """
    text = re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text)
    if _MARK in text:
        found = _NUMBER.search(text.rsplit(_MARK, 1)[1])
        return _value(found.group()) if found else None
    boxed = _boxed(text)
    numbers = [match.group() for match in _NUMBER.finditer(text if boxed is None else boxed)]
    return _value(numbers[-1]) if numbers else None


def _boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{…}``, braces matched; None without one."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth, first = 0, start + len(r"\boxed")
    for index in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[first + 1 : index]
    return text[first + 1 :]  # cut off by the length limit


def _value(number: str) -> Fraction | None:
    plain = re.sub(r"[,$\s+]", "", number).replace("−", "-")
    top, _, bottom = plain.partition("/")
    if bottom and int(bottom) == 0:
        return None
    return Fraction(top) / Fraction(bottom or 1)


@dataclass(frozen=True, kw_only=True)
class FinalNumber:
    """1 if the completion's final number equals the one in ``meta[answer]``, exactly, else 0."""

    answer: str  # key of meta that holds the reference: a number, or a solution that ends in one

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "final_number"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion 1 or 0, float32 (R,).

        Raises:
            DataError: a prompt whose meta has no number under ``answer``.
        """
        return np.array(
            [
                final_number(text) == self._reference(known)
                for text, known in zip(completions, meta, strict=True)
            ],
            dtype=np.float32,
        )

    def _reference(self, known: Mapping[str, Any]) -> Fraction:
        value = final_number(str(known.get(self.answer, "")))
        if value is None:
            raise DataError(
                f"The data gives no number under '{self.answer}' (fields: "
                f"{', '.join(sorted(known)) or 'none'}). Set reward.answer to the one that has it."
            )
        return value

    def fingerprint(self) -> str:
        """Hash of the fields."""
        return fingerprint(self, 1)


@dataclass(frozen=True, kw_only=True)
class Matches:
    """1 if the regular expression is found in the completion, else 0."""

    pattern: str
    whole: bool  # the stripped completion must match as a whole
    ignore_case: bool

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"'{self.pattern}' is no regular expression: {error}.") from error

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "matches"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion 1 or 0, float32 (R,)."""
        compiled = re.compile(self.pattern, re.IGNORECASE if self.ignore_case else 0)
        find: Callable[[str], Any] = compiled.fullmatch if self.whole else compiled.search
        return np.array([find(text.strip()) is not None for text in completions], dtype=np.float32)

    def fingerprint(self) -> str:
        """Hash of the fields."""
        return fingerprint(self, 1)


@dataclass(frozen=True, kw_only=True)
class Contains:
    """Share of the words that occur in the completion (``all``: 1 only if all do; ``any``: if one).

    Words are matched as whole words, whatever their case.
    """

    words: tuple[str, ...]
    need: Literal["share", "all", "any"]

    def __post_init__(self) -> None:
        if not self.words:
            raise ConfigError("Contains needs at least one word.")

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "contains"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion in [0, 1], float32 (R,)."""
        patterns = [
            re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in self.words
        ]
        hits = np.array(
            [[pattern.search(text) is not None for pattern in patterns] for text in completions],
            dtype=np.float32,
        ).reshape(len(completions), len(patterns))
        if self.need == "share":
            return hits.mean(axis=1)
        return hits.min(axis=1) if self.need == "all" else hits.max(axis=1)

    def fingerprint(self) -> str:
        """Hash of the fields."""
        return fingerprint(self, 1)
