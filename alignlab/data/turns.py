"""Where the assistant speaks: the targets of a completion of several turns, exactly, by token.

A turn starts where the template's rendering of everything before it ends, with the opening of an
answer: that is where a sampler would start. It ends with the end-of-turn token. Both are found in
the rendering of the whole conversation, so nothing is encoded out of its context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alignlab.data.group import Message, PromptGroup, Text
from alignlab.data.rendering import ChatTemplate, Conversation, after, common_prefix
from alignlab.data.seams import Encoder
from alignlab.data.thinking import CLOSE, thought_of
from alignlab.errors import DataError

Span = tuple[int, int]  # characters [start, end) of a rendered conversation


@dataclass(frozen=True)
class Turns:
    """One rendered conversation: its text, where its completion starts, and what is counted."""

    text: str
    start: int  # character where the completion starts
    spans: tuple[Span, ...]  # turns of the assistant that are targets, in order
    thoughts: tuple[Span, ...]  # what of them is only read
    last_counts: bool  # whether the last message is one of them


# A prompt's text with its completions: the text of each, or its turns where not all is a target
Written = tuple[str, tuple["str | Turns", ...]]


def write_plain(groups: Sequence[PromptGroup]) -> list[Written]:
    """Take groups of plain text as they are.

    Raises:
        DataError: a completion is messages.
    """
    written: list[Written] = []
    for group in groups:
        if not all(isinstance(completion, str) for completion in group.completions):
            raise DataError(
                f"The prompt of {_name(group)} is text and a completion is messages. "
                "Write both as text or both as messages."
            )
        written.append((str(group.prompt), tuple(map(str, group.completions))))
    return written


def write_chat(chat: ChatTemplate, groups: Sequence[PromptGroup], eos: str) -> list[Written]:
    """Render groups of messages: what a sampler starts from, and what follows it.

    ``eos`` is how the token is spelt that ends an answer where the template writes none.

    Raises:
        DataError: no template, or one in which what was written before changes with what follows.
    """
    prompts = [Conversation(_messages(g.prompt), g.tools, _name(g)) for g in groups]
    heads = chat.render(prompts, generation=True)
    answered = [
        _Answered(prompt, head, _messages(completion))
        for prompt, head, group in zip(prompts, heads, groups, strict=True)
        for completion in group.completions
    ]
    wholes = chat.render([one.conversation for one in answered], generation=False)
    tails: list[str | Turns] = [
        after(one.head, whole, one.prompt.where)
        for one, whole in zip(answered, wholes, strict=True)
    ]
    for one, tail in zip(answered, tails, strict=True):
        last = one.conversation.messages[-1]
        if counts(last):
            chat.require_thought(last, str(tail), one.prompt.where)
    several = [i for i, one in enumerate(answered) if one.masked]
    if several:
        found = find_turns(chat, [(answered[i], wholes[i]) for i in several], chat.end_text or eos)
        for i, turns in zip(several, found, strict=True):
            tails[i] = turns
    parts = iter(tails)
    return [
        (head, tuple(next(parts) for _ in group.completions))
        for head, group in zip(heads, groups, strict=True)
    ]


class _Answered:
    """A prompt with one of its completions."""

    def __init__(self, prompt: Conversation, head: str, completion: Sequence[Message]) -> None:
        self.prompt, self.head = prompt, head
        self.masked = needs_mask(completion)
        kept = until_last_answer(completion, prompt.where) if self.masked else completion
        self.conversation = replace(prompt, messages=[*prompt.messages, *kept])
        self.first = len(prompt.messages)  # the first message of the completion


def counts(message: Message) -> bool:
    """Whether a message of a completion is a target: the assistant's, and not of weight 0."""
    return message["role"] == "assistant" and message.get("weight") != 0


def needs_mask(completion: Sequence[Message]) -> bool:
    """Whether something of a completion is read only."""
    first = completion[0]
    return len(completion) > 1 or not counts(first) or first.get("thought_weight") == 0


def until_last_answer(completion: Sequence[Message], where: str) -> Sequence[Message]:
    """Cut what follows the assistant's last message: nothing behind it could be a target.

    Raises:
        DataError: there is no message of the assistant.
    """
    answers = [i for i, message in enumerate(completion) if message["role"] == "assistant"]
    if not answers:
        raise DataError(f"The completion of {where} has no message of the assistant. Drop the row.")
    return completion[: answers[-1] + 1]


def find_turns(
    chat: ChatTemplate, wholes: Sequence[tuple[_Answered, str]], end_text: str
) -> list[Turns]:
    """Find the counted turns of answered prompts with their renderings.

    Raises:
        DataError: the template writes a turn differently once later ones follow, and has no marks.
    """
    asked = [
        (index, turn)
        for index, (one, _) in enumerate(wholes)
        for turn in range(one.first, len(one.conversation.messages))
        if counts(one.conversation.messages[turn])
    ]
    # The first turn starts where the prompt ends, and the last one ends where the whole does.
    before = {i: wholes[at][0].head for i, (at, n) in enumerate(asked) if n == wholes[at][0].first}
    behind = {
        i: wholes[at][1]
        for i, (at, n) in enumerate(asked)
        if n + 1 == len(wholes[at][0].conversation.messages)
    }
    heads = _filled(chat, [wholes[at][0].conversation.until(n) for at, n in asked], before, True)
    tails = _filled(
        chat, [wholes[at][0].conversation.until(n + 1) for at, n in asked], behind, False
    )
    spans: list[list[Span] | None] = [[] for _ in wholes]
    for (index, _), head, tail in zip(asked, heads, tails, strict=True):
        span = _by_prefix(wholes[index][1], head, tail, end_text, chat.tokenizer)
        known = spans[index]
        if span is None or known is None:
            spans[index] = None
        else:
            known.append(span)
    return [
        _turns(one, text, _by_marks(chat, one, text, end_text) if found is None else found)
        for (one, text), found in zip(wholes, spans, strict=True)
    ]


