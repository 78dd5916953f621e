"""Rewards from word lists: VADER's sentiment, or lists of one's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any, Literal

import numpy as np

from alignlab.errors import ConfigError
from alignlab.rewards.reward import Meta, Texts, fingerprint

Part = Literal["completion", "text"]
_WORD = re.compile(r"[a-z']+")


@dataclass(frozen=True, kw_only=True)
class Vader:
    """VADER's compound sentiment in [−1, 1] (Hutto & Gilbert 2014).

    compound = s / √(s² + 15), s = summed word valences after its rules for negation, degree words,
    capitals and punctuation. Texts without a word of the lexicon score exactly 0.
    """

    part: Part  # score the completion alone, or prompt + completion

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "vader" if self.part == "completion" else "vader_text"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Compound score of every completion, float32 (R,); about 0.2 ms per short text."""
        analyzer = _analyzer()
        texts = parts(self.part, prompts, completions)
        return np.array([analyzer.polarity_scores(t)["compound"] for t in texts], dtype=np.float32)

    def fingerprint(self) -> str:
        """Hash of the fields and of the version of vaderSentiment."""
        return fingerprint(self, 1, metadata.version("vaderSentiment"))


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """Share of liked minus share of disliked words, in [−1, 1]: (n₊ − n₋) / max(1, words)."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    part: Part

    def __post_init__(self) -> None:
        both = set(self.positive) & set(self.negative)
        if both:
            raise ConfigError(f"Words that are both positive and negative: {sorted(both)}.")
        if bad := [w for w in (*self.positive, *self.negative) if not _WORD.fullmatch(w)]:
            raise ConfigError(f"Lexicon entries must be single lower-case words, not {bad}.")

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "lexicon"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion, float32 (R,)."""
        value = {**dict.fromkeys(self.positive, 1), **dict.fromkeys(self.negative, -1)}
        scores = []
        for text in parts(self.part, prompts, completions):
            words = _WORD.findall(text.lower())
            scores.append(sum(value.get(word, 0) for word in words) / max(1, len(words)))
        return np.array(scores, dtype=np.float32)

    def fingerprint(self) -> str:
        """Hash of the fields."""
        return fingerprint(self, 1)


def parts(part: Part, prompts: Sequence[str], completions: Sequence[str]) -> list[str]:
    """Return the texts to score: completions, or prompts with their completions."""
    if part == "completion":
        return list(completions)
    return [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    # Reading the lexicon takes 20 ms, so once per process.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
