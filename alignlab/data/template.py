"""From text to token ids, in one place for every method: BOS once, EOS once, nothing merged away.

Training, sampling and evaluation all use the ids made here, so a prompt is the same tokens
whichever method sees it, and a completion is what the policy would have had to sample after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from alignlab.data.group import NONE, PromptGroup, TokenGroup
from alignlab.data.image_tokens import ImageTokens
from alignlab.data.rendering import ChatTemplate
from alignlab.data.seams import Encoder
from alignlab.data.shown_images import shown
from alignlab.data.turns import Turns, Written, encode_turns, write_chat, write_plain
from alignlab.errors import DataError
from alignlab.images import KEY, images_of

VERSION = 3  # part of the fingerprint: raise it when the token stream changes


_Body = tuple[np.ndarray, "np.ndarray | None"]  # ids without the end token; mask with it


class Tokenization:
    """A tokenizer with its template and limits, applied to prompt groups.

    *Plain text*: the prompt is encoded without special tokens and preceded by BOS iff the
    tokenizer itself starts a text with BOS; the completion is encoded in the context of its prompt
    and ends in EOS. An empty prompt of a tokenizer without that habit is one BOS (else EOS) token,
    because a first token needs a predictor.

    *Messages*: prompt and completion are cut from the chat template's own rendering; the completion
    ends with the template's end-of-turn token. In a completion of several messages, or with
    messages of weight 0, the turns of the assistant that count are found by token and the rest is
    masked; what follows its last message is left out.

    Args:
        tokenizer: a transformers tokenizer.
        max_prompt: longer prompts lose tokens on the left, after BOS; counted in
            ``meta["prompt_cut"]``.
        max_completion: longer completions (EOS counted) are cut on the right and have no EOS;
            ``meta["completion_cut"]`` counts the tokens that each lost.
        template: Jinja text of a chat template; None = the tokenizer's own.
        processor: of transformers, for prompts that show images; None = texts only.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_prompt: int | None,
        max_completion: int | None,
        template: str | None = None,
        processor: Any | None = None,
    ) -> None:
        for name, limit, least in (("prompt", max_prompt, 2), ("completion", max_completion, 1)):
            if limit is not None and limit < least:
                raise DataError(f"max_{name} must be at least {least}, not {limit}.")
        if tokenizer.eos_token_id is None:
            raise DataError(
                "The tokenizer has no EOS token: a completion could never end. Set one."
            )
        self.tokenizer = tokenizer
        self.max_prompt = max_prompt
        self.max_completion = max_completion
        self._arguments = (tokenizer, max_prompt, max_completion, template, processor)
        self._images = None if processor is None else ImageTokens(processor)
        self.chat = ChatTemplate(
            tokenizer,
            template or getattr(tokenizer, "chat_template", None),
            None if self._images is None else self._images.token,
        )
        self._encoder = Encoder(tokenizer)

    def __reduce__(self) -> tuple[type[Tokenization], tuple[Any, ...]]:
        """Another process makes its own, from the same arguments."""
        return type(self), self._arguments

    @property
    def template(self) -> str | None:
        """Text of the chat template, None without one."""
        return self.chat.text

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer's own encoding of a text starts with BOS."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("x")["input_ids"][:1] == [bos]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that only a template or this class may write, never user text."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {index for index, token in added.items() if token.special}
        return frozenset(special | set(self.tokenizer.all_special_ids))

    @cached_property
    def end_of_turn(self) -> int:
        """Id that ends an assistant's message in the chat template, else EOS."""
        text = self.chat.end_text
        return int(
            self.tokenizer.eos_token_id
            if text is None
            else self.tokenizer.convert_tokens_to_ids(text)
        )

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids at which sampling stops: EOS, and the end of a turn where a template is known."""
        eos = int(self.tokenizer.eos_token_id)
        turn = self.end_of_turn if self.template else eos
        return (eos,) if turn == eos else (turn, eos)

    def group(self, group: PromptGroup, row: int) -> TokenGroup:
        """Tokenise one group; ``row`` is its position in the data set."""
        return self.groups([group], [row])[0]

    def prompt(self, group: PromptGroup, row: int) -> TokenGroup:
        """Tokenise the prompt only: what a sampler starts from."""
        return self.prompts([group], [row])[0]

    def prompts(
        self, groups: Sequence[PromptGroup], rows: Iterable[int] | None = None
    ) -> list[TokenGroup]:
        """Tokenise the prompts only, with the same ids as `groups` gives them."""
        return self.groups([replace(g, completions=(), verdict=NONE) for g in groups], rows)

    def groups(
        self, groups: Sequence[PromptGroup], rows: Iterable[int] | None = None
    ) -> list[TokenGroup]:
        """Tokenise many groups in two batched tokenizer calls; rows default to 0, 1, 2, ….

        Raises:
            DataError: messages without a chat template, or a template that renders a prompt
                differently once an answer follows.
        """
        given = groups
        groups = [self._placed(group) for group in groups]
        written: list[Written] = [("", ())] * len(groups)
        for conversational, write in ((False, write_plain), (True, self._chat)):
            members = [i for i, g in enumerate(groups) if g.conversational == conversational]
            for i, one in zip(members, write([groups[i] for i in members]), strict=True):
                written[i] = one
        if self._images is not None:
            pairs = zip(given, written, strict=True)
            written = [self._images.expanded(group, one) for group, one in pairs]
        heads, together = self._encoder.continued(
            [text for text, _ in written],
            [[tail for tail in tails if isinstance(tail, str)] for _, tails in written],
        )
        wholes = iter(together)
        numbers = range(len(groups)) if rows is None else rows
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id  # slow to ask for
        result = []
        for group, row, head, (_, tails) in zip(given, numbers, heads, written, strict=True):
            end = self.end_of_turn if group.conversational else eos
            bodies = [
                self._completion(head, next(wholes), tail, end)
                if isinstance(tail, str)
                else self._turns(tail, end)
                for tail in tails
            ]
            first = self._prompt(head, bos, eos)
            result.append(self._assemble(group, row, first, bodies, end))
        return result

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of the ids without special tokens, spaces exactly as they were."""
        return self.tokenizer.decode(
            list(map(int, ids)), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def fingerprint(self) -> str:
        """Hash of everything that decides the ids: tokenizer, template, limits, this code."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend else json.dumps(self.tokenizer.get_vocab())
        special = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.adds_bos]
        limits = [VERSION, self.max_prompt, self.max_completion]
        templates = [self.chat.text, self.chat.tool_text]
        seen = [] if self._images is None else [self._images.fingerprint()]
        content = json.dumps([vocabulary, templates, special, limits, *seen])
        return hashlib.sha256(content.encode()).hexdigest()

    def _placed(self, group: PromptGroup) -> PromptGroup:
        if self._images is not None:
            return self._images.placed(group)
        if images_of(group.meta):
            raise DataError(
                f"Group {group.id!r} ({group.meta.get('place', 'no place')}) shows images, and "
                "this stage or its backbone reads texts only. Use a vision-language backbone, or "
                "data without images (data.images=null)."
            )
        return group

    def _chat(self, groups: list[PromptGroup]) -> list[Written]:
        return write_chat(self.chat, groups, self.tokenizer.eos_token) if groups else []

    def _completion(self, head: np.ndarray, whole: np.ndarray, text: str, end: int) -> _Body:
        """Ids of a completion after its prompt's ids, without the end token.

        Where the tokenizer merges across the seam, the ids of the prompt would differ from those
        the sampler starts from. Then the completion is encoded on its own, so that prompt and
        completion still spell the text.
        """
        if whole[: len(head)].tobytes() == head.tobytes():
            return self._body(whole[len(head) :], end), None
        encode = self._encoder.continuation(head.tolist(), whole.tolist(), text)
        return self._body(np.array(encode(text), dtype=np.int32), end), None

    def _turns(self, turns: Turns, end: int) -> _Body:
        """Ids and mask of a completion of several turns, without the end token of the last."""
        ids, mask = encode_turns(self._encoder, turns)
        body = self._body(np.array(ids, dtype=np.int32), end)
        return body, np.append(mask[: len(body)], turns.last_counts)

    def _body(self, ids: np.ndarray, end: int) -> np.ndarray:
        ends = np.flatnonzero(ids == end)
        # A template writes the end of turn, and often a line break after it.
        if len(ends) and not self.decode(ids[ends[-1] + 1 :]).strip():
            return ids[: ends[-1]]
        return ids

    def _prompt(self, head: np.ndarray, bos: int | None, eos: int) -> np.ndarray:
        """Ids of a prompt that has BOS where the tokenizer wants it, and is not empty."""
        opened = len(head) and head[0] == bos
        if self.adds_bos and not opened:
            return np.concatenate((np.array([bos], dtype=np.int32), head))
        return head if len(head) else np.array([eos if bos is None else bos], dtype=np.int32)

    def _assemble(
        self, group: PromptGroup, row: int, head: np.ndarray, bodies: list[_Body], end: int
    ) -> TokenGroup:
        cut = max(0, len(head) - self.max_prompt) if self.max_prompt else 0
        if cut and images_of(group.meta):
            raise DataError(
                f"The prompt of group {group.id!r} ({group.meta.get('place', 'no place')}) has "
                f"{len(head)} tokens with its images, and one that shows images is never cut: "
                f"raise max_prompt={self.max_prompt}, or show fewer or smaller images."
            )
        if cut:
            bos = int(head[0]) == self.tokenizer.bos_token_id
            head = np.concatenate((head[:1], head[cut + 1 :])) if bos else head[cut:]
        limit = self.max_completion
        last = np.array([end], dtype=np.int32)
        whole = [np.concatenate((body, last)) for body, _ in bodies]
        masks = tuple(mask if mask is None else mask[:limit] for _, mask in bodies)
        lost = tuple(0 if limit is None else max(0, len(ids) - limit) for ids in whole)
        cuts: dict[str, Any] = {"prompt_cut": cut} if cut else {}
        if any(lost):
            cuts["completion_cut"] = lost
        if images_of(group.meta):
            cuts[KEY] = shown(group)
        return TokenGroup(
            prompt=head,
            completions=tuple(ids[:limit] for ids in whole),
            verdict=group.verdict,
            row=row,
            id=group.id,
            truncated=tuple(tokens > 0 for tokens in lost),
            meta={**group.meta, **cuts} if cuts else group.meta,
            masks=masks if any(mask is not None for mask in masks) else (),
        )
