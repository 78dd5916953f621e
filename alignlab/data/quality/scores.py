"""How good a row is, as a number: what `Select` chooses by. Higher is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np

from alignlab.data.group import PromptGroup
from alignlab.data.quality.judgements import field_number
from alignlab.data.quality.texts import plain, words
from alignlab.errors import DataError
from alignlab.spec import Spec, build
from alignlab.typed import Range


class Score(Protocol):
    """Gives every row a number."""

    def score(self, groups: Sequence[PromptGroup]) -> np.ndarray:
        """Return float64 (N,), one number per group."""
        ...

    def fingerprint(self) -> str:
        """Hash of what the configuration does not say, such as a reward's own data."""
        ...


@dataclass(frozen=True, kw_only=True)
class Field:
    """A number that the data hold: a rating, votes, a classifier's score."""

    field: str

    def score(self, groups: Sequence[PromptGroup]) -> np.ndarray:
        """Return the field of each row's meta; DataError where it is missing or no number."""
        return np.array([field_number(group, self.field) for group in groups], np.float64)

    def fingerprint(self) -> str:
        """Return nothing: the configuration says it all."""
        return ""


@dataclass(frozen=True, kw_only=True)
class AnswerLength:
    """Length of the best answer up to a target: min(1, words / target).

    Plain length is a strong baseline of selection (Zhao et al. 2024, arXiv:2402.04833).
    """

    target_words: Annotated[int, Range(min=1)]

    def score(self, groups: Sequence[PromptGroup]) -> np.ndarray:
        """Return the score of each row, in [0, 1]."""
        sizes = np.array([len(words(answer(group))) for group in groups], np.float64)
        return np.minimum(1.0, sizes / self.target_words)

    def fingerprint(self) -> str:
        """Return nothing: the configuration says it all."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Rewarded:
    """The reward of the best answer, for any reward of `alignlab.rewards`.

    ``length_free`` subtracts the least-squares line of the reward on ln(1 + words), so that what is
    chosen is better than other answers of its length. Without it a reward that grows with the
    length chooses long answers.
    """

    reward: Spec
    length_free: bool

    def score(self, groups: Sequence[PromptGroup]) -> np.ndarray:
        """Return the score of each row."""
        answers = [answer(group) for group in groups]
        prompts = [plain(group.prompt) for group in groups]
        reward = build(self.reward)
        scores = np.asarray(reward.score(prompts, answers, [g.meta for g in groups]), np.float64)
        if not self.length_free or len(groups) < 2:
            return scores
        size = np.log1p([len(words(text)) for text in answers])
        size -= size.mean()
        spread = float(size @ size)
        return scores - size * float(size @ scores) / spread if spread > 0 else scores

    def fingerprint(self) -> str:
        """Hash of the reward's own code and data."""
        return str(build(self.reward).fingerprint())


def answer(group: PromptGroup) -> str:
    """Return the best completion as text; DataError for a row without any."""
    if not group.completions:
        raise DataError(
            f"{group.meta.get('place') or group.id}: there is no completion to score. Select among"
            " rows with answers (splits: [sft] or [preference])."
        )
    best = group.verdict.best() if group.verdict else 0
    return plain(group.completions[best])
