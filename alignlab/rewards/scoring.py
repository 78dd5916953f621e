"""A simulated annotator who gives every completion a score of its own instead of a rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

from alignlab.data.group import PromptGroup, Verdict
from alignlab.rewards.annotator import Annotation, Annotator
from alignlab.rewards.reward import fingerprint
from alignlab.spec import Spec
from alignlab.typed import Range


@dataclass(frozen=True, kw_only=True)
class ScoringAnnotator:
    """Gives the score s̃_i = s_i + noise · ε_i, ε standard normal, on the scale of the reward.

    What regression reward models and the objectives that read scores learn from. The draws are
    those of `Annotator`: hashes of (seed, prompt, completion).
    """

    reward: Spec
    noise: Annotated[float, Range(min=0)]  # standard deviation, in units of the reward

    @cached_property
    def _ranker(self) -> Annotator:
        return Annotator(
            reward=self.reward, noise=self.noise, distribution="normal", flip=0.0, ties=0.0
        )

    def annotate(self, group: PromptGroup, texts: Sequence[str], seed: int) -> Annotation:
        """Score the completions ``texts`` of ``group``'s prompt."""
        found = self._ranker.annotate(group, texts, seed)
        return replace(found, verdict=Verdict("scores", scores=found.perceived))

    def fingerprint(self) -> str:
        """Hash of the fields and of the reward's own fingerprint."""
        return fingerprint(self, 1, self._ranker.fingerprint())
