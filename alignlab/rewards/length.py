"""Length as a reward: the sentinel that shows whether a method exploits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from alignlab.rewards.reward import Meta, Texts, fingerprint
from alignlab.typed import Range


@dataclass(frozen=True, kw_only=True)
class Length:
    """Closeness of the completion's length to a target: −min(1, |words − target| / target)."""

    target_words: Annotated[int, Range(min=1)]

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"length_{self.target_words}"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion in [−1, 0], float32 (R,)."""
        words = np.array([len(text.split()) for text in completions], dtype=np.float64)
        off = np.abs(words - self.target_words) / self.target_words
        return -np.minimum(off, 1.0).astype(np.float32)

    def fingerprint(self) -> str:
        """Hash of the fields."""
        return fingerprint(self, 1)
