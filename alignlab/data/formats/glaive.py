"""Glaive's function calls: a dialogue in one text, its turns marked by names in capitals."""

from __future__ import annotations

import re

from alignlab.data.formats.demonstrations import as_group
from alignlab.data.formats.fields import Row, plain
from alignlab.data.group import Message, PromptGroup
from alignlab.errors import DataError

_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
_ROLE = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_END = "<|endoftext|>"


def glaive(row: Row) -> PromptGroup:
    """Read ``system`` and ``chat``; calls stay as text (``<functioncall>``) in the answers.

    Raises:
        DataError: no turns, or text before the first one.
    """
    system = plain(row, "system").strip().removeprefix("SYSTEM:").strip()
    chat = plain(row, "chat")
    marks = list(_TURN.finditer(chat))
    if not marks or chat[: marks[0].start()].strip():
        raise DataError(
            "'chat' must be turns that open with USER:, ASSISTANT: or FUNCTION RESPONSE:."
        )
    ends = [mark.start() for mark in marks[1:]] + [len(chat)]
    said: list[Message] = [{"role": "system", "content": system}] if system else []
    for mark, end in zip(marks, ends, strict=True):
        text = chat[mark.end() : end].strip().removesuffix(_END).strip()
        said.append({"role": _ROLE[mark[1]], "content": text})
    return as_group(tuple(said))
