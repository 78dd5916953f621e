"""Health of what a policy writes: diversity, repetition, whether it ends, how long it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from alignlab.annotations import Range
from alignlab.data.quality.measures import distinct
from alignlab.data.wording import content
from alignlab.evaluation.items import cut_warning, item_id, load
from alignlab.evaluation.policy import Policy
from alignlab.evaluation.task import Better, Result, Row, mean
from alignlab.evaluation.text import repetition, self_bleu
from alignlab.rewards.reward import fingerprint
from alignlab.rollout.sampling import Sampling
from alignlab.spec import Spec, build

VERSION = 1
BETTER: dict[str, Better] = {
    "distinct_1": "higher",
    "distinct_2": "higher",
    "self_bleu": "lower",
    "repetition": "lower",
    "finished": "higher",
    "empty": "lower",
    "length": None,
}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Properties of ``samples`` completions per prompt; each number is one of a prompt.

    ``distinct_n`` is the share of different n-grams among the prompt's samples (Li et al. 2016),
    ``self_bleu`` the mean BLEU of each sample against the others (Zhu et al. 2018), ``repetition``
    the share of a sample's trigrams that occurred in it before, ``finished`` the share that ended
    by themselves, ``empty`` the share without a word, ``length`` the mean tokens.
    """

    data: Spec
    split: str
    items: Annotated[int, Range(min=1)] | None
    samples: Annotated[int, Range(min=2)]
    sampling: Sampling

    @property
    def tokens(self) -> int:
        """Sampled tokens at the length limit."""
        return (self.items or 0) * self.samples * self.sampling.max_new_tokens

    def fingerprint(self) -> str:
        """Hash of the fields and the data."""
        return fingerprint(self, VERSION, build(self.data).fingerprint())

    def run(self, policy: Policy) -> Result:
        """Sample and measure."""
        _, groups = load(self.data, self.split, self.items, "generation")
        answers = policy.answer(groups, self.sampling, self.samples)
        rows: list[Row] = []
        for number, group in enumerate(groups):
            texts = answers.texts[number]
            found = health(texts)
            found["finished"] = mean(list(map(float, answers.finished[number])))
            found["length"] = mean(list(map(float, answers.tokens[number])))
            item = item_id(group, number)
            for metric, value in found.items():
                shown = (content(group.prompt), texts[0]) if metric == "distinct_2" else (None,) * 2
                rows.append(Row(metric, item, value, prompt=shown[0], completion=shown[1]))
        warnings = cut_warning("generation", answers.cut, len(groups))
        return Result(rows, BETTER, warnings=warnings)


def health(texts: Sequence[str]) -> dict[str, float]:
    """Diversity and repetition of the samples of one prompt; words are split at white space."""
    words = [text.lower().split() for text in texts]
    return {
        "distinct_1": distinct(words, 1),
        "distinct_2": distinct(words, 2),
        "self_bleu": self_bleu(words),
        "repetition": mean([repetition(text) for text in texts]),
        "empty": mean([float(not w) for w in words]),
    }
