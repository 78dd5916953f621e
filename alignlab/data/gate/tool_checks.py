"""Checks of tools: schemas that are none, and calls that the declared tools would refuse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alignlab.data.call_text import Call
from alignlab.data.gate.check import RowCheck
from alignlab.data.gate.chunk import Chunk
from alignlab.data.gate.finding import Severity
from alignlab.data.group import PromptGroup
from alignlab.data.tool_schema import declared, fits
from alignlab.errors import DataError


class ToolSchema(RowCheck):
    """Tools whose parameters say nothing that a call could be checked by."""

    severity: Severity = "warning"
    code = "tool_schema"
    message = "A tool's parameters are no JSON Schema: no call of it can be checked"
    advice = "Correct the tools; reward=tool_call_format refuses such prompts."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows with such a tool."""
        for row, group in enumerate(chunk.groups):
            if group.tools and not all(map(_readable, declared(group.tools).values())):
                yield row


class CallFits(RowCheck):
    """Calls of the assistant that its tools do not allow, in rows that declare tools."""

    severity: Severity = "warning"
    code = "call_does_not_fit"
    message = "A tool call names no declared function, or its arguments do not fit the schema"
    advice = "Drop these rows or correct them: a model learns such calls as they stand."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows with such a call among their answers."""
        for row, group in enumerate(chunk.groups):
            if group.tools and not _all_fit(group):
                yield row


def _readable(function: Mapping[str, Any]) -> bool:
    try:
        fits(Call(str(function["name"]), {}), function)
    except DataError:
        return False
    return True


def _all_fit(group: PromptGroup) -> bool:
    functions = declared(group.tools)
    return all(
        call.name in functions
        and (not _readable(functions[call.name]) or fits(call, functions[call.name]))
        for call in _calls(group)
    )


def _calls(group: PromptGroup) -> Iterator[Call]:
    for completion in group.completions:
        for message in () if isinstance(completion, str) else completion:
            for call in message.get("tool_calls") or ():
                function = call.get("function", call)
                yield Call(str(function["name"]), function.get("arguments") or {})
