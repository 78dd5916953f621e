"""Dialogues as plain text with turns of Human: and Assistant: (HH-RLHF), and as messages."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from alignlab.data.group import Message, PromptGroup, Text
from alignlab.errors import DataError

Style = Literal["as_is", "text", "messages", "alpaca"]

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
# HelpSteer writes the turns after a user's first one so.
_MARKED = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")
_ROLE = {"Human": "user", "User": "user", "Assistant": "assistant"}
_SPEAKER = {"user": "Human", "assistant": "Assistant"}


def is_transcript(text: str) -> bool:
    """Whether the text opens with a human's turn and has an assistant's turn."""
    names = _TURN.findall(text)
    return text.lstrip().startswith("Human:") and "Assistant" in names


def split_pair(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return (prompt, chosen, rejected) of two transcripts: the prompt is their common turns.

    It ends with "Assistant:" before the first turn that differs; where a human's turn is the first
    to differ, before the assistant's turn that precedes it.
    """
    first, second = _turns(chosen), _turns(rejected)
    same = 0
    while same < min(len(first), len(second)) and first[same][1:] == second[same][1:]:
        same += 1
    same = min(same, len(first) - 1, len(second) - 1)
    while same >= 0 and first[same][1] != "Assistant":
        same -= 1
    if same < 0:
        raise DataError(
            "'chosen' and 'rejected' have no common prompt that an assistant answers. "
            "Give the prompt in a field 'prompt'."
        )
    end = first[same][0]
    return chosen[:end], chosen[end:], rejected[end:]


def _turns(text: str) -> list[tuple[int, str, str]]:
    """(start of the text after the colon, speaker, text) of every turn."""
    marks = list(_TURN.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    return [(m.end(), m[1], text[m.end() : e]) for m, e in zip(marks, ends, strict=True)]


def with_style(group: PromptGroup, style: Style) -> PromptGroup:
    """Return the group as plain text or as messages, whatever it was; ``as_is`` keeps it.

    Plain text becomes one user message and its answer, a transcript its turns; messages become a
    transcript whose prompt ends with "Assistant:", and of a conversation the last answer is the
    completion, because nothing in a transcript tells a loss to leave the user's turns out.

    Raises:
        DataError: text without a prompt as messages; tools, tool calls or weights as text.
    """
    if style == "messages" and isinstance(group.prompt, str):
        if not group.prompt.strip():
            raise DataError("text without a prompt cannot be messages. Set data.style=as_is.")
        prompt = _to_messages(group.prompt)
        answers = tuple(_answer_messages(str(c)) for c in group.completions)
        return replace(group, prompt=prompt, completions=answers)
    group = last_turn(group) if style == "text" else group
    if style == "text" and not isinstance(group.prompt, str):
        _check_writable(group)
        text = _to_text(group.prompt) + "\n\nAssistant:"
        return replace(group, prompt=text, completions=tuple(map(_answer_text, group.completions)))
    return group


def last_turn(group: PromptGroup) -> PromptGroup:
    """Return a demonstration of several turns with all but its last message as the prompt.

    Other groups are returned as they are.
    """
    said = group.completions[0] if group.verdict.kind == "demonstration" else ()
    if isinstance(group.prompt, str) or isinstance(said, str) or len(said) < 2:
        return group
    return replace(group, prompt=group.prompt + said[:-1], completions=(said[-1:],))


def each_turn(group: PromptGroup) -> tuple[PromptGroup, ...]:
    """Return a demonstration of several turns as one group for each answer that counts.

    The prompt of each is all that was said before it, as a sampler would have it; so a template
    that drops the thoughts of earlier turns writes every answer with its own. Messages of weight 0
    make none. Other groups are returned as they are.
    """
    said = group.completions[0] if group.verdict.kind == "demonstration" else ()
    if isinstance(group.prompt, str) or isinstance(said, str) or len(said) < 2:
        return (group,)
    return tuple(
        replace(
            group,
            prompt=group.prompt + said[:number],
            completions=(said[number : number + 1],),
            id=f"{group.id}/{number}",
        )
        for number, message in enumerate(said)
        if message["role"] == "assistant" and message.get("weight") != 0
    )


def _check_writable(group: PromptGroup) -> None:
    turns = [*group.prompt, *(turn for answer in group.completions for turn in answer)]
    odd = {"tools"} if group.tools else set()
    for turn in turns:
        if isinstance(turn, dict):
            odd |= {key for key in ("tool_calls", "reasoning_content", "thinking") if key in turn}
            odd |= {"weight 0"} if turn.get("weight") == 0 else set()
            odd |= {"role tool"} if turn["role"] == "tool" else set()
    if odd:
        raise DataError(
            f"a transcript has no place for {', '.join(sorted(odd))}. Set data.style=as_is and use "
            "a tokenizer with a chat template."
        )


def _to_messages(prompt: str) -> tuple[Message, ...]:
    first, *marked = _MARKED.split(prompt)
    if marked:
        turns = [("User", first), *zip(marked[::2], marked[1::2], strict=True)]
        return tuple({"role": _ROLE[name], "content": text.strip()} for name, text in turns)
    if not is_transcript(prompt):
        return ({"role": "user", "content": prompt.strip()},)
    messages = tuple({"role": _ROLE[name], "content": t.strip()} for _, name, t in _turns(prompt))
    last = messages[-1]
    return messages[:-1] if last["role"] == "assistant" and not last["content"] else messages


def _answer_messages(answer: str) -> tuple[Message, ...]:
    turns = _turns("\n\nAssistant:" + answer)
    return tuple({"role": _ROLE[name], "content": text.strip()} for _, name, text in turns)


def _to_text(messages: tuple[Message, ...]) -> str:
    return "".join(
        f"\n\n{_SPEAKER[m['role']]}: {m['content']}"
        if m["role"] in _SPEAKER
        else "\n\n" * bool(number) + m["content"]
        for number, m in enumerate(messages)
    )


def _answer_text(answer: Text) -> str:
    if isinstance(answer, str):
        return " " + answer
    return _to_text(answer).removeprefix("\n\nAssistant:")
