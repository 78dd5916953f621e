"""From text to token ids, in one place for every method: BOS once, EOS once, nothing merged away.

Training, sampling and evaluation all use the ids made here, so a prompt is the same tokens
whichever method sees it, and a completion is what the policy would have had to sample after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alignlab.data.group import NONE, Message, PromptGroup, Text, TokenGroup
from alignlab.errors import DataError

VERSION = 1  # part of the fingerprint: raise it when the token stream changes


class Tokenization:
    """A tokenizer with its template and limits, applied to prompt groups.

    *Plain text*: the prompt is encoded without special tokens and preceded by BOS iff the
    tokenizer itself starts a text with BOS; the completion is encoded in the context of its prompt
    and ends in EOS. An empty prompt of a tokenizer without that habit is one BOS (else EOS) token,
    because a first token needs a predictor.

    *Messages*: prompt and completion are cut from the chat template's own rendering; the completion
    ends with the template's end-of-turn token.

    Args:
        tokenizer: a transformers tokenizer.
        max_prompt: longer prompts lose tokens on the left, after BOS; counted in
            ``meta["prompt_cut"]``.
        max_completion: longer completions (EOS counted) are cut on the right and have no EOS.
        template: a chat template as Jinja text or a ``.jinja`` file; None = the tokenizer's own.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_prompt: int | None,
        max_completion: int | None,
        template: str | None = None,
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
        if template is not None and template.endswith(".jinja"):
            template = Path(template).read_text(encoding="utf-8")
        self.template: str | None = template or getattr(tokenizer, "chat_template", None)

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
        prompt: list[Message] = [{"role": "user", "content": "a"}]
        answer: list[Message] = [{"role": "assistant", "content": "b"}]
        head = self._render([prompt], generation=True)[0]
        whole = self._render([prompt + answer], generation=False)[0]
        tail = self._encode([_after(head, whole, "the probe conversation")])[0]
        found = (token for token in tail if token in self.special_ids)
        return next(found, self.tokenizer.eos_token_id)

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
        bare = [PromptGroup(g.prompt, (), NONE, g.id, g.meta) for g in groups]
        return self.groups(bare, rows)

    def groups(
        self, groups: Sequence[PromptGroup], rows: Iterable[int] | None = None
    ) -> list[TokenGroup]:
        """Tokenise many groups in two batched tokenizer calls; rows default to 0, 1, 2, ….

        Raises:
            DataError: messages without a chat template, or a template that renders a prompt
                differently once an answer follows.
        """
        texts = [""] * len(groups)
        tails: list[tuple[str, ...]] = [()] * len(groups)
        for conversational, write in ((False, self._plain), (True, self._chat)):
            members = [i for i, g in enumerate(groups) if g.conversational == conversational]
            written = write([groups[i] for i in members]) if members else []
            for i, (text, tail) in zip(members, written, strict=True):
                texts[i], tails[i] = text, tail
        heads = self._encode(texts)
        joined = [text + c for text, tail in zip(texts, tails, strict=True) for c in tail]
        wholes = iter(self._encode(joined))
        numbers = range(len(groups)) if rows is None else rows
        result = []
        for group, row, head, tail in zip(groups, numbers, heads, tails, strict=True):
            end = self.end_of_turn if group.conversational else self.tokenizer.eos_token_id
            bodies = [self._completion(head, next(wholes), text, end) for text in tail]
            result.append(self._assemble(group, row, head, bodies, end))
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
        content = json.dumps([vocabulary, self.template, special, limits])
        return hashlib.sha256(content.encode()).hexdigest()

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]

    def _plain(self, groups: list[PromptGroup]) -> list[tuple[str, tuple[str, ...]]]:
        written = []
        for group in groups:
            if not all(isinstance(completion, str) for completion in group.completions):
                raise DataError(
                    f"Group {group.id!r} has a text prompt and messages as completion. "
                    "Write both as text or both as messages."
                )
            written.append((str(group.prompt), tuple(map(str, group.completions))))
        return written

    def _chat(self, groups: list[PromptGroup]) -> list[tuple[str, tuple[str, ...]]]:
        prompts = [_messages(group.prompt) for group in groups]
        heads = self._render(prompts, generation=True)
        answered = [
            prompt + _messages(completion)
            for prompt, group in zip(prompts, groups, strict=True)
            for completion in group.completions
        ]
        wholes = iter(self._render(answered, generation=False))
        return [
            (head, tuple(_after(head, next(wholes), f"group {g.id!r}") for _ in g.completions))
            for head, g in zip(heads, groups, strict=True)
        ]

    def _render(self, conversations: list[Any], *, generation: bool) -> list[str]:
        if not conversations:
            return []
        if not self.template:
            raise DataError(
                "The data are messages, but the tokenizer has no chat template. Ways out: a "
                "backbone with a chat template, a template of your own (template=FILE.jinja), or "
                "data as plain text (for files: data.style=text)."
            )
        try:
            return self.tokenizer.apply_chat_template(
                conversations,
                chat_template=self.template,
                add_generation_prompt=generation,
                tokenize=False,
            )
        except Exception as error:  # Jinja templates raise whatever their author chose
            raise DataError(f"The chat template refuses a conversation: {error}") from error

    def _completion(self, head: list[int], whole: list[int], text: str, end: int) -> list[int]:
        """Ids of a completion after its prompt's ids, without the end token.

        Where the tokenizer merges across the seam, the ids of the prompt would differ from those
        the sampler starts from. Then the completion is encoded on its own, so that prompt and
        completion still spell the text.
        """
        ids = whole[len(head) :] if whole[: len(head)] == head else self._alone(head, whole, text)
        if end in ids:  # a template writes the end of turn, and often a line break after it
            last = len(ids) - 1 - ids[::-1].index(end)
            if not self.decode(ids[last + 1 :]).strip():
                ids = ids[:last]
        return ids

    def _alone(self, head: list[int], whole: list[int], text: str) -> list[int]:
        anchor = self._encode(["\n"])[0]  # SentencePiece writes a space before a text's first word
        anchored = self._encode(["\n" + text])[0][len(anchor) :]
        choices = (self._encode([text])[0], anchored)
        wanted = self.decode(whole)
        return next((ids for ids in choices if self.decode(head + ids) == wanted), choices[0])

    def _assemble(
        self, group: PromptGroup, row: int, head: list[int], bodies: list[list[int]], end: int
    ) -> TokenGroup:
        bos = self.tokenizer.bos_token_id
        starts_with_bos = bos is not None and head[:1] == [bos]
        if self.adds_bos and not starts_with_bos:
            head, starts_with_bos = [bos, *head], True
        elif not head:
            head = [self.tokenizer.eos_token_id if bos is None else bos]
        cut = max(0, len(head) - self.max_prompt) if self.max_prompt else 0
        if cut:
            head = [bos, *head[cut + 1 :]] if starts_with_bos else head[cut:]
        limit = self.max_completion
        whole = [[*body, end] for body in bodies]
        truncated = tuple(limit is not None and len(ids) > limit for ids in whole)
        return TokenGroup(
            prompt=np.array(head, dtype=np.int32),
            completions=tuple(np.array(ids[:limit], dtype=np.int32) for ids in whole),
            verdict=group.verdict,
            row=row,
            id=group.id,
            truncated=truncated,
            meta={**group.meta, "prompt_cut": cut} if cut else group.meta,
        )


def _messages(text: Text) -> list[Message]:
    return [{"role": "assistant", "content": text}] if isinstance(text, str) else list(text)


def _after(head: str, whole: str, where: str) -> str:
    if not whole.startswith(head):
        pairs = zip(head, whole, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(whole))
        raise DataError(
            f"The chat template writes the prompt of {where} differently when an answer follows: "
            f"{head[same : same + 40]!r} became {whole[same : same + 40]!r}. What is "
            "sampled would not be what is trained. Use a template whose prompt part does not "
            "depend on the answer."
        )
    return whole[len(head) :]