def _turns(one: _Answered, text: str, spans: Sequence[Span]) -> Turns:
    messages = one.conversation.messages
    said = [message for message in messages[one.first :] if counts(message)]
    thoughts = [
        (first, thought_end(text, (first, last), message, one.prompt.where))
        for (first, last), message in zip(spans, said, strict=True)
        if message.get("thought_weight") == 0
    ]
    return Turns(text, len(one.head), tuple(spans), tuple(thoughts), counts(messages[-1]))


def thought_end(text: str, span: Span, message: Message, where: str) -> int:
    """Where the answer behind the thought of a turn starts, as a character of the rendered text.

    Raises:
        DataError: the turn's thought is not found in what the template wrote.
    """
    written = text[span[0] : span[1]]
    place = written.rfind(CLOSE) + len(CLOSE)
    if place < len(CLOSE):
        thought = (thought_of(message).thought or "").strip()
        place = written.find(thought) + len(thought)
        if not thought or place < len(thought):
            raise DataError(
                f"The thought of an answer of {where} is to be masked (thought_weight, or "
                "data.mask_thinking), and the chat template writes none there. Leave thoughts out "
                "instead (data.thinking=dropped)."
            )
    return span[0] + place + len(written[place:]) - len(written[place:].lstrip())


def _filled(
    chat: ChatTemplate, parts: Sequence[Conversation], known: dict[int, str], generation: bool
) -> list[str]:
    """Renderings of all parts, of which some are known."""
    missing = [i for i in range(len(parts)) if i not in known]
    rendered = chat.render([parts[i] for i in missing], generation=generation)
    found = {**known, **dict(zip(missing, rendered, strict=True))}
    return [found[i] for i in range(len(parts))]


def _by_prefix(whole: str, head: str, tail: str, end_text: str, tokenizer: Any) -> Span | None:
    """The turn between two renderings that end before and after it; None if they are no prefixes.

    Some templates close the last message as no other (Phi 3 adds EOS): what follows the end of turn
    may differ.
    """
    if not whole.startswith(head):
        return None
    start, same = len(head), common_prefix(whole, tail)
    last = whole.rfind(end_text, start, same)
    complete = same == len(tail)
    if last < 0:
        closed = same + len(end_text) if whole.startswith(end_text, same) else same
        return (start, closed) if complete else None
    end = last + len(end_text)
    if complete and not _blank(whole[end:same], tokenizer):
        end = same  # the template writes more of the turn after an end token in the content
    return start, end


def _by_marks(chat: ChatTemplate, one: _Answered, text: str, end_text: str) -> list[Span]:
    conversation, start = one.conversation, len(one.head)
    if not chat.marks:
        raise DataError(
            f"The chat template writes an earlier turn of {conversation.where} differently once "
            "later turns follow, so what the assistant wrote cannot be found in it. Ways out: "
            "make each answer a row of its own, written as it is sampled (data.turns=each), train "
            "on last answers only (data.turns=last), a training version of the template "
            "where TRL has one (backbone.template=training), or a template of your own that keeps "
            "earlier turns or marks answers with {% generation %} (backbone.template=FILE.jinja)."
        )
    rendered, marks = chat.marked(conversation)
    inside = [mark for mark in marks if mark[1] > start]
    messages = conversation.messages[one.first :]
    answers = [message for message in messages if message["role"] == "assistant"]
    if rendered != text or len(inside) != len(answers):
        raise DataError(
            f"The chat template marks {len(inside)} passages of {conversation.where} with "
            f"{{% generation %}}, and the assistant has {len(answers)} turns there. Mark each turn "
            "once, or train on last answers only (data.turns=last)."
        )
    spans = []
    for number, ((first, last), message) in enumerate(zip(inside, answers, strict=True)):
        if number == 0 and messages[0] is message:
            first = start  # the prompt ends here, so all that follows has to be sampled
        elif text.startswith(chat.opening, first):
            first += len(chat.opening)  # written for the sampler, not by it
        if text.startswith(end_text, last):
            last += len(end_text)
        ended = text.rfind(end_text, first, last)
        if ended >= 0 and _blank(text[ended + len(end_text) : last], chat.tokenizer):
            last = ended + len(end_text)
        if counts(message):
            spans.append((first, last))
    return spans


def encode_turns(encoder: Encoder, turns: Turns) -> tuple[list[int], np.ndarray]:
    """Ids of a completion and its mask (one bool per id, True = target), end of text included."""
    starts = [first for first, _ in turns.spans]
    ends = [last for _, last in (*turns.spans, *turns.thoughts)]
    ids, index = encoder.at(turns.text, [turns.start, *starts], ends)
    mask = np.zeros(len(ids), dtype=bool)
    for spans, counted in ((turns.spans, True), (turns.thoughts, False)):
        for first, last in spans:
            mask[index[first] : index[last]] = counted
    opening = index[turns.start]
    return ids[opening:], mask[opening:]


def _blank(text: str, tokenizer: Any) -> bool:
    """Whether nothing is left of a text without special tokens and white space."""
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return not text.strip()


def _messages(text: Text) -> list[Message]:
    return [{"role": "assistant", "content": text}] if isinstance(text, str) else list(text)


def _name(group: PromptGroup) -> str:
    place = group.meta.get("place")
    return f"group {group.id!r} ({place})" if place else f"group {group.id!r}"
