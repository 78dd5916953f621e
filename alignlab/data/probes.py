"""What a chat template does with messages, found out by rendering small conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from alignlab.data.group import Message
from alignlab.data.thinking import CLOSE, FIELDS, OPEN
from alignlab.errors import DataError

PROBE = "Qzyx"  # what no template writes by itself
WEIGHTS = ("weight", "thought_weight")  # what is said to the loss and not to the template
THOUGHT_FIELDS = (*FIELDS, "reasoning")
# (messages, tools or None, whether to open an answer) -> text; raises what the template raises
Apply = Callable[[list[Message], Any, bool], str]


class Probes:
    """A chat template's habits, and messages in the form that it takes."""

    def __init__(self, tokenizer: Any, apply: Apply, image: str | None = None) -> None:
        self.tokenizer = tokenizer
        self._image = image  # token in the place of an image, for models that see
        self._apply = apply
        self._calls: dict[tuple[bool, bool], bool] = {}

    @cached_property
    def end_text(self) -> str | None:
        """How the token that ends an answer is spelt; None if the template writes none.

        It is the last of the special tokens that stand together behind an answer. Where none does,
        the next message's first token is what a sampler would have to stop at (GLM's ``<|user|>``).

        Raises:
            DataError: the template refuses so small a conversation, or writes no answers.
        """
        answered = [_say("user", "a"), _say("assistant", PROBE)]
        for messages in (answered, [*answered, _say("user", "a")]):
            text = self._small(messages, False)
            if PROBE not in text:
                raise DataError(
                    "The chat template does not write what the assistant says, neither as text nor "
                    "as a list of content blocks. Use another one: backbone.template=FILE.jinja."
                )
            found = self._specials_at(text[text.rindex(PROBE) + len(PROBE) :].lstrip())
            if found:
                return found[-1]
        return None

    @cached_property
    def opening(self) -> str:
        """What is written behind a conversation for the assistant to go on from."""
        asked = [_say("user", "a")]
        return self._small(asked, True).removeprefix(self._small(asked, False))

    @cached_property
    def blocks(self) -> bool:
        """Whether contents are lists of blocks: what writes images, or can read nothing else."""
        if self._image is not None and self._writes_images(self._image):
            return True
        for blocks in (False, True):
            message = _as_blocks(_say("user", PROBE)) if blocks else _say("user", PROBE)
            try:
                if PROBE in self._apply([message], None, False):
                    return blocks
            except Exception:  # the form is wrong; what is wrong with both comes with a row
                continue
        return False

    @cached_property
    def arguments_as_text(self) -> bool:
        """Whether the template can write a tool call only when its arguments are JSON text."""
        for content in (None, "", "a"):
            try:
                self._apply(_calling(content), None, False)
            except TypeError:  # the template concatenates them
                return True
            except Exception:  # no tool calls, or other rules: its complaint comes with a row
                continue
        return False

    def _writes_images(self, image: str) -> bool:
        asked = _as_blocks(_say("user", image + PROBE), image)
        with suppress(Exception):  # it takes no such blocks; texts with the token come next
            text = self._apply([asked], None, False)
            return text.count(image) == 1 and PROBE in text
        return False

    @cached_property
    def thought_field(self) -> str | None:
        """Field of an answer in which the template looks for its thought; None if it reads none."""
        for field in THOUGHT_FIELDS:
            answer = {**_say("assistant", "a"), field: PROBE}
            try:
                if PROBE in self._apply([_say("user", "a"), answer], None, False):
                    return field
            except Exception:  # a template with rules of its own: its complaint comes with a row
                continue
        return None

    @cached_property
    def doubles_tags(self) -> bool:
        """Whether the template writes tags of its own around those in an answer's content."""
        answer = _say("assistant", f"{OPEN}\n{PROBE}\n{CLOSE}\n\na")
        try:
            return self._apply([_say("user", "a"), answer], None, False).count(CLOSE) > 1
        except Exception:  # as above
            return False

    def writes_call(self, message: Message, tools: Any) -> bool:
        """Whether the template writes the tool calls of such a message: with or without content."""
        filled = bool(message.get("content"))
        key = filled, bool(tools)
        if key not in self._calls:
            self._calls[key] = True  # a template that refuses them has a complaint of its own
            for content in ("a",) if filled else (None, ""):
                try:
                    text = self._apply(self.clean(_calling(content)), tools, False)
                except Exception:  # such a template needs a content, or has rules about calls
                    continue
                self._calls[key] &= PROBE in text
        return self._calls[key]

    def clean(self, messages: Sequence[Message]) -> list[Message]:
        """Messages as the template takes them: no None, no weight, contents and calls in its form.

        The OpenAI form has a call's arguments as JSON text, and most templates write them as JSON
        themselves: text would come out quoted twice. A thought stands in the field that it reads.
        """
        kept = []
        for message in messages:
            plain = {k: v for k, v in message.items() if v is not None and k not in WEIGHTS}
            for field in FIELDS:
                if field in plain and self.thought_field not in (None, field):
                    plain.setdefault(self.thought_field, plain.pop(field))
            if self.blocks and isinstance(plain.get("content"), str):
                plain = _as_blocks(plain, self._image)
            if plain.get("tool_calls"):
                plain["tool_calls"] = [self._call(call) for call in plain["tool_calls"]]
            kept.append(plain)
        return kept

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        inner = call.get("function")
        function = dict(inner if isinstance(inner, Mapping) else call)
        arguments = function.get("arguments")
        if isinstance(arguments, str) and not self.arguments_as_text:
            function["arguments"] = _object(arguments)
        elif isinstance(arguments, Mapping) and self.arguments_as_text:
            function["arguments"] = json.dumps(dict(arguments), ensure_ascii=False)
        return {**call, "function": function} if isinstance(inner, Mapping) else function

    def _small(self, messages: list[Message], generation: bool) -> str:
        try:
            return self._apply(self.clean(messages), None, generation)
        except Exception as error:  # Jinja templates raise whatever their author chose
            raise DataError(
                f"The chat template refuses a question with its answer: {error}. Use another one: "
                "backbone.template=FILE.jinja."
            ) from error

    def _specials_at(self, text: str) -> list[str]:
        """Special tokens that ``text`` starts with, one after the other."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        names = {str(token) for token in added if token.special}
        known = sorted(names | set(self.tokenizer.all_special_tokens), key=len, reverse=True)
        found: list[str] = []
        while here := next((name for name in known if text.startswith(name)), ""):
            found.append(here)
            text = text[len(here) :]
        return found


def _say(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _as_blocks(message: Message, image: str | None = None) -> Message:
    first, *rest = message["content"].split(image) if image else [message["content"]]
    blocks = [{"type": "text", "text": first}] if first or not rest else []
    for text in rest:
        blocks += [{"type": "image"}, *([{"type": "text", "text": text}] if text else [])]
    return {**message, "content": blocks}


def _calling(content: str | None) -> list[Message]:
    """Messages with a tool call to look for."""
    call = {"type": "function", "function": {"name": PROBE, "arguments": {"a": 1}}}
    answer: Message = {"role": "assistant", "content": content, "tool_calls": [call]}
    return [_say("user", "a"), {k: v for k, v in answer.items() if v is not None}]


def _object(text: str) -> Any:
    """The JSON object that ``text`` spells, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text
