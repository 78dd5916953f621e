"""A judge as an annotator: it ranks the completions of a prompt by comparing every two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

from alignlab.data.call_text import spelt
from alignlab.data.group import PromptGroup, Verdict
from alignlab.data.thinking import split
from alignlab.rewards.annotator import Annotation, tiers
from alignlab.rewards.classifier import store_cache
from alignlab.rewards.judge.asking import Asker
from alignlab.rewards.judge.rulings import Match, Ruling, rule
from alignlab.rewards.reward import fingerprint, prompt_text
from alignlab.spec import Spec, build


@dataclass(frozen=True, kw_only=True)
class JudgeAnnotator:
    """Ranks K completions by K (K − 1) / 2 matches, each judged in both orders.

    *copeland*: a completion's matches won minus those lost, where a match is won only if both
    orders say so. *mean*: the mean, over its matches and both orders, of 1 for a win and 0.5 for a
    tie; it also counts what the orders disagree about. Equal values tie and give no pair, and a
    match without a verdict counts for neither side.

    The scores of an annotation are these values; nothing is drawn, so the seed changes nothing.
    """

    judge: Spec
    aggregation: Literal["copeland", "mean"]

    @cached_property
    def _asker(self) -> Asker:
        return Asker(build(self.judge), store_cache())

    def rank(self, group: PromptGroup, texts: Sequence[str], seed: int) -> Verdict:
        """Return the verdict alone; see `annotate`."""
        return self.annotate(group, texts, seed).verdict

    def annotate(self, group: PromptGroup, texts: Sequence[str], seed: int) -> Annotation:
        """Rank the completions ``texts`` of ``group``'s prompt.

        Raises:
            JudgeError: the judge cannot go on; what it said until then is kept in the store.
        """
        prompt, reference = prompt_text(group), reference_of(group)
        pairs = list(combinations(range(len(texts)), 2))
        answers = [split(text).answer for text in texts]  # a judge compares no thoughts
        matches = [Match(prompt, answers[i], answers[j], reference, group.meta) for i, j in pairs]
        rulings = dict(zip(pairs, rule(self._asker, matches), strict=True))
        find = copeland if self.aggregation == "copeland" else mean_score
        values = find(rulings, len(texts))
        return Annotation(Verdict("ranking", ranks=tiers(values, 1e-12)), values, values, False)

    def spent(self) -> dict[str, float | None]:
        """What the judge was asked and has cost."""
        return self._asker.spent()

    def fingerprint(self) -> str:
        """Hash of the fields and of the judge's own fingerprint."""
        return fingerprint(self, 1, self._asker.judge.fingerprint())


def reference_of(group: PromptGroup) -> str | None:
    """Answer that the data give to a prompt: ``meta.reference``, else the best completion.

    Without its thought, its calls as text.
    """
    stated = group.meta.get("reference")
    if stated:
        return str(stated)
    if not group.verdict or not (demonstration := group.demonstration()):
        return None
    [text] = demonstration.completions
    if isinstance(text, str):
        return split(text).answer
    # A policy is sampled for one turn: where that calls a tool, what follows is no part of it.
    turns = text[:1] if text and text[0].get("tool_calls") else text
    return split("\n".join(map(spelt, turns))).answer


def copeland(rulings: Mapping[tuple[int, int], Ruling], size: int) -> tuple[float, ...]:
    """Matches won minus matches lost, per completion; no verdict is neither."""
    values = [0.0] * size
    for (i, j), ruling in rulings.items():
        if ruling.win is not None:
            lead = 2 * ruling.win - 1
            values[i] += lead
            values[j] -= lead
    return tuple(values)


def mean_score(rulings: Mapping[tuple[int, int], Ruling], size: int) -> tuple[float, ...]:
    """Mean score of each completion over its matches and orders; 0.5 for one without a verdict."""
    said: list[list[float]] = [[] for _ in range(size)]
    for (i, j), ruling in rulings.items():
        if ruling.mean is not None:
            said[i].append(ruling.mean)
            said[j].append(1 - ruling.mean)
    return tuple(sum(values) / len(values) if values else 0.5 for values in said)


def limited(spec: Any) -> bool:
    """Whether a judge inside an annotator's configuration has a budget, which is one for all."""
    if isinstance(spec, Spec):
        return "limits" in spec.arguments or any(map(limited, spec.arguments.values()))
    if isinstance(spec, Mapping):
        return "limits" in spec or any(map(limited, spec.values()))
    return hasattr(spec, "annotator") and limited(spec.annotator)
