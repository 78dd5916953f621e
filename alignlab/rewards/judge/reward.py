"""A judge as a reward: how often a completion wins, in both orders, against what it is shown with.

A generative judge compares; it has no scale of its own. So a score says against whom.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np

from alignlab.errors import ConfigError, DataError
from alignlab.rewards.classifier import store_cache
from alignlab.rewards.judge.annotator import mean_score
from alignlab.rewards.judge.asking import Asker
from alignlab.rewards.judge.rulings import Match, rule
from alignlab.rewards.reward import Meta, Texts, fingerprint
from alignlab.spec import Spec, build


@dataclass(frozen=True, kw_only=True)
class JudgeReward:
    """Mean score of a completion over its matches and both orders: win 1, tie ½, loss 0.

    *reference*: one match, against ``meta.reference`` of the prompt; the score of a completion
    depends on nothing else. *others*: a match with every other completion of the same prompt that
    is scored with it, K (K − 1) / 2 in all; only differences within a prompt mean anything, which
    is all that GRPO and RLOO use. A match without a verdict counts ½.
    """

    judge: Spec
    against: Literal["reference", "others"]

    @cached_property
    def _asker(self) -> Asker:
        return Asker(build(self.judge), store_cache())

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"{self._asker.judge.name} against {self.against}"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion in [0, 1], float32 (R,).

        Raises:
            DataError: a prompt without a reference answer.
            ConfigError: a prompt with one completion alone has no others.
            JudgeError: the judge cannot go on; what it said until then is kept in the store.
        """
        if self.against == "reference":
            return self._against_references(prompts, completions, meta)
        return self._against_others(prompts, completions, meta)

    def _against_references(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        matches = []
        for prompt, completion, known in zip(prompts, completions, meta, strict=True):
            if not known.get("reference"):
                raise DataError(
                    f"The prompt {prompt[:60]!r} has no field 'reference' beside it, and the judge"
                    " compares with that. Add one to the data, or set against=others."
                )
            matches.append(Match(prompt, completion, str(known["reference"]), None, known))
        values = [ruling.mean for ruling in rule(self._asker, matches)]
        return np.array([0.5 if v is None else v for v in values], dtype=np.float32)

    def _against_others(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        together: dict[str, list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            together[prompt].append(i)
        pairs: list[tuple[int, int]] = []
        for prompt, places in together.items():
            if len(places) == 1:
                raise ConfigError(
                    f"The prompt {prompt[:60]!r} has one completion alone, and the judge compares"
                    " with others: sample several per prompt, or set against=reference."
                )
            pairs += combinations(places, 2)
        matches = [
            Match(prompts[i], completions[i], completions[j], None, meta[i]) for i, j in pairs
        ]
        rulings = dict(zip(pairs, rule(self._asker, matches), strict=True))
        return np.array(mean_score(rulings, len(prompts)), dtype=np.float32)

    def spent(self) -> dict[str, float | None]:
        """What the judge was asked and has cost."""
        return self._asker.spent()

    def fingerprint(self) -> str:
        """Hash of the fields and of the judge's own fingerprint."""
        return fingerprint(self, 1, self._asker.judge.fingerprint())
