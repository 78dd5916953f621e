"""Values of a row's fields, checked: every complaint names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignlab.data.group import Message, Text
from alignlab.errors import DataError

Row = Mapping[str, Any]


def text_of(row: Row, field: str) -> Text:
    """Return the text or the messages of a field."""
    value = row.get(field)
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return messages_of(field, value)
    kind = "missing" if value is None else f"a {type(value).__name__}"
    raise DataError(f"'{field}' must be text or a list of messages; it is {kind}.")


def messages_of(field: str, value: Any) -> tuple[Message, ...]:
    """Return checked messages with role and content; other keys are dropped."""
    if not isinstance(value, list) or not value:
        raise DataError(f"'{field}' must be a list of messages with role and content.")
    for number, message in enumerate(value, 1):
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise DataError(f"'{field}', message {number}: needs role and content, both text.")
        if message.get("tool_calls"):
            raise DataError(f"'{field}', message {number}: tool calls are not supported.")
    return tuple({"role": m["role"], "content": m["content"]} for m in value)


def assistant(content: str) -> Message:
    """Return an assistant's message."""
    return {"role": "assistant", "content": content}


def flag_of(row: Row, field: str) -> bool:
    """Return a truth value written as bool, 0/1 or text."""
    value = row.get(field)
    known = {"true": True, "1": True, "false": False, "0": False, "1.0": True, "0.0": False}
    flag = known.get(str(value).strip().lower())
    if flag is None:
        raise DataError(f"'{field}' must be true or false (or 1, 0), not {value!r}.")
    return flag


def number_of(field: str, value: Any) -> float:
    """Return a number, not a bool and not text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"'{field}' must hold numbers, not {value!r}.")
    return float(value)
