"""Tools and tool calls in the spellings of OpenAI, Anthropic and ShareGPT, made one spelling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.data.group import Message
from alignlab.errors import DataError, did_you_mean


def tools_of(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the tools of a row as ``{"type": "function", "function": {name, ...}}``.

    Read from ``tools`` (a list, or its JSON as text) or the older ``functions``; each tool as
    OpenAI nests it, bare, or with Anthropic's ``input_schema``. Keys without a value are dropped:
    Arrow and Parquet add every key of one tool to all the others.
    """
    field = "tools" if row.get("tools") else "functions"
    value = row.get(field)
    if not value or (isinstance(value, str) and not value.strip()):
        return ()
    tools = _parsed(f"'{field}'", value)
    if not isinstance(tools, list):
        raise DataError(f"'{field}' must be a list of tools, or its JSON as text.")
    return tuple(_tool(f"'{field}', tool {n}", tool) for n, tool in enumerate(tools, 1))


def _tool(where: str, tool: Any) -> Mapping[str, Any]:
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    inner = inner if isinstance(inner, dict) else {}
    if not isinstance(inner.get("name"), str):
        raise DataError(f"{where}: needs a name; it is a JSON object {{name, parameters}}.")
    inner = _without_nulls({k: v for k, v in inner.items() if k != "type"})
    if "input_schema" in inner:
        inner["parameters"] = inner.pop("input_schema")
    return {"type": "function", "function": inner}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def calls_of(where: str, value: Any) -> list[dict[str, Any]]:
    """Return tool calls ``{"type", "id", "function": {name, arguments}}``, arguments an object.

    ``value`` is a list of calls, one call, or the JSON of either; a call without an id has none
    yet (`link` gives it one).
    """
    parsed = _parsed(where, value)
    calls = parsed if isinstance(parsed, list) else [parsed]
    return [_call(f"{where}, call {n}", call) for n, call in enumerate(calls, 1)]


def _call(where: str, call: Any) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise DataError(f"{where}: needs a name and arguments.")
    arguments = inner.get("arguments", inner.get("parameters", inner.get("input")))
    if isinstance(arguments, str):
        arguments = _parsed(f"{where}, arguments", arguments or "{}")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise DataError(f"{where}: the arguments must be a JSON object, not {arguments!r:.60}.")
    try:
        json.dumps(arguments)
    except (TypeError, ValueError) as error:  # Parquet can hold dates and bytes
        raise DataError(f"{where}: the arguments are no JSON object ({error}).") from error
    made: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        made["id"] = str(call["id"])
    return made | {"function": {"name": inner["name"], "arguments": arguments}}


def _parsed(where: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(f"{where}: this text is not JSON ({error}): {value[:60]!r}.") from error


def link(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages with an id on every call and on every result that can be told.

    Calls without ids get ``call00001`` and so on (nine letters and digits: the strictest template
    asks for that). A result without an id answers the oldest open call.

    Raises:
        DataError: a result with the id of no open call.
    """
    linked: list[Message] = []
    waiting: list[str] = []
    count = 0
    for number, message in enumerate(messages, 1):
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                count += 1
                calls.append({"type": "function", "id": f"call{count:05d}"} | call)
            waiting = [call["id"] for call in calls]
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool" and count and (waiting or "tool_call_id" in message):
            answered = message.get("tool_call_id") or waiting[0]
            if answered not in waiting:
                raise DataError(
                    f"message {number} answers the call {answered!r:.60}; the open calls are "
                    f"{', '.join(waiting) or 'none'}.{did_you_mean(answered, waiting)}"
                )
            waiting.remove(answered)
            message = {**message, "tool_call_id": answered}
        linked.append(message)
    return tuple(linked)
