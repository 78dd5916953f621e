"""What the checks of the gate look at: a chunk of rows with its arrays, and facts that stay."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from alignlab.data.gate.finding import Need
from alignlab.data.gate.limits import Limits
from alignlab.data.group import PromptGroup, Text, TokenGroup
from alignlab.data.wording import content
from alignlab.images import identity, images_of

REPEATED_PROMPT = 20  # characters from which a completion that begins with its prompt repeats it

HeldOut = Mapping[str, Iterable[PromptGroup]]  # split -> groups; gone through more than once


@dataclass(frozen=True)
class Flat:
    """Token sequences end to end, and the row of the chunk that each belongs to."""

    ids: np.ndarray  # (N,) int32
    lengths: np.ndarray  # (S,) tokens of each sequence
    owner: np.ndarray  # (S,) row of the chunk, ascending

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray], owner: Sequence[int]) -> Flat:
        """Lay ``sequences`` end to end."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        ids = np.concatenate(sequences) if sequences else np.zeros(0, np.int32)
        return cls(ids, lengths, np.asarray(owner, dtype=np.int64))

    @cached_property
    def ends(self) -> np.ndarray:
        """Index after the last token of each sequence (S,)."""
        return np.cumsum(self.lengths)

    @cached_property
    def starts(self) -> np.ndarray:
        """Index of the first token of each sequence (S,)."""
        return self.ends - self.lengths

    def sequence_of(self, index: np.ndarray) -> np.ndarray:
        """Sequence that each token index lies in."""
        return np.searchsorted(self.ends, index, side="right")

    def count(self, hit: np.ndarray) -> np.ndarray:
        """Tokens of each sequence (S,) for which ``hit`` (N,) holds."""
        found = np.flatnonzero(hit)
        return np.bincount(self.sequence_of(found), minlength=len(self.lengths))

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """Rows of the sequences that ``chosen`` (S,) names, each once."""
        return np.unique(self.owner[chosen])

    @cached_property
    def last(self) -> np.ndarray:
        """Last token of each sequence (S,), -1 for an empty one."""
        if not len(self.ids):
            return np.full(len(self.lengths), -1)
        return np.where(self.lengths > 0, self.ids[np.maximum(self.ends - 1, 0)], -1)


@dataclass(frozen=True)
class Facts:
    """What holds for all chunks: the tokenizer, what the method needs, limits, other splits."""

    tokenizer: Any
    need: Need
    held_out: HeldOut
    limits: Limits
    sampled: bool  # completions come from a policy: short or cut ones are its doing
    vocabulary: int  # ids that the model knows

    @cached_property
    def bos(self) -> int | None:
        """Id of BOS."""
        return None if self.tokenizer.bos_token_id is None else int(self.tokenizer.bos_token_id)

    @cached_property
    def eos(self) -> int:
        """Id of EOS."""
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer's own encoding of a text starts with BOS."""
        return self.bos is not None and self.tokenizer("x")["input_ids"][:1] == [self.bos]

    @cached_property
    def special(self) -> np.ndarray:
        """Ids of special tokens, ascending: what only a template may write."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        ids = {index for index, token in added.items() if token.special}
        return np.array(sorted(ids | set(self.tokenizer.all_special_ids)), dtype=np.int64)

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """Special tokens as text, without those too short to be told from text."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        known = {str(t) for t in added if t.special} | set(self.tokenizer.all_special_tokens)
        return tuple(sorted(mark for mark in known if len(mark) > 2))


