"""Messages in the spellings of OpenAI, ShareGPT and Anthropic, made one spelling, and their order.

A message becomes ``{"role": system | user | assistant | tool, "content": text}`` and may have
``tool_calls``, ``tool_call_id``, ``name``, ``weight`` (0 or 1), the thoughts that some templates
show (``reasoning_content``, ``thinking``), and ``thought_weight`` (0 or 1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from alignlab.data.formats.calls import calls_of, link
from alignlab.data.formats.spelling import slip_of
from alignlab.data.group import Message, PromptGroup
from alignlab.errors import DataError, did_you_mean

_SPELLINGS = {
    "system": "system developer",
    "user": "user human prompter",
    "assistant": "assistant gpt chatgpt bot model bing bard ai claude",
    "tool": "tool function observation function_response tool_response ipython",
    "call": "function_call tool_call",
}
ROLES = {spelling: role for role, names in _SPELLINGS.items() for spelling in names.split()}
_KEPT = ("name", "tool_call_id", "reasoning_content", "thinking")
_KEYS = (
    *(*_KEPT, "role", "content", "from", "value", "weight", "train", "loss", "thought_weight"),
    *("tool_calls", "function_call", "refusal", "reasoning"),
)
_THOUGHT = "thought_weight"
_PLAIN = {"role", "content"}
_TEXT_PARTS = ("text", "input_text", "output_text")
# Data of Hermes, Mistral and others write a call as text of the assistant.
_CALL_AS_TEXT = re.compile(r"<\|?(?:tool_?call|function)|\[TOOL_CALLS\]|<functioncall>", re.I)


def is_message(value: Any) -> bool:
    """Whether a value is one message: an object with role and content, or with from and value."""
    return isinstance(value, dict) and ("role" in value or "from" in value)


# OpenAI writes examples of a conversation as system messages with these names.
_EXAMPLES = {"example_user": "user", "example_assistant": "assistant"}


def messages_of(field: str, value: Any) -> tuple[Message, ...]:
    """Return the messages of a field in one spelling, their tool calls linked to the results.

    Raises:
        DataError: not messages, or a message that cannot be read; names field and message.
    """
    value = [value] if is_message(value) else value
    if not isinstance(value, list) or not value:
        raise DataError(f"'{field}' must be a list of messages with role and content.")
    made: list[Message] = []
    calls = False
    for number, message in enumerate(value, 1):
        if (
            isinstance(message, dict)
            and message.keys() == _PLAIN
            and isinstance(message["content"], str)
            and message["role"] in ("user", "assistant", "system")
        ):
            made.append({"role": message["role"], "content": message["content"]})
        else:
            read = _message(f"'{field}', message {number}", message)
            calls = calls or any(m["role"] == "tool" or "tool_calls" in m for m in read)
            made += read
    try:
        return link(made) if calls else tuple(made)
    except DataError as error:
        raise DataError(f"'{field}': {error}") from error


def _message(where: str, message: Any) -> list[Message]:
    if not isinstance(message, dict):
        raise DataError(f"{where}: needs role and content, both text.")
    given = {key: value for key, value in message.items() if value is not None}
    complaint = _key_complaint(tuple(given))
    if complaint:
        raise DataError(f"{where}: {complaint}")
    role = _role(where, given)
    content = given.get("content", given.get("value"))
    if role == "call":
        calls = calls_of(where, content)
        return [{"role": "assistant", "content": "", "tool_calls": calls, **_weight(where, given)}]
    made: Message = {"role": role, "content": "", **_kept(where, given)}
    if role == "assistant":
        made |= _weight(where, given)
        asked = given.get("tool_calls") or given.get("function_call")
        if asked:
            made["tool_calls"] = calls_of(where, asked)
    elif given.get("weight"):
        raise DataError(f"{where}: only messages of the assistant have a weight, not {role}'s.")
    if isinstance(content, list):
        return _blocks(where, made, content)
    if role == "tool" and isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False, default=str)
    made["content"] = _content(where, made, given, content)
    return [made]


def _kept(where: str, given: dict[str, Any]) -> dict[str, str]:
    """What a template may show beside the content; ``reasoning`` is OpenRouter's and vLLM's."""
    if isinstance(given.get("reasoning"), str):
        given = {"reasoning_content": given["reasoning"], **given}
    for key in _KEPT:
        if not isinstance(given.get(key, ""), str):
            raise DataError(f"{where}: '{key}' must be text, not {given[key]!r:.60}.")
    return {key: given[key] for key in _KEPT if key in given}


def _content(where: str, made: Message, given: dict[str, Any], content: Any) -> str:
    if isinstance(content, str):
        return content
    if content is None and made.get("tool_calls"):
        return ""
    if content is None and isinstance(given.get("refusal"), str):
        return str(given["refusal"])
    if content is None:
        raise DataError(
            f"{where}: needs role and content, both text; content is missing. Only a message with "
            "tool_calls may have none."
        )
    raise DataError(f"{where}: needs role and content, both text; content is {content!r:.60}.")


@lru_cache(maxsize=1024)
def _key_complaint(keys: tuple[str, ...]) -> str:
    """What is wrong with the keys of a message: a misspelt one would be ignored silently."""
    if "audio" in keys:
        return "audio is not supported; alignlab trains on text."
    slips = {key: slip_of(key, [known for known in _KEYS if known not in keys]) for key in keys}
    odd = next((key for key, right in slips.items() if right and key not in _KEYS), "")
    return f"the key '{odd}' is unknown. Did you mean '{slips[odd]}'?" if odd else ""


def _role(where: str, message: dict[str, Any]) -> str:
    key = "role" if "role" in message else "from"
    spelling = message.get(key)
    if not isinstance(spelling, str):
        raise DataError(f"{where}: needs role and content, both text (or from and value).")
    role = ROLES.get(spelling.strip().lower())
    if role is None:
        known = f"{did_you_mean(spelling.lower(), ROLES)} Known: {', '.join(ROLES)}."
        raise DataError(f"{where}: the {key} '{spelling:.40}' is unknown.{known}")
    return _EXAMPLES.get(str(message.get("name")), role) if role == "system" else role


def _weight(where: str, message: dict[str, Any]) -> dict[str, int]:
    """``weight`` as OpenAI writes it (0 or 1), or a bool ``train`` or ``loss``; absent means 1.

    ``thought_weight`` is the same for the thought alone.
    """
    made: dict[str, int] = {}
    for name, keys in (("weight", ("weight", "train", "loss")), (_THOUGHT, (_THOUGHT,))):
        given = [key for key in keys if key in message]
        if not given:
            continue
        value = message[given[0]]
        if value not in (0, 1) or isinstance(value, str) or len(given) > 1:
            keys_said = " and ".join(given)
            raise DataError(f"{where}: '{keys_said}' must be one 0 or 1, not {value!r:.60}.")
        made[name] = int(value)
    return made


def _blocks(where: str, made: Message, blocks: Sequence[Any]) -> list[Message]:
    """Read content that is a list: texts, and Anthropic's thinking, tool_use and tool_result."""
    results: list[Message] = []
    texts: list[str] = []
    for number, block in enumerate(blocks, 1):
        kind = block.get("type") if isinstance(block, dict) else None
        place = f"{where}, content part {number}"
        if kind in _TEXT_PARTS and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif isinstance(block, str):
            texts.append(block)
        elif kind == "thinking" and made["role"] == "assistant":
            made["reasoning_content"] = made.get("reasoning_content", "") + str(block["thinking"])
        elif kind == "tool_use" and made["role"] == "assistant":
            made.setdefault("tool_calls", []).extend(calls_of(place, block))
        elif kind == "tool_result" and made["role"] == "user":
            inner: Message = {"role": "tool", "content": ""}
            if block.get("tool_use_id"):
                inner["tool_call_id"] = block["tool_use_id"]
            said = block.get("content") or ""
            results += _blocks(place, inner, said if isinstance(said, list) else [said])
        else:
            raise DataError(
                f"{place} is {kind!r:.60}: alignlab trains on text, parts must be "
                '{"type": "text", "text": ...} (and images, where data.images says so).'
            )
    made["content"] = "".join(texts)
    if results and not texts:
        return results
    return [*results, made]


