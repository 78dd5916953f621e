"""Any reward as a judge: the higher score wins, and scores that lie close together tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from alignlab.errors import ConfigError
from alignlab.rewards.judge.judge import Heard, Question, Reply, Side, judge_fingerprint
from alignlab.rewards.reward import Reward
from alignlab.spec import Spec, build
from alignlab.typed import Range


@dataclass(frozen=True, kw_only=True)
class RewardJudge:
    """Judges by the scores of a reward: a learned run, a lexicon, a classifier, a verifier.

    first ≻ second if s₁ − s₂ > margin; |s₁ − s₂| ≤ margin is a tie. The order cannot matter.
    """

    reward: Spec | None  # null = the reward run that is the stage's input `judge`
    margin: Annotated[float, Range(min=0)]  # in units of the reward

    @property
    def name(self) -> str:
        """Short name for tables."""
        return self._scorer.name

    @property
    def deterministic(self) -> bool:
        """A reward gives a text one score."""
        return True

    @property
    def balanced(self) -> bool:
        """A score does not know where its text was shown."""
        return True

    @property
    def remembered(self) -> bool:
        """Scores are cheap to compute again, and may depend on what the data know."""
        return False

    @cached_property
    def _scorer(self) -> Reward:
        if self.reward is None:
            raise ConfigError(
                "judge.reward is null: name a reward (judge/reward=…), or give the stage a reward"
                " run as its input `judge`."
            )
        found: Reward = build(self.reward)
        return found

    def answer(self, questions: Sequence[Question], heard: Heard) -> None:
        """Score all distinct answers in one call and compare."""
        texts = {(q.prompt, text): q for q in questions for text in (q.first, q.second)}
        scores = self._scorer.score(
            [prompt for prompt, _ in texts],
            [text for _, text in texts],
            [question.meta for question in texts.values()],
        )
        score = dict(zip(texts, map(float, scores), strict=True))
        for index, question in enumerate(questions):
            one, two = (
                score[question.prompt, question.first],
                score[question.prompt, question.second],
            )
            heard(index, Reply(self._side(one - two), f"{one:.4g} {two:.4g}"))

    def _side(self, lead: float) -> Side:
        if lead != lead:
            return "none"
        if abs(lead) <= self.margin:
            return "tie"
        return "first" if lead > 0 else "second"

    def fingerprint(self) -> str:
        """Hash of the margin and of the reward's own fingerprint."""
        return judge_fingerprint(self, 1, self.margin, self._scorer.fingerprint())
