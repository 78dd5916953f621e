"""Tool calls that stand as text in an answer: read in the spellings that models and data have."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\s]+)>\s*(.*?)\s*(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_GLAIVE = re.compile(r"<functioncall>\s*(.*?)\s*(?:<\|endoftext\|>|\Z)", re.DOTALL)
_QUOTED = re.compile(r"(\"arguments\"\s*:\s*)'(.*)'(\s*}\s*)\Z", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_PYTHON_TAG = "<|python_tag|>"
_NAME = re.compile(r"[\w.\- ]+(?=\()")
_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class Call:
    """One call: a function's name and its arguments."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Written:
    """What an answer says beside its calls, the calls, and why one of them cannot be read."""

    content: str
    calls: tuple[Call, ...] = ()
    error: str = ""

    @property
    def tried(self) -> bool:
        """Whether there is a call, readable or not."""
        return bool(self.calls or self.error)


def read(text: str) -> Written:
    """Read the calls of an answer; an answer without any is its own content.

    Spellings: JSON between ``<tool_call>`` tags (Hermes, Qwen), ``<functioncall>`` (Glaive),
    ``[TOOL_CALLS]`` (Mistral), ``<function=name>`` with JSON or parameters (Llama 3.1, Qwen Coder),
    or an answer that is nothing but calls: JSON (Llama 3), or ``[name(argument=value)]`` (ToolACE).
    """
    for mark, spelling in _MARKED.items():
        if mark in text:
            return spelling(text)
    plain = text.strip().removeprefix(_PYTHON_TAG)
    if plain[:1] == "{" or plain[:2] == "[{":
        return _bare(text, plain)
    if plain[:1] == "[" and plain[-1:] == "]" and _NAME.match(plain, 1):
        return _python(text, plain)
    return Written(text)


def spelt(message: Mapping[str, Any]) -> str:
    """Content of a message with its tool calls behind it as text, in the first spelling of `read`.

    What a person or a judge is shown where no chat template writes it.
    """
    functions = [call.get("function", call) for call in message.get("tool_calls") or ()]
    calls = [
        json.dumps({"name": f["name"], "arguments": f["arguments"]}, ensure_ascii=False)
        for f in functions
    ]
    tagged = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
    return "\n".join(part for part in (str(message.get("content") or ""), *tagged) if part)


def _between_tags(text: str) -> Written:
    calls: list[Call] = []
    error = ""
    for found in _TAGGED.finditer(text):
        body = found[1]
        try:
            calls += _functions(body) if body.startswith("<function=") else _calls(_loads(body))
        except ValueError as wrong:
            error = error or str(wrong)
        if not found[0].rstrip().endswith("</tool_call>"):
            error = error or "a <tool_call> is never closed"
    return Written(_TAGGED.sub("", text).strip(), tuple(calls), error)


def _glaive(text: str) -> Written:
    found = _GLAIVE.search(text)
    assert found is not None  # the mark is there
    rest = (text[: found.start()] + text[found.end() :]).strip()
    try:
        return Written(rest, tuple(_calls(_loads(found[1]))))
    except ValueError as plain:
        # Glaive quotes the arguments' JSON as Python would, with single quotes.
        quoted = _QUOTED.search(found[1])
        if quoted is None:
            return Written(rest, (), str(plain))
        body = found[1][: quoted.start()] + quoted[1] + quoted[2].replace("\\'", "'") + quoted[3]
        try:
            return Written(rest, tuple(_calls(_loads(body))))
        except ValueError as error:
            return Written(rest, (), str(error))


def _mistral(text: str) -> Written:
    before, _, body = text.partition(_MISTRAL)
    body = body.strip()
    try:
        if body[:1] in ("[", "{"):
            return Written(before.strip(), tuple(_calls(_loads(body))))
        calls = []
        for part in filter(str.strip, body.split(_MISTRAL)):
            name, brace, arguments = part.partition("{")
            name = name.removesuffix("[ARGS]").strip()
            calls += _calls({"name": name, "arguments": _loads(brace + arguments)})
        return Written(before.strip(), tuple(calls))
    except ValueError as error:
        return Written(before.strip(), (), str(error))


def _named(text: str) -> Written:
    try:
        return Written(_FUNCTION.sub("", text).strip(), tuple(_functions(text)))
    except ValueError as error:
        return Written(_FUNCTION.sub("", text).strip(), (), str(error))


_MARKED: dict[str, Callable[[str], Written]] = {
    "<tool_call>": _between_tags,
    "<functioncall>": _glaive,
    _MISTRAL: _mistral,
    "<function=": _named,
}


def _functions(text: str) -> list[Call]:
    calls = []
    for found in _FUNCTION.finditer(text):
        body = found[2]
        if body.startswith("<parameter="):  # values are text, or JSON where they spell some
            arguments: Any = {name: _value(text) for name, text in _PARAMETER.findall(body)}
        else:
            arguments = _loads(body) if body else {}
        calls += _calls({"name": found[1], "arguments": arguments})
    return calls


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _bare(text: str, plain: str) -> Written:
    """An answer of JSON: calls if each object has a name and arguments, else an answer."""
    try:
        value, end = _JSON.raw_decode(plain)
    except ValueError:
        return Written(text)
    items = value if isinstance(value, list) else [value]
    shaped = all(
        isinstance(item, dict) and "name" in item and {"arguments", "parameters"} & item.keys()
        for item in items
    )
    if not shaped or plain[end:].strip(" ;\n"):
        return Written(text)
    try:
        return Written("", tuple(_calls(value)))
    except ValueError as error:
        return Written("", (), str(error))


def _python(text: str, plain: str) -> Written:
    """Calls as Python writes them, the names with spaces or dots: ``[a b(x=1), c()]``."""
    calls, place = [], 1
    while found := _NAME.match(plain, place):
        end = _closing(plain, found.end())
        arguments = _keywords(plain[found.end() : end]) if end > 0 else None
        if arguments is None:  # brackets have other uses in an answer
            return Written(text)
        calls.append(Call(found[0].strip(), arguments))
        place = end
        while place < len(plain) and plain[place] in ", \n":
            place += 1
    return Written("", tuple(calls)) if plain[place:] == "]" else Written(text)


def _keywords(brackets: str) -> dict[str, Any] | None:
    """Arguments by name of ``(a=1, b="x")``, all of them literals; None where it is no such."""
    try:
        tree = ast.parse(f"f{brackets}", mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args or any(not k.arg for k in tree.keywords):
            return None
        return {str(one.arg): ast.literal_eval(one.value) for one in tree.keywords}
    except (SyntaxError, ValueError):
        return None


def _closing(text: str, start: int) -> int:
    """Place behind the bracket that closes the one at ``start``, quotes minded; -1 without."""
    depth, quote, place = 0, "", start
    while place < len(text):
        sign = text[place]
        if quote:
            place += sign == "\\"
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        else:
            depth += (sign in "([{") - (sign in ")]}")
            if depth == 0:
                return place + 1
        place += 1
    return -1


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"no JSON ({error}): {text[:60]!r}") from None


def _calls(value: Any) -> list[Call]:
    calls = []
    for item in value if isinstance(value, list) else [value]:
        inner = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise ValueError(f"a call needs a name and arguments: {item!r:.60}")
        arguments = inner.get("arguments", inner.get("parameters", {}))
        arguments = _loads(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments must be a JSON object: {arguments!r:.60}")
        calls.append(Call(inner["name"], arguments))
    return calls