class Chunk:
    """Groups as text and as tokens, in the same order, with what several checks compute of them.

    ``start`` is the number of rows that the gate saw before.
    """

    def __init__(
        self, groups: Sequence[PromptGroup], tokens: Sequence[TokenGroup], start: int
    ) -> None:
        if len(groups) != len(tokens):
            raise ValueError(f"{len(groups)} groups but {len(tokens)} token groups.")
        if any(
            len(g.completions) != len(t.completions) for g, t in zip(groups, tokens, strict=True)
        ):
            raise ValueError("A group and its tokens have different numbers of completions.")
        self.groups, self.tokens, self.start = groups, tokens, start

    @cached_property
    def prompts(self) -> Flat:
        """Tokens of the prompts."""
        return Flat.of([t.prompt for t in self.tokens], range(len(self.tokens)))

    @cached_property
    def completions(self) -> Flat:
        """Tokens of all completions."""
        owner = [row for row, t in enumerate(self.tokens) for _ in t.completions]
        return Flat.of([c for t in self.tokens for c in t.completions], owner)

    @cached_property
    def truncated(self) -> np.ndarray:
        """Whether each completion of `completions` was cut on the right."""
        flags = [f for t in self.tokens for f in t.truncated or (False,) * len(t.completions)]
        return np.array(flags, dtype=bool)

    @cached_property
    def cut_tokens(self) -> np.ndarray:
        """Tokens that each row lost, as its ``prompt_cut`` and ``completion_cut`` say (R,)."""
        lost = np.zeros(len(self.tokens), dtype=np.int64)
        for row, t in enumerate(self.tokens):
            if "prompt_cut" in t.meta or "completion_cut" in t.meta:
                lost[row] = int(t.meta.get("prompt_cut", 0)) + sum(t.meta.get("completion_cut", ()))
        return lost

    @cached_property
    def kept_tokens(self) -> np.ndarray:
        """Tokens of each row, prompt and all completions (R,)."""
        flat = self.completions
        own = np.bincount(flat.owner, weights=flat.lengths, minlength=len(self.tokens))
        return self.prompts.lengths + own.astype(np.int64)

    @cached_property
    def conversational(self) -> np.ndarray:
        """Whether each row is messages."""
        return np.array([g.conversational for g in self.groups], dtype=bool)

    @cached_property
    def prompt_texts(self) -> list[str]:
        """The prompt of each row as one text."""
        return [content(group.prompt) for group in self.groups]

    @cached_property
    def answer_texts(self) -> list[list[str]]:
        """The completions of each row as texts."""
        return [[content(c) for c in group.completions] for group in self.groups]

    @cached_property
    def repeats(self) -> list[list[bool]]:
        """Whether each completion of each row begins with the prompt; [] for a short one."""
        return [_repeats(group.prompt, group.completions) for group in self.groups]

    @cached_property
    def prompt_keys(self) -> np.ndarray:
        """Hash of the tokens of each prompt, and of the images that it shows (R,) uint64."""
        keys = keys_of([t.prompt.data for t in self.tokens])
        shown = ["".join(map(identity, images_of(t.meta))).encode() for t in self.tokens]
        return mixed(keys, keys_of(shown)) if any(shown) else keys

    @cached_property
    def completion_keys(self) -> np.ndarray:
        """Hash of the tokens of each completion of `completions` (S,) uint64."""
        return keys_of([c.data for t in self.tokens for c in t.completions])

    @cached_property
    def first(self) -> np.ndarray:
        """Index in `completions` of the first completion of each row, and the end (R + 1,)."""
        counts = [len(t.completions) for t in self.tokens]
        return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def _repeats(prompt: Text, completions: Sequence[Text]) -> list[bool]:
    if isinstance(prompt, str):
        if len(prompt) < REPEATED_PROMPT:
            return []
        return [isinstance(c, str) and c.startswith(prompt) for c in completions]
    size = len(prompt)
    return [not isinstance(c, str) and len(c) > size and c[:size] == prompt for c in completions]


def keys_of(values: Sequence[bytes | memoryview]) -> np.ndarray:
    """Hashes of 8 bytes, the same in every process (N,) uint64."""
    blake = hashlib.blake2b
    digest = b"".join([blake(value, digest_size=8).digest() for value in values])
    return np.frombuffer(digest, dtype=np.uint64)


def mixed(*keys: np.ndarray) -> np.ndarray:
    """One key per position of several key arrays; their order counts."""
    result = np.full(len(keys[0]), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for key in keys:
        result = (result ^ key) * np.uint64(0xBF58476D1CE4E5B9)
        result ^= result >> np.uint64(29)
    return result
