"""From text to the rows of an encoder: ``[CLS] prompt [SEP] completion [SEP]``, as it was trained.

The special tokens and their places are those that the tokenizer itself puts around a pair of texts
(around a single one, where there is no prompt). Every completion stands in a row of its own, so a
group's ``prompt`` here is the row's first token alone, and each completion holds all that follows;
its mask marks the completion's text and what the tokenizer writes behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from alignlab.data.group import PromptGroup, Text, TokenGroup
from alignlab.data.wording import content
from alignlab.errors import ConfigError

VERSION = 1  # part of the fingerprint: raise it when the token stream changes


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts before, between and behind one or two texts."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    behind: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Special tokens of a row."""
        return len(self.before) + len(self.between) + len(self.behind)


class TextPairs:
    """A tokenizer that writes prompts and completions as pairs of texts, at most ``limit`` tokens.

    A prompt keeps at most half of the room, its end; the completion has the rest and loses its own
    end. So what a completion becomes does not depend on its siblings. Messages become text: the
    contents, each turn named by its role where the assistant has spoken before.

    Raises:
        ConfigError: the tokenizer puts no token before a text, so there is no [CLS] to read.
    """

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        if not (self.pair.before and self.single.before and self.pair.behind):
            raise ConfigError(
                "The tokenizer of this encoder puts no special tokens around a pair of texts, such"
                " as [CLS] and [SEP]; take the one that the encoder was trained with."
            )
        if limit <= self.pair.tokens + 1:
            raise ConfigError(f"An encoder of {limit} positions is too short for pairs of texts.")

    @cached_property
    def pair(self) -> Frame:
        """Special tokens around two texts."""
        return _frame(self.tokenizer, ("a", "b"))

    @cached_property
    def single(self) -> Frame:
        """Special tokens around one."""
        return _frame(self.tokenizer, ("a",))

    def groups(
        self, groups: Sequence[PromptGroup], rows: Iterable[int] | None = None
    ) -> list[TokenGroup]:
        """Rows of every completion; ``rows`` number the groups, by default 0, 1, 2, …."""
        prompts = [written(group.prompt) for group in groups]
        texts = [written(c) for group in groups for c in group.completions]
        heads, tails = self._ids(prompts), iter(self._ids(texts))
        numbers = range(len(groups)) if rows is None else rows
        return [
            self._group(group, row, head, [next(tails) for _ in group.completions])
            for group, row, head in zip(groups, numbers, heads, strict=True)
        ]

    def fingerprint(self) -> str:
        """Hash of everything that decides the ids: tokenizer, limit, this code."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else json.dumps(self.tokenizer.get_vocab())
        return hashlib.sha256(
            json.dumps(["pairs", VERSION, vocabulary, self.limit]).encode()
        ).hexdigest()

    def _ids(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of texts; what reads like a special token in them is text."""
        if not texts:
            return []
        found = self.tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return [np.array(ids, dtype=np.int32) for ids in found]

    def _group(
        self, group: PromptGroup, row: int, head: np.ndarray, tails: Sequence[np.ndarray]
    ) -> TokenGroup:
        frame = self.pair if len(head) else self.single
        room = self.limit - frame.tokens
        kept = head[len(head) - min(len(head), room // 2) :]
        left = room - len(kept)
        ids = [np.array(part, dtype=np.int32) for part in (frame.before, frame.between)]
        behind = np.array(frame.behind, dtype=np.int32)
        first = np.concatenate((ids[0][1:], kept, ids[1]))
        lost = tuple(max(0, len(tail) - left) for tail in tails)
        completions = tuple(np.concatenate((first, tail[:left], behind)) for tail in tails)
        cuts: dict[str, Any] = (
            {"prompt_cut": len(head) - len(kept)} if len(kept) < len(head) else {}
        )
        if any(lost):
            cuts["completion_cut"] = lost
        return TokenGroup(
            prompt=ids[0][:1],
            completions=completions,
            verdict=group.verdict,
            row=row,
            id=group.id,
            truncated=tuple(tokens > 0 for tokens in lost),
            meta={**group.meta, **cuts} if cuts else group.meta,
            masks=tuple(np.arange(len(c)) >= len(first) for c in completions),
        )


def written(text: Text) -> str:
    """A prompt or completion as plain text: itself, or the contents of its messages.

    Of a conversation in which the assistant has spoken, every turn is named by who said it.
    """
    if isinstance(text, str):
        return text
    if len(text) == 1 or all(message["role"] in ("system", "user") for message in text):
        return "\n".join(content((message,)) for message in text)
    return "\n\n".join(f"{m['role'].capitalize()}: {content((m,))}" for m in text)


def _frame(tokenizer: Any, texts: tuple[str, ...]) -> Frame:
    encoded = tokenizer(*texts)
    ids, owner = encoded["input_ids"], encoded.sequence_ids(0)
    places = [i for i, number in enumerate(owner) if number is not None]
    last = [i for i in places if owner[i] == len(texts) - 1]
    first = [i for i in places if owner[i] == 0]
    between = ids[first[-1] + 1 : last[0]] if len(texts) > 1 else []
    return Frame(tuple(ids[: first[0]]), tuple(between), tuple(ids[last[-1] + 1 :]))
