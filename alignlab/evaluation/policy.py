"""The policy that tasks ask: its samples, and the log-probabilities that it gives to texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from alignlab.data.group import PromptGroup, TokenGroup
from alignlab.data.pack import flatten, group_tokens, pack
from alignlab.data.template import Tokenization
from alignlab.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alignlab.models.backbone import Backbone
    from alignlab.models.view import View
    from alignlab.rollout.sampling import Sampling

ARGMAX_ELEMENTS = 1 << 23  # logits held at a time while the most probable token is looked for


@dataclass(frozen=True)
class Answers:
    """Completions of P prompts, n of each, prompt-major."""

    texts: tuple[tuple[str, ...], ...]  # (P,) of n texts, cut at the first stop string
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

    backbone: Backbone
    view: str
    device: torch.device | str
    token_budget: int
    max_prompt: int | None
    seed: int
    usage: Usage = field(default_factory=Usage)

    @property
    def positions(self) -> int | None:
        """Most tokens of prompt and completion together; None where the model has no limit."""
        config = self.backbone.model_config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

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

        The sampler knows no stop strings: a text is cut at the first one afterwards.
        """
        from alignlab.rollout.rollout import sample_rollout

        tokenization = self.tokenization(sampling.max_new_tokens)
        prompts = tokenization.prompts(groups)
        with self.backbone.view(self.view) as view:
            rollout = sample_rollout(
                view, prompts, tokenization, sampling, samples, self.seed, step=0
            )
        self.usage.sampled += rollout.tokens
        self.usage.prompts += len(groups)
        self.usage.completions += len(rollout.finished)
        ended = np.asarray(rollout.finished, dtype=bool).reshape(len(groups), samples)
        whole = [[until(text, stop) for text in texts] for texts in rollout.completions]
        return Answers(
            texts=tuple(tuple(text for text, _ in texts) for texts in whole),
            finished=tuple(
                tuple(bool(e) or stopped for e, (_, stopped) in zip(ends, texts, strict=True))
                for ends, texts in zip(ended, whole, strict=True)
            ),
            tokens=tuple(map(tuple, rollout.lengths.reshape(len(groups), samples).tolist())),
            cut=sum("prompt_cut" in p.meta for p in prompts),
        )

    def score(self, groups: Sequence[TokenGroup], *, greedy: bool = False) -> list[list[Scores]]:
        """Log-probabilities of every completion of every group, a prompt computed once.

        Raises:
            DataError: a prompt with its longest completion does not fit the model.
        """
        import torch

        self._check(groups)
        out: list[list[Scores]] = [[] for _ in groups]
        with torch.no_grad(), self.backbone.view(self.view) as view:
            for members in pack([group_tokens(g) for g in groups], self.token_budget):
                batch = flatten([groups[m] for m in members]).to(self.device)
                lengths = batch.lengths.tolist()
                best: tuple[Tensor, ...] = ()
                if greedy:
                    best = (argmax(view, batch) == batch.target_ids).cpu().split(lengths)
                logps = view.logps(batch).double().cpu().split(lengths)
                place = 0
                for member in members:
                    for _ in groups[member].completions:
                        found = best[place].numpy() if greedy else None
                        out[member].append(Scores(logps[place].numpy(), found))
                        place += 1
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


def argmax(view: View, batch: object) -> Tensor:
    """Most probable token at the place of every target (N,), some rows of logits at a time."""
    import torch

    hidden = view.features(batch).at_targets  # type: ignore[arg-type]
    head = view.lm_head
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
