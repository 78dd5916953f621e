"""Verbatim copying: what of a policy's samples stands in rows it was trained on, and recitation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from alignlab.annotations import Range
from alignlab.data.group import DEMONSTRATION, NONE, PromptGroup, TokenGroup
from alignlab.data.prepared import Prepared, prepare
from alignlab.data.template import Tokenization
from alignlab.data.wording import content
from alignlab.errors import ConfigError, DataError
from alignlab.evaluation.copies import Copies
from alignlab.evaluation.items import cut_warning, item_id, load
from alignlab.evaluation.policy import Policy
from alignlab.evaluation.task import Better, Result, Row
from alignlab.rewards.reward import fingerprint
from alignlab.rollout.sampling import Sampling
from alignlab.spec import Spec, build

VERSION = 1
HUMAN, HELD_OUT = "_human", "_held_out"  # endings of the measures that copying is compared with


@dataclass(frozen=True, kw_only=True)
class Copying:
    """Copying of trained-on completions, each beside the same measure of what was not trained on.

    ``copied_n`` is the share of a sample's n-grams of tokens that stand in a completion of the
    training rows, which is 1 minus their novelty (McCoy et al. 2023, 2111.09509), and
    ``longest_copy`` the tokens of its longest run that does. ``…_human`` is the same of the
    demonstrations of the same held-out prompts, which nobody copied. ``extracted`` is the share of
    training rows of which the policy, given the prompt and ``prefix`` tokens of the completion,
    greedily goes on with the next ``continuation`` tokens exactly (Carlini et al. 2023, 2202.07646,
    definition 3.1; 50 there), and ``extracted_held_out`` that of held-out rows.
    """

    data: Spec
    split: str  # trained on
    rows: Annotated[int, Range(min=1)] | None
    max_prompt: Annotated[int, Range(min=2)]
    max_completion: Annotated[int, Range(min=1)]
    held_out: str
    items: Annotated[int, Range(min=1)] | None
    ngrams: tuple[int, ...]
    sampling: Sampling
    recited: Annotated[int, Range(min=1)] | None
    prefix: Annotated[int, Range(min=0)]
    continuation: Annotated[int, Range(min=1)]

    def __post_init__(self) -> None:
        """There are n-grams to count, each once."""
        if not self.ngrams or min(self.ngrams) < 1 or len(set(self.ngrams)) < len(self.ngrams):
            raise ConfigError(f"ngrams={list(self.ngrams)}: lengths of n-grams, each once.")

    @property
    def tokens(self) -> int:
        """Sampled tokens at the length limit, and the rows to be recited."""
        row = self.max_prompt + self.prefix + self.continuation
        return (self.items or 0) * self.sampling.max_new_tokens + 2 * (self.recited or 0) * row

    def fingerprint(self) -> str:
        """Hash of the fields and the data."""
        return fingerprint(self, VERSION, build(self.data).fingerprint())

    def run(self, policy: Policy) -> Result:
        """Sample, read the training rows once, and score what could be recited."""
        source, asked = load(self.data, self.held_out, self.items, "copying")
        shown = [(group, said) for group in asked if (said := group.demonstration()) is not None]
        if not shown:
            raise DataError(
                f"copying: no prompt of the split '{self.held_out}' has a human completion to"
                " compare samples with. Name another split as held_out."
            )
        tokenization = Tokenization(policy.backbone.tokenizer, self.max_prompt, self.max_completion)
        trained = prepare(
            source, self.split, tokenization, policy.backbone.cache,
            need="demonstration", select=PromptGroup.demonstration, rows=self.rows,
        )  # fmt: skip
        groups = [group for group, _ in shown]
        answers = policy.answer(groups, self.sampling, 1)
        real = tokenization.groups([human for _, human in shown])
        given = [answered(group, text) for group, [text] in zip(groups, answers.texts, strict=True)]
        sides = (tokenization.groups(given), real)
        rows = self._copied(given, [[*map(bodies, side)] for side in sides], trained)
        recited = [*self._recited(policy, trained, real)]
        warnings = cut_warning("copying", answers.cut, len(groups))
        if self.recited and not any(row.metric == "extracted" for row in recited):
            warnings.append(
                f"copying: no training row has more than {self.prefix + self.continuation} tokens,"
                " so none could be recited; lower the task's continuation"
            )
        notes = {"trained_on": len(trained), "without_demonstration": len(asked) - len(shown)}
        return Result([*rows, *recited], self._better(), notes, warnings)

    def _better(self) -> dict[str, Better]:
        names = [*(f"copied_{n}" for n in self.ngrams), "longest_copy"]
        found: dict[str, Better] = {"extracted": "lower", f"extracted{HELD_OUT}": None}
        return {**dict.fromkeys(names, "lower"), **{f"{n}{HUMAN}": None for n in names}, **found}

    def _copied(
        self,
        groups: Sequence[PromptGroup],
        sides: Sequence[Sequence[np.ndarray]],
        trained: Prepared,
    ) -> list[Row]:
        """Rows of every prompt whose sample and whose demonstration have the n-grams.

        ``groups`` hold the samples; ``sides`` are these and the demonstrations as tokens.
        """
        copies = Copies([text for side in sides for text in side])
        for shard in trained.shards:
            ends, inner = shard.arrays["ends"], ~shard.is_prompt
            copies.read(shard.arrays["ids"], ends[:-1][inner], ends[1:][inner])
        rows: list[Row] = []
        for number, group in enumerate(groups):
            item = item_id(group, number)
            places = {"": number, HUMAN: len(groups) + number}
            for n in self.ngrams:
                found = {end: copies.found(text, n) for end, text in places.items()}
                for end, (hits, count) in found.items() if all_counted(found) else ():
                    rows.append(Row(f"copied_{n}{end}", item, hits / count, float(count)))
            for end, text in places.items():
                run = float(copies.longest(text))
                row = Row(f"longest_copy{end}", item, run)
                if not end:
                    said = content(group.completions[0])
                    row = replace(row, prompt=content(group.prompt), completion=said)
                rows.append(row)
        return rows

    def _recited(
        self, policy: Policy, trained: Prepared, held_out: Sequence[TokenGroup]
    ) -> Iterator[Row]:
        """Rows of everything long enough: whether each of its tokens is the most probable one."""
        if not self.recited:
            return
        order = np.random.default_rng(policy.seed).permutation(len(trained))
        for end, groups in (("", (trained[int(i)] for i in order)), (HELD_OUT, iter(held_out))):
            given = self._begun(groups)
            for group, [scores] in zip(given, policy.score(given, greedy=True), strict=True):
                whole = scores.greedy is not None and bool(scores.greedy.all())
                yield Row(f"extracted{end}", group.id or str(group.row), float(whole))

    def _begun(self, groups: Iterator[TokenGroup]) -> list[TokenGroup]:
        """The first rows that are long enough, each cut behind ``prefix`` and ``continuation``."""
        found: list[TokenGroup] = []
        for group in groups:
            [body] = group.completions
            if len(body) > self.prefix + self.continuation:
                head = np.concatenate([group.prompt, body[: self.prefix]])
                rest = body[self.prefix : self.prefix + self.continuation]
                cut = replace(group, prompt=head, completions=(rest,), masks=(), truncated=())
                found.append(replace(cut, verdict=NONE))
            if len(found) == self.recited:
                break
        return found


def answered(group: PromptGroup, text: str) -> PromptGroup:
    """The group with a sampled answer as its demonstration."""
    answer = ({"role": "assistant", "content": text},) if group.conversational else text
    return replace(group, completions=(answer,), verdict=DEMONSTRATION)


def bodies(group: TokenGroup) -> np.ndarray:
    """Tokens of the one completion without the token that ends it."""
    [ids] = group.completions
    return ids if group.truncated and group.truncated[0] else ids[:-1]


def all_counted(found: dict[str, tuple[int, int]]) -> bool:
    """Whether every side has n-grams, so that the sides are of the same prompts."""
    return all(count for _, count in found.values())
