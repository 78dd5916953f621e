"""Rewards and thoughts: an answer is scored without its thought, a thought by its form alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from alignlab.data.thinking import CLOSE, OPEN, opened, split, whole
from alignlab.rewards.reward import Meta, Texts, fingerprint

if TYPE_CHECKING:
    from alignlab.rewards.reward import Reward


def graded(
    reward: Reward,
    prompts: Texts,
    completions: Texts,
    meta: Meta,
    begun: Sequence[bool] | None = None,
) -> np.ndarray:
    """Score completions, float32 (R,), as the reward reads them: what follows their thoughts.

    A thought that was cut off leaves an empty answer, so that no number in it is taken for the
    result. A reward with ``reads_thinking`` is given the whole completion.

    Args:
        reward: what scores.
        prompts: R texts; where one ends with ``<think>``, the completion goes on inside a thought.
        completions: R texts as they were sampled.
        meta: what is known of the prompts.
        begun: for each, whether its prompt opened a thought, where ``prompts`` do not say it.
    """
    starts = [opened(prompt) for prompt in prompts] if begun is None else list(begun)
    pairs = list(zip(completions, starts, strict=True))
    if getattr(reward, "reads_thinking", False):
        read = [whole(text, begun=start) for text, start in pairs]
    else:
        read = [split(text, begun=start).answer for text, start in pairs]
    return reward.score(prompts, read, meta)


@dataclass(frozen=True, kw_only=True)
class ThinkingFormat:
    """1 if a completion is one thought and then an answer, neither of them blank, else 0.

    The form that DeepSeek-R1 was rewarded for (Guo et al. 2025, arXiv:2501.12948, §2.2.2): each
    tag once, ``<think>`` first and ``</think>`` before the answer.
    """

    reads_thinking: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "thinking_format"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion 1 or 0, float32 (R,)."""
        return np.array([_formed(text) for text in completions], dtype=np.float32)

    def fingerprint(self) -> str:
        """Hash of the class and its version."""
        return fingerprint(self, 1)


def _formed(text: str) -> bool:
    once = text.count(OPEN) == text.count(CLOSE) == 1 and text.lstrip().startswith(OPEN)
    if not once:
        return False
    said = split(text)
    return bool((said.thought or "").strip() and said.answer.strip())
