"""Conversations as text: a tokenizer's chat template, applied with tools, and its own marks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from alignlab.data.group import Message
from alignlab.data.probes import Probes
from alignlab.data.thinking import CLOSE, OPEN, thought_of
from alignlab.errors import DataError

# A template that writes today's date would make other tokens tomorrow. This is the date that the
# templates of Llama 3 write themselves where no clock is given.
NOW = datetime(2024, 7, 26)
_CLOCK = re.compile(r"strftime_now\(\s*(['\"])(?P<format>.*?)\1\s*\)")
_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
NO_TEMPLATE = (
    "The data are messages, but the tokenizer has no chat template. Ways out: "
    "backbone.template=dialogue (role names as plain text, for any tokenizer), "
    "backbone.template=chatml (for a tokenizer with <|im_start|> and <|im_end|>), either with "
    "tools and thoughts (dialogue_tools, chatml_tools), "
    "backbone.template=FILE.jinja (a template of your own), a backbone with a chat template, or "
    "the data as plain text (data.style=text)."
)


@dataclass(frozen=True)
class Conversation:
    """Messages with the tools that they may call; ``where`` names them in an error."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    where: str = "a conversation"

    def until(self, end: int) -> Conversation:
        """Return the conversation of the first ``end`` messages."""
        return Conversation(self.messages[:end], self.tools, self.where)


