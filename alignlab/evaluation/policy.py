"""The policy that tasks ask: its samples, and the log-probabilities that it gives to texts.

Of several processes each computes its share of what is asked, and all know the answers; a task runs
in every one of them and asks all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from alignlab.data.group import PromptGroup, TokenGroup
from alignlab.data.pack import group_tokens
from alignlab.data.template import Tokenization
from alignlab.data.thinking import split
from alignlab.engine.dealt import per_completion
from alignlab.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.engine.dealt import Dealt
    from alignlab.models.backbone import Backbone
    from alignlab.models.view import View
    from alignlab.rollout.sampling import Sampling
    from alignlab.tensors import FlatBatch

ARGMAX_ELEMENTS = 1 << 23  # logits held at a time while the most probable token is looked for


@dataclass(frozen=True)
class Answers:
    """Completions of P prompts, n of each, prompt-major."""

    texts: tuple[tuple[str, ...], ...]  # (P,) of n answers, cut at the first stop string
    finished: tuple[tuple[bool, ...], ...]  # ended by itself: end token, or a stop string
    tokens: tuple[tuple[int, ...], ...]  # sampled tokens, also those behind a stop string
    cut: int  # prompts that lost their beginning to the length limit


@dataclass(frozen=True)
class Scores:
    """Log-probabilities (nats) of one completion's tokens, and whether each is the argmax."""

    logps: np.ndarray  # (L,) float64
    greedy: np.ndarray | None  # (L,) bool; None where nobody asked


@dataclass
class Usage:
    """What all tasks together cost."""

    sampled: int = 0
    scored: int = 0
    prompts: int = 0
    completions: int = 0

    def add(self, other: Usage) -> None:
        """Count what was spent elsewhere."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def since(self, before: Usage) -> Usage:
        """What was spent since ``before``."""
        return Usage(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Policy:
    """One view of a loaded backbone; prompts are cut on the left to ``max_prompt`` tokens."""

    dealt: Dealt
    view: str
    max_prompt: int | None
    seed: int
    usage: Usage = field(default_factory=Usage)

    @property
    def backbone(self) -> Backbone:
        """What the view is of."""
        return self.dealt.backbone

    @property
    def positions(self) -> int | None:
        """Most tokens of prompt and completion together; None where the model has no limit."""
        config = self.backbone.model_config.get_text_config()
        limit: int | None = getattr(config, "max_position_embeddings", None)
        return limit if limit is None else limit - self.backbone.config.adapter.virtual_tokens

    def tokenization(self, completion: int | None) -> Tokenization:
        """Tokenization whose prompts leave room for ``completion`` tokens.

        Raises:
            DataError: the model has no such room.
        """
        limits = [self.max_prompt] if self.max_prompt else []
        if self.positions is not None and completion is not None:
            room = self.positions - completion
            if room < 2:
                raise DataError(
                    f"{completion} tokens of completion leave no room for a prompt in the model's"
                    f" {self.positions} positions. Lower max_new_tokens."
                )
            limits.append(room)
        return Tokenization(self.backbone.tokenizer, min(limits, default=None), completion)

    def answer(
        self,
        groups: Sequence[PromptGroup],
        sampling: Sampling,
        samples: int = 1,
        stop: Sequence[str] = (),
    ) -> Answers:
        """Sample ``samples`` completions of every prompt; the draws depend on the seed alone.

        The sampler knows no stop strings: a text is cut at the first one afterwards. Thoughts are
        left out; one that was never closed leaves an empty answer.
        """
        tokenization, workers = self.tokenization(sampling.max_new_tokens), self.dealt.workers
        prompts = tokenization.prompts(groups)
        rollout = self.dealt.sample(self.view, prompts, tokenization, sampling, samples, self.seed)
        ends = np.asarray(rollout.finished, dtype=bool).reshape(-1, samples).tolist()
        lengths = rollout.lengths.reshape(-1, samples).tolist()
        said = [[split(text).answer for text in texts] for texts in rollout.said]
        answers = workers.whole([*zip(said, ends, lengths, strict=True)])
        self.usage.sampled += sum(sum(each) for _, _, each in answers)
        self.usage.prompts += len(groups)
        self.usage.completions += len(groups) * samples
        whole = [[until(text, stop) for text in texts] for texts, _, _ in answers]
        return Answers(
            texts=tuple(tuple(text for text, _ in texts) for texts in whole),
            finished=tuple(
                tuple(end or stopped for end, (_, stopped) in zip(ends, texts, strict=True))
                for (_, ends, _), texts in zip(answers, whole, strict=True)
            ),
            tokens=tuple(tuple(each) for _, _, each in answers),
            cut=sum("prompt_cut" in p.meta for p in prompts),
        )

    def score(self, groups: Sequence[TokenGroup], *, greedy: bool = False) -> list[list[Scores]]:
        """Log-probabilities of every completion of every group, a prompt computed once.

        Raises:
            DataError: a prompt with its longest completion does not fit the model.
        """
        self._check(groups)

        def read(view: View, batch: FlatBatch) -> list[Scores]:
            best: Sequence[np.ndarray | None] = [None] * batch.completions
            if greedy:
                best = per_completion(argmax(view, batch) == batch.target_ids, batch)
            values = per_completion(view.logps(batch).double(), batch)
            return [Scores(x, found) for x, found in zip(values, best, strict=True)]

        out = self.dealt.shared(self.view, groups, read)
        self.usage.scored += sum(map(group_tokens, groups))
        self.usage.completions += sum(len(g.completions) for g in groups)
        return out

    def _check(self, groups: Sequence[TokenGroup]) -> None:
        for group in groups:
            longest = len(group.prompt) + max(map(len, group.completions), default=0)
            if self.positions is not None and longest > self.positions:
                raise DataError(
                    f"Item {group.id or group.row} has {longest} tokens and the model"
                    f" {self.positions} positions. Shorten the text, or lower the task's limits."
                )


def argmax(view: View, batch: FlatBatch) -> Tensor:
    """Most probable token at the place of every target (N,), some rows of logits at a time."""
    import torch

    from alignlab.models.sharding import gathered

    hidden = view.features(batch).at_targets
    head = view.lm_head
    with gathered([part for part in (head.weight, head.bias) if part is not None]):
        rows = max(16, ARGMAX_ELEMENTS // head.weight.shape[0])
        return torch.cat([head.logits(part).argmax(-1) for part in hidden.split(rows)])


def until(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first of the stop strings, and whether there was one."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def bare(group: TokenGroup, end: int) -> TokenGroup:
    """Return the group without the end token that completes each completion.

    Raises:
        DataError: a completion that has no other token.
    """
    cut = tuple(c[:-1] if len(c) and c[-1] == end else c for c in group.completions)
    if any(not len(c) for c in cut):
        raise DataError(f"Item {group.id or group.row} has an empty text to score.")
    return replace(group, completions=cut, masks=())
