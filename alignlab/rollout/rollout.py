"""Rollouts: the completions a policy sampled, as token groups with their log-probabilities."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.data.group import NONE, TokenGroup
from alignlab.data.thinking import opened, whole
from alignlab.images import images_of
from alignlab.rollout.sampler import Samples, sample
from alignlab.rollout.sampling import Sampling

if TYPE_CHECKING:
    from alignlab.data.template import Tokenization

__all__ = ["Rollout", "occurrences", "prompt_seed", "sample_rollout"]


@dataclass(frozen=True, eq=False)
class Rollout:
    """Sampled completions of G prompts, C in total, in prompt-major order."""

    groups: tuple[TokenGroup, ...]  # (G,) with the sampled completions; truncated = no EOS
    logps: tuple[np.ndarray, ...]  # C × (L,) fp32, nats, of the sampling policy at temperature T
    finished: np.ndarray  # (C,) bool, ended with EOS
    prompts: tuple[str, ...]  # (G,) text that the policy saw
    completions: tuple[tuple[str, ...], ...]  # (G,) texts of each prompt's completions

    @property
    def tokens(self) -> int:
        """Sampled tokens, EOS included."""
        return sum(map(len, self.logps))

    @property
    def lengths(self) -> np.ndarray:
        """Completion tokens (C,) int64, EOS included."""
        return np.array([len(logp) for logp in self.logps], dtype=np.int64)

    @property
    def said(self) -> tuple[tuple[str, ...], ...]:
        """Texts of each prompt's completions (G,), with ``<think>`` where the prompt wrote it."""
        begun = map(opened, self.prompts)
        pairs = zip(begun, self.completions, strict=True)
        return tuple(tuple(whole(text, begun=one) for text in texts) for one, texts in pairs)

    def per_completion(self) -> tuple[list[str], list[str], list[Any]]:
        """Prompts, completions and meta, each a list of length C: what a Reward scores."""
        prompts = [p for p, t in zip(self.prompts, self.completions, strict=True) for _ in t]
        meta = [g.meta for g in self.groups for _ in g.completions]
        return prompts, [text for texts in self.completions for text in texts], meta


def sample_rollout(
    view: Any,
    token_prompts: Sequence[TokenGroup],
    tokenization: Tokenization,
    sampling: Sampling,
    n: int,
    seed: int,
    step: int,
    earlier: Sequence[int] | None = None,
    keep: Path | None = None,
) -> Rollout:
    """Sample ``n`` completions of every prompt from the active ``view``.

    Completions that ``token_prompts`` already have are ignored. The same (seed, step, prompt)
    gives the same samples in whatever batch and order (see `sampler.sample` on rounding).
    ``earlier``: how often each prompt came before in the step, where these are only a part of it;
    ``keep``: a file for what an interruption leaves (`sampler.sample`).
    """
    earlier = occurrences(token_prompts) if earlier is None else earlier
    seeds = [
        prompt_seed(seed, step, group.row, before)
        for group, before in zip(token_prompts, earlier, strict=True)
    ]
    samples = sample(
        view.model,
        [group.prompt for group in token_prompts],
        n=n,
        sampling=sampling,
        eos_id=tokenization.stop_ids,
        seeds=seeds,
        device=next(view.model.parameters()).device,
        keep=keep,
        images=[images_of(group.meta) for group in token_prompts],
    )
    return rollout_of(token_prompts, samples, n, tokenization)


def rollout_of(
    token_prompts: Sequence[TokenGroup], samples: Samples, n: int, tokenization: Tokenization
) -> Rollout:
    """Put ``n`` samples of every prompt together, with their texts."""
    groups = []
    for index, group in enumerate(token_prompts):
        part = slice(index * n, (index + 1) * n)
        groups.append(
            replace(
                group,
                completions=tuple(samples.ids[part]),
                verdict=NONE,
                truncated=tuple((~samples.finished[part]).tolist()),
            )
        )
    prompts = tuple(tokenization.decode(group.prompt) for group in groups)
    return Rollout(
        groups=tuple(groups),
        logps=tuple(samples.logps),
        finished=samples.finished,
        prompts=prompts,
        completions=tuple(
            tuple(continuation(tokenization, group.prompt, text, ids) for ids in group.completions)
            for group, text in zip(groups, prompts, strict=True)
        ),
    )


def occurrences(token_prompts: Sequence[TokenGroup]) -> list[int]:
    """How often each prompt's row came before in the list."""
    seen: Counter[int] = Counter()
    found = []
    for group in token_prompts:
        found.append(seen[group.row])
        seen[group.row] += 1
    return found


def prompt_seed(seed: int, step: int, row: int, occurrence: int = 0) -> int:
    """64-bit seed of a prompt's random streams.

    ``occurrence`` counts the earlier rollouts of the same row in the same step, which must differ.
    """
    text = f"rollout:{seed}:{step}:{row}:{occurrence}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def continuation(
    tokenization: Tokenization, prompt: np.ndarray, prompt_text: str, ids: np.ndarray
) -> str:
    """Text of a completion as it continues its prompt, so that prompt + completion is the text.

    Decoded in context, because SentencePiece drops the space before the first word of a text; on
    its own where the prompt's last character is only completed by the completion's first token.
    """
    whole = tokenization.decode(np.concatenate([prompt, ids]))
    if whole.startswith(prompt_text):
        return whole[len(prompt_text) :]
    return tokenization.decode(ids)
