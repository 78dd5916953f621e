"""Conversations whose tools and calls stand as text, made messages with tools and tool calls.

Hermes, Glaive, ToolACE and others list the tools in the system message and write calls into the
answers. A model's own template writes both in its own way, so they must be told from the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignlab.data.call_text import read
from alignlab.data.formats.calls import link, tools_of
from alignlab.data.group import Message, PromptGroup, Text
from alignlab.data.thinking import CLOSE
from alignlab.errors import DataError

_RESPONSE = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
_JSON = json.JSONDecoder()


def with_parsed_calls(group: PromptGroup) -> PromptGroup:
    """Return the group with its written tools, calls and results as tools, calls and results.

    A system message that lists tools goes, since the template writes its own; a turn of tools is
    what stands between ``<tool_response>`` tags, one message each. Groups of plain text stay.

    Raises:
        DataError: a call that cannot be read; names the message, counted from the prompt's first.
    """
    if isinstance(group.prompt, str):
        return group
    prompt, found = _without_tools(group.prompt)
    if found and group.tools:
        raise DataError("the system message lists tools, and the row has a field of them too.")
    asked = link(_parsed(prompt, len(group.prompt) - len(prompt)))
    completions: list[Text] = []
    for completion in group.completions:
        if isinstance(completion, str):
            completions.append(completion)
            continue
        said = _parsed(completion, len(group.prompt))
        completions.append(link((*asked, *said))[len(asked) :])
    tools = tools_of({"tools": list(found)}) if found else group.tools
    return replace(group, prompt=asked, completions=tuple(completions), tools=tools)


def _without_tools(messages: Sequence[Message]) -> tuple[Sequence[Message], list[Any]]:
    """The messages without a system message that lists tools, and the tools."""
    if not messages or messages[0]["role"] != "system":
        return messages, []
    tools = tools_in(messages[0]["content"])
    return (messages[1:], tools) if tools else (messages, [])


def tools_in(text: str) -> list[Any]:
    """Return every tool that a text lists as JSON: an object, or a list of such.

    A tool has a name and says what it does or takes. The example of a call that Hermes shows has
    neither.
    """
    tools: list[Any] = []
    place = 0
    while (start := _next_bracket(text, place)) >= 0:
        try:
            value, place = _JSON.raw_decode(text, start)
        except ValueError:
            place = start + 1
            continue
        tools += filter(_is_tool, value if isinstance(value, list) else [value])
    return tools


def _next_bracket(text: str, start: int) -> int:
    found = [place for sign in "[{" if (place := text.find(sign, start)) >= 0]
    return min(found, default=-1)


def _is_tool(value: Any) -> bool:
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        return False
    return bool({"description", "parameters"} & inner.keys()) and "arguments" not in inner


def _parsed(messages: Sequence[Message], before: int) -> list[Message]:
    made: list[Message] = []
    for number, message in enumerate(messages, before + 1):
        if message["role"] == "tool":
            made += _results(message)
        elif message["role"] == "assistant" and not message.get("tool_calls"):
            made.append(_called(message, number))
        else:
            made.append(message)
    return made


def _called(message: Message, number: int) -> Message:
    thought, tag, answer = message["content"].rpartition(CLOSE)
    written = read(answer)
    if written.error:
        raise DataError(
            f"message {number} (assistant): a tool call cannot be read: {written.error}. To train "
            "on calls as they are written: data.calls=null."
        )
    if not written.calls:
        return message
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for call in written.calls
    ]
    content = f"{thought}{tag}\n\n{written.content}" if tag else written.content
    return {**message, "content": content, "tool_calls": calls}


def _results(message: Message) -> list[Message]:
    texts = _RESPONSE.findall(message["content"])
    return [{**message, "content": text} for text in texts] or [message]
