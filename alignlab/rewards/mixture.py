"""A weighted sum of rewards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from alignlab.errors import ConfigError
from alignlab.rewards.reward import Meta, Reward, Texts, fingerprint
from alignlab.rewards.thinking import graded
from alignlab.spec import Spec, build


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """One term of a mixture."""

    reward: Spec
    weight: float


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Σ_i w_i r_i(x, y): rewards on their own scales, so choose weights with those in mind."""

    reads_thinking: ClassVar[bool] = True  # it passes completions on, to each term as that reads

    terms: tuple[Weighted, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ConfigError("A mixture of rewards needs at least one term.")

    @cached_property
    def rewards(self) -> tuple[Reward, ...]:
        """The rewards of the terms."""
        return tuple(build(term.reward) for term in self.terms)

    @property
    def name(self) -> str:
        """Short name for tables, such as ``1*vader+0.5*length_30``."""
        pairs = zip(self.terms, self.rewards, strict=True)
        return "+".join(f"{term.weight:g}*{reward.name}" for term, reward in pairs)

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion, float32 (R,); the sum is made in float64."""
        total = np.zeros(len(completions), dtype=np.float64)
        for term, reward in zip(self.terms, self.rewards, strict=True):
            scores = graded(reward, prompts, completions, meta)
            total += term.weight * scores.astype(np.float64)
        return total.astype(np.float32)

    def fingerprint(self) -> str:
        """Hash of the weights and of the terms' own fingerprints."""
        return fingerprint(self, 1, *(reward.fingerprint() for reward in self.rewards))
