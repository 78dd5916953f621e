"""What makes two texts the same one: their words, whatever the case and the white space.

Splits are cut by it and the gate looks for leaks with it, so a split that alignlab cut never leaks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from alignlab.data.group import Text


def content(text: Text) -> str:
    """Everything that a person or model wrote in a text or in messages, as one text."""
    if isinstance(text, str):
        return text
    parts = []
    for message in text:
        parts.append(str(message.get("content") or ""))
        if message.get("tool_calls"):
            parts.append(json.dumps(message["tool_calls"], ensure_ascii=False, default=str))
    return "\n".join(parts)


def identity(prompt: str, answers: Sequence[str]) -> str:
    """What must not occur in two splits: the prompt, or the text itself where there is none."""
    return prompt if prompt.strip() else "\n".join(answers)


def folded(text: str) -> str:
    """Text without differences of case and white space."""
    return " ".join(text.casefold().split())