def check_order(group: PromptGroup, *, transcript: bool = False) -> None:
    """Refuse conversations that a chat template would write wrongly, or not at all.

    A ``transcript`` is written without a template and may have a system message anywhere.

    Raises:
        DataError: a system message after the first, an assistant that speaks first, a tool's
            result without a call, an empty turn; names the message, counted from the prompt's
            first.
    """
    if isinstance(group.prompt, str):
        return
    _check_turns(group.prompt, transcript)
    for completion in group.completions:
        if isinstance(completion, tuple):
            _check_turns((*group.prompt, *completion), transcript, start=len(group.prompt))


def _check_turns(messages: Sequence[Message], transcript: bool, start: int = 0) -> None:
    before = messages[start - 1] if start else None
    for number in range(start, len(messages)):
        message, last = messages[number], number == len(messages) - 1
        role, place = message["role"], f"message {number + 1} ({message['role']})"
        if role == "system" and number and not transcript:
            raise DataError(
                f"{place}: a system message may only be the first one, since chat templates leave "
                "others out or refuse them. To train on texts: data.style=text."
            )
        if role == "assistant" and (before is None or (number == 1 and before["role"] == "system")):
            raise DataError(
                f"{place}: the assistant speaks first, an answer but no prompt. Drop that "
                "message, or put what it answers before it."
            )
        if role == "tool" and not _calls(before):
            raise DataError(
                f"{place}: a tool's result without a call. Before it an assistant's message with "
                "tool_calls (ShareGPT: function_call) is needed. Calls that stand as text in an "
                "answer are read with data.calls=parsed."
            )
        blank = not message["content"].strip() and not message.get("tool_calls")
        if blank and (role == "user" or (role == "assistant" and not last)):
            raise DataError(f"{place} is empty.")
        before = message


def _calls(message: Message | None) -> bool:
    """Whether a tool's result may follow: a call, a call written as text, another result."""
    if message is None:
        return False
    written = message["role"] == "assistant" and _CALL_AS_TEXT.search(message["content"])
    return message["role"] == "tool" or bool(message.get("tool_calls") or written)
