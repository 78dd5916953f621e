"""Questions with one right answer (GSM8K): the share that a policy's answers get right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from alignlab.annotations import Range
from alignlab.data.wording import content
from alignlab.evaluation.items import FewShot, cut_warning, item_id, load
from alignlab.evaluation.policy import Policy
from alignlab.evaluation.task import Result, Row, mean
from alignlab.rewards.reward import fingerprint, known_of
from alignlab.rewards.thinking import graded
from alignlab.rollout.sampling import Sampling
from alignlab.spec import Spec, build

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    r"""1 where a verifiable reward says that the completion ends in the right answer, else 0.

    With ``reward=verifiable`` that is the number after the last ``####``, else in the last
    ``\boxed{}``, else the last of the text, compared exactly. ``finished`` is the share of
    completions that ended by themselves: an answer cut off by the length limit counts as it stands.
    With several samples per question an item's value is their mean.
    """

    data: Spec
    split: str
    items: Annotated[int, Range(min=1)] | None
    reward: Spec
    few_shot: FewShot
    stop: tuple[str, ...]
    samples: Annotated[int, Range(min=1)]
    sampling: Sampling

    @property
    def tokens(self) -> int:
        """Sampled tokens at the length limit."""
        return (self.items or 0) * self.samples * self.sampling.max_new_tokens

    def fingerprint(self) -> str:
        """Hash of the fields, the data and the reward."""
        parts = build(self.data).fingerprint(), build(self.reward).fingerprint()
        return fingerprint(self, VERSION, *parts)

    def run(self, policy: Policy) -> Result:
        """Sample answers and check them."""
        source, groups = load(self.data, self.split, self.items, "exact_match")
        asked = self.few_shot.apply(groups, source)
        answers = policy.answer(asked, self.sampling, self.samples, self.stop)
        reward = build(self.reward)
        rows: list[Row] = []
        for number, group in enumerate(groups):
            texts = list(answers.texts[number])
            prompt, known = content(group.prompt), [known_of(group)] * len(texts)
            right = graded(reward, [prompt] * len(texts), texts, known).tolist()
            item = item_id(group, number)
            rows.append(Row("accuracy", item, mean(right), prompt=prompt, completion=texts[0]))
            rows.append(Row("finished", item, mean(list(map(float, answers.finished[number])))))
        return Result(
            rows,
            {"accuracy": "higher", "finished": "higher"},
            {"shots": self.few_shot.shots},
            cut_warning("exact_match", answers.cut, len(groups)),
        )