class ChatTemplate:
    """The text of a chat template and what it makes of conversations.

    Args:
        tokenizer: a transformers tokenizer.
        text: Jinja text, the named texts of a tokenizer that has several, or None.
        image: token in the place of an image, for models that see.
    """

    def __init__(
        self, tokenizer: Any, text: str | Mapping[str, str] | None, image: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        named = {"default": text} if isinstance(text, str) else dict(text or {})
        if named and "default" not in named:
            raise DataError(
                f"The tokenizer has chat templates {', '.join(named)} and none called 'default'. "
                "Name one of your own: backbone.template=FILE.jinja."
            )
        self.text = _fixed_clock(named["default"]) if named else None
        self.tool_text = _fixed_clock(named["tool_use"]) if "tool_use" in named else self.text
        self._probes = Probes(tokenizer, self._apply_one, image)

    @cached_property
    def marks(self) -> bool:
        """Whether the template says itself, with ``{% generation %}``, what the assistant wrote."""
        return all(_MARKS.search(text) for text in (self.text, self.tool_text) if text)

    @property
    def end_text(self) -> str | None:
        """How the token that ends an answer is spelt; None if the template writes none."""
        if not self.text:
            raise DataError(NO_TEMPLATE)
        return self._probes.end_text

    @property
    def opening(self) -> str:
        """What is written behind a conversation for the assistant to go on from."""
        return self._probes.opening

    def render(self, conversations: Sequence[Conversation], *, generation: bool) -> list[str]:
        """Write conversations as text, with the opening of an answer if ``generation``.

        Raises:
            DataError: there is no template, or it refuses a conversation.
        """
        if conversations and not self.text:
            raise DataError(NO_TEMPLATE)
        for conversation in conversations:
            self._require_calls(conversation)
        batches: dict[str, list[int]] = {}
        for index, conversation in enumerate(conversations):
            key = json.dumps(list(conversation.tools)) if conversation.tools else ""
            batches.setdefault(key, []).append(index)
        texts = [""] * len(conversations)
        for indices in batches.values():
            members = [conversations[i] for i in indices]
            for i, text in zip(indices, self._batch(members, generation), strict=True):
                texts[i] = text
        return texts

    def marked(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """Write a conversation; return the text and the characters that the template marks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template  # its annotation forgets the marks
        texts, marks = render(
            conversations=[self._probes.clean(conversation.messages)],
            tools=list(conversation.tools) or None,
            chat_template=self.tool_text if conversation.tools else self.text,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return texts[0], [(start, end) for start, end in marks[0]]

    def require_thought(self, message: Message, written: str, where: str) -> None:
        """Refuse an answer whose thought the template left out of what it wrote, or wrote doubly.

        Raises:
            DataError: names the conversation and the ways out.
        """
        thought = (thought_of(message).thought or "").strip()
        if CLOSE in str(message.get("content")) and self._probes.doubles_tags:
            raise DataError(
                f"The chat template writes {OPEN} tags itself, and so does the last answer of "
                f"{where} in its content: it would be trained with an empty thought before its "
                "own. Give thoughts to the template in their field: data.thinking=field."
            )
        if thought and thought not in written:
            reads = self._probes.thought_field
            why = f"reads them in '{reads}' of some answers" if reads else "reads no field of them"
            raise DataError(
                f"The chat template leaves out the thought of the last answer of {where} (it {why})"
                ", and an answer without it would be trained. Ways out: write thoughts into the "
                "contents (data.thinking=tagged), leave them out (data.thinking=dropped), or a "
                "template that writes them (backbone.template=FILE.jinja, or chatml_tools and "
                "dialogue_tools, which alignlab brings)."
            )

    def _require_calls(self, conversation: Conversation) -> None:
        tools = list(conversation.tools) or None
        for message in conversation.messages:
            if message.get("tool_calls") and not self._probes.writes_call(message, tools):
                raise DataError(
                    f"The chat template leaves out tool calls, and {conversation.where} has some: "
                    "an empty answer would be trained in their place. Use a template that writes "
                    "them (backbone.template=FILE.jinja, chatml_tools or dialogue_tools), or data "
                    "with the calls as text."
                )

    def _batch(self, members: Sequence[Conversation], generation: bool) -> list[str]:
        tools = list(members[0].tools) or None
        try:
            messages = [self._probes.clean(member.messages) for member in members]
            return self._apply(messages, tools, generation)
        except Exception as error:  # Jinja templates raise whatever their author chose
            if len(members) == 1:
                raise DataError(f"The chat template refuses {members[0].where}: {error}") from error
        return [text for member in members for text in self._batch([member], generation)]

    def _apply_one(self, messages: list[Message], tools: Any, generation: bool) -> str:
        return self._apply([messages], tools, generation)[0]

    def _apply(self, messages: Any, tools: Any, generation: bool) -> list[str]:
        return self.tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=self.tool_text if tools else self.text,
            add_generation_prompt=generation,
            tokenize=False,
        )


def common_prefix(one: str, other: str) -> int:
    """Characters that two texts start with alike."""
    if one.startswith(other):
        return len(other)
    low, high = 0, min(len(one), len(other))
    while low < high:  # comparing slices is fast, comparing characters one by one is not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def after(head: str, whole: str, where: str) -> str:
    """Return what follows the rendering ``head`` in ``whole``.

    Raises:
        DataError: ``whole`` does not start with it.
    """
    if not whole.startswith(head):
        same = common_prefix(whole, head)
        thinks = "think" in head[max(0, same - 8) :]
        hint = (
            " This template opens a thought, and the answers have none: write it into their "
            "contents as <think>…</think> (from a field: data.thinking=tagged), or use a template "
            "that opens none (often a copy that starts with "
            "{%- set enable_thinking = false -%})."
            if thinks
            else ""
        )
        raise DataError(
            f"The chat template writes the prompt of {where} differently when an answer follows: "
            f"{head[same : same + 40]!r} became {whole[same : same + 40]!r}. What is "
            "sampled would not be what is trained. Use a template whose prompt part does not "
            "depend on the answer: a training version, where TRL has one "
            "(backbone.template=training), or one of your own (backbone.template=FILE.jinja). "
            "Where a completion has several turns, training on last answers only may do "
            f"(data.turns=last).{hint}"
        )
    return whole[len(head) :]


def _fixed_clock(text: str) -> str:
    return _CLOCK.sub(lambda found: repr(NOW.strftime(found["format"])), text)
