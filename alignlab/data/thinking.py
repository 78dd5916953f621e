"""Thoughts before an answer: told from it in a text, and written, dropped or masked in messages.

A thought stands between ``<think>`` and ``</think>`` before the answer, as Qwen 3, DeepSeek R1 and
many others write it, or in a field of its message (``reasoning_content``, ``thinking``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from alignlab.data.group import Message, PromptGroup, Text
from alignlab.errors import DataError

Thinking = Literal["tagged", "field", "dropped"]

OPEN, CLOSE = "<think>", "</think>"
FIELDS = ("reasoning_content", "thinking")  # of a message; formats read others as the first


@dataclass(frozen=True)
class Said:
    """What a model wrote, its thought apart from its answer."""

    thought: str | None  # None: it wrote none
    answer: str
    closed: bool = True  # whether the thought ended, so that an answer could follow


def opened(prompt: str) -> bool:
    """Whether a prompt's own text ends with the opening of a thought, as R1's template does."""
    return prompt.rstrip().endswith(OPEN)


def split(text: str, *, begun: bool = False) -> Said:
    """Tell a thought from the answer behind it.

    The answer is what follows the last ``</think>``, as a chat template keeps it of an earlier
    turn. A thought that is opened and never closed leaves no answer: it was cut off.

    Args:
        text: what a model wrote.
        begun: its prompt has opened the thought already (`opened`).
    """
    before, tag, after = text.rpartition(CLOSE)
    if tag:
        thought = before.lstrip().removeprefix(OPEN).strip("\n")
        return Said(thought, after.lstrip("\n"))
    start = text.lstrip()
    if begun or start.startswith(OPEN):
        return Said(start.removeprefix(OPEN).strip("\n"), "", closed=False)
    return Said(None, text)


def whole(text: str, *, begun: bool = False) -> str:
    """What a model wrote with the tag that its prompt had written for it."""
    return f"{OPEN}\n{text}" if begun and not text.lstrip().startswith(OPEN) else text


def thought_of(message: Message) -> Said:
    """Tell the thought of a message from its content, whichever way it was written.

    Raises:
        DataError: it has two thoughts, one in a field and one in its content.
    """
    said = split(str(message.get("content") or ""))
    stated = [message[field] for field in FIELDS if str(message.get(field) or "").strip()]
    if stated and (said.thought or "").strip():
        raise DataError(f"a message has a thought in a field and another between {OPEN} tags.")
    return Said(stated[0].strip("\n"), said.answer) if stated else said


def with_thinking(group: PromptGroup, how: Thinking | None, *, masked: bool) -> PromptGroup:
    """Return the group with the thoughts of its messages written as ``how`` says.

    Args:
        group: a prompt group; what is plain text stays.
        how: None: as they are; ``tagged``: in the contents, between tags, for templates that read
            no field; ``field``: in a field, for templates that write the tags; ``dropped``: left
            out.
        masked: the thoughts of completions are read and no targets.
    """
    if not group.conversational or not (how or masked):
        return group

    def written(text: Text, answers: bool) -> Text:
        if isinstance(text, str):
            return text
        return tuple(_written(message, how, masked and answers) for message in text)

    return replace(
        group,
        prompt=written(group.prompt, False),
        completions=tuple(written(completion, True) for completion in group.completions),
    )


def _written(message: Message, how: Thinking | None, masked: bool) -> Message:
    if message["role"] != "assistant":
        return message
    said = thought_of(message)
    if said.thought is None:
        return message
    made = message
    if how:
        made = {key: value for key, value in message.items() if key not in FIELDS}
        made["content"] = said.answer
        if how == "tagged" and said.thought.strip():
            made["content"] = f"{OPEN}\n{said.thought}\n{CLOSE}\n\n{said.answer}"
        elif how == "field":
            made[FIELDS[0]] = said.thought
    return {**made, "thought_weight": 0} if masked and how != "dropped" else made


def apart(texts: Sequence[str], begun: Sequence[bool]) -> list[Said]:
    """`split` of several texts."""
    return [split(text, begun=one) for text, one in zip(texts, begun, strict=True)]
