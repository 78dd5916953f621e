"""The row formats of preference and instruction data, each one small function row → PromptGroup.

Text of a row is kept exactly, spaces included. Where a format has separate question and answer
fields (Alpaca, question/answer), a blank line joins them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignlab.data.formats.fields import Row, assistant, flag_of, messages_of, number_of, text_of
from alignlab.data.group import (
    CHOSEN_REJECTED,
    DEMONSTRATION,
    NONE,
    Message,
    PromptGroup,
    Text,
    Verdict,
)
from alignlab.data.transcript import is_transcript, split_pair
from alignlab.errors import DataError, did_you_mean

_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_SHAREGPT |= {"chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "system": "system"}
_FINAL_ANSWER = re.compile(r"####\s*(.+?)\s*$")


def preference(row: Row) -> PromptGroup:
    """Read prompt, chosen, rejected; without prompt the common beginning of the two is it."""
    chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError("'chosen' and 'rejected' must both be text or both be messages.")
    prompt = None if row.get("prompt") is None else text_of(row, "prompt")
    if isinstance(chosen, tuple) and isinstance(rejected, tuple):
        if isinstance(prompt, str):
            opens = chosen[:1] and chosen[0]["role"] != "assistant"
            prompt = None if opens else ({"role": "user", "content": prompt},)
        turns, *pair = _split_messages(prompt, chosen, rejected)
        return PromptGroup(turns, tuple(pair), CHOSEN_REJECTED)
    if isinstance(prompt, tuple):
        answers = (assistant(str(chosen)),), (assistant(str(rejected)),)
        return PromptGroup(prompt, answers, CHOSEN_REJECTED)
    head, *texts = _split_text(prompt, str(chosen), str(rejected))
    return PromptGroup(head, tuple(texts), CHOSEN_REJECTED)


def unpaired(row: Row) -> PromptGroup:
    """Read prompt, completion and label (true = desirable)."""
    return _pair_up(row, "completion", Verdict("thumbs", thumbs=(flag_of(row, "label"),)))


def prompt_completion(row: Row) -> PromptGroup:
    """Read a demonstration: prompt and completion, as text or messages."""
    return _pair_up(row, "completion", DEMONSTRATION)


def scored(row: Row) -> PromptGroup:
    """Read prompt, completions and scores (higher is better), ranks (lower) or labels (bools)."""
    given = [name for name in ("scores", "ranks", "labels") if row.get(name) is not None]
    if len(given) != 1:
        raise DataError(f"needs one of 'scores', 'ranks', 'labels'; it has {given or 'none'}.")
    values, completions = row[given[0]], row["completions"]
    if not isinstance(completions, list) or not completions:
        raise DataError("'completions' must be a list with at least one text or list of messages.")
    if not isinstance(values, list) or len(values) != len(completions):
        raise DataError(f"'{given[0]}' must be a list with one value per completion.")
    texts = [text_of({"completions": completion}, "completions") for completion in completions]
    if given[0] == "labels":
        verdict = Verdict("thumbs", thumbs=tuple(flag_of({"labels": v}, "labels") for v in values))
    else:
        numbers = [number_of(given[0], value) for value in values]
        order = sorted(set(numbers))
        verdict = (
            Verdict("scores", scores=tuple(numbers))
            if given[0] == "scores"
            else Verdict("ranking", ranks=tuple(order.index(n) for n in numbers))
        )
    prompt = text_of(row, "prompt")
    if isinstance(prompt, tuple):
        texts = [(assistant(t),) if isinstance(t, str) else t for t in texts]
    return PromptGroup(prompt, tuple(texts), verdict)


def messages(row: Row) -> PromptGroup:
    """Read one conversation; the assistant's last message is the completion."""
    return _conversation(messages_of("messages", row["messages"]))


def sharegpt(row: Row) -> PromptGroup:
    """Read ShareGPT's conversations: a list of {from: human | gpt | system, value}."""
    turns = row["conversations"]
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]:
        return _conversation(messages_of("conversations", turns))
    converted: list[Message] = []
    for turn in turns if isinstance(turns, list) else [turns]:
        role = _SHAREGPT.get(turn.get("from", "")) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            known = ", ".join(sorted(_SHAREGPT))
            raise DataError(f"'conversations' must hold {{from, value}} with from in {known}.")
        converted.append({"role": role, "content": turn["value"]})
    return _conversation(tuple(converted))


def alpaca(row: Row) -> PromptGroup:
    """Read instruction, optional input, output."""
    return _demonstrate(row, text_of(row, "output"), row.get("input"))


def self_instruct(row: Row) -> PromptGroup:
    """Read instruction and instances of {input, output}; the first instance demonstrates."""
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise DataError("'instances' must be a list of {input, output}.")
    return _demonstrate(row, text_of(instances[0], "output"), instances[0].get("input"))


def question_answer(row: Row) -> PromptGroup:
    """Read question (or prompt) and answer; ``meta['answer']`` is what follows "####" (GSM8K)."""
    question = text_of(row, "question" if "question" in row else "prompt")
    answer = str(row["answer"])
    final = _FINAL_ANSWER.search(answer)
    meta = {"answer": final[1] if final else answer.strip()}
    if isinstance(question, str):
        return PromptGroup(question + "\n\n", (answer,), DEMONSTRATION, meta=meta)
    return PromptGroup(question, ((assistant(answer),),), DEMONSTRATION, meta=meta)


def solutions(row: Row) -> PromptGroup:
    """Read a question and several {solution, is_correct} fields, a thumb for each."""
    found = {name: value for name, value in row.items() if _is_solution(value)}
    thumbs = tuple(flag_of(value, "is_correct") for value in found.values())
    texts = tuple(str(value["solution"]) for value in found.values())
    meta = {"models": tuple(found)}
    return PromptGroup(f"{row['question']}\n\n", texts, Verdict("thumbs", thumbs=thumbs), meta=meta)


def prompt_only(row: Row) -> PromptGroup:
    """Read prompts to sample from."""
    return PromptGroup(text_of(row, "prompt"))


def text(row: Row) -> PromptGroup:
    """Read plain text to model; the prompt is empty."""
    return PromptGroup("", (str(text_of(row, "text")),), DEMONSTRATION)


@dataclass(frozen=True)
class Format:
    """Fields that make a row of one format, and the function that reads it."""

    read: Callable[[Row], PromptGroup]
    needs: tuple[str, ...]
    may: tuple[str, ...] = ()


# The first format whose needs are all there is taken: richer ones come first.
FORMATS: dict[str, Format] = {
    "preference": Format(preference, ("chosen", "rejected"), ("prompt",)),
    "scored": Format(scored, ("prompt", "completions"), ("scores", "ranks", "labels")),
    "unpaired": Format(unpaired, ("prompt", "completion", "label")),
    "prompt_completion": Format(prompt_completion, ("prompt", "completion")),
    "self_instruct": Format(self_instruct, ("instruction", "instances")),
    "alpaca": Format(alpaca, ("instruction", "output"), ("input",)),
    "sharegpt": Format(sharegpt, ("conversations",)),
    "messages": Format(messages, ("messages",)),
    "question_answer": Format(question_answer, ("question", "answer")),
    "prompt_answer": Format(question_answer, ("prompt", "answer")),
    "solutions": Format(solutions, ("question",)),
    "prompt_only": Format(prompt_only, ("prompt",)),
    "text": Format(text, ("text",)),
}
FIELDS = tuple(sorted({field for f in FORMATS.values() for field in (*f.needs, *f.may)}))


def detect(rows: Sequence[Row]) -> str:
    """Return the name of the format that the fields of the first rows make.

    Raises:
        DataError: no format fits, or a field looks like a misspelt one that would be ignored.
    """
    head = rows[:100]
    present = list(dict.fromkeys(k for row in head for k, v in row.items() if v is not None))
    fits = (name for name, f in FORMATS.items() if set(f.needs) <= set(present))
    name = next((n for n in fits if n != "solutions" or _has_solutions(head)), None)
    used = (*FORMATS[name].needs, *FORMATS[name].may) if name else ()
    for field in present:
        if field not in FIELDS:
            hint = _near(field)
            if hint and hint not in present:
                raise DataError(
                    f"the field '{field}' is unknown. Did you mean '{hint}'? Rename it with "
                    f"data.fields.{field}={hint}, or state the format with data.format=NAME."
                )
        elif field in ("chosen", "rejected", "completion", "completions") and field not in used:
            raise DataError(f"the field '{field}' is there, but {_lacking(present, field)}.")
    if name is None:
        known = "; ".join(f"{n}: {', '.join(f.needs)}" for n, f in FORMATS.items())
        raise DataError(
            f"no format has the fields {', '.join(present) or '(none)'}. Known: {known}."
        )
    return name


def read(name: str, row: Row) -> PromptGroup:
    """Read one row in a named format; fields that the format does not use become ``meta``."""
    if name not in FORMATS:
        raise DataError(f"no format '{name}': {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    missing = [field for field in FORMATS[name].needs if row.get(field) is None]
    if missing:
        hint = did_you_mean(missing[0], row)
        raise DataError(f"no '{missing[0]}', which the format '{name}' needs.{hint}")
    group = FORMATS[name].read(row)
    used = (*FORMATS[name].needs, *FORMATS[name].may)
    rest = {k: v for k, v in row.items() if k not in used and not _is_solution(v)}
    return replace(group, meta={**rest, **group.meta})


def _near(field: str) -> str:
    return next(iter(difflib.get_close_matches(field, FIELDS, n=1, cutoff=0.85)), "")


def _lacking(present: Sequence[str], field: str) -> str:
    able = [f.needs for f in FORMATS.values() if field in f.needs]
    need = min((tuple(n for n in needs if n not in present) for needs in able), key=len)
    return f"{' and '.join(need)} is missing"


def _has_solutions(rows: Sequence[Row]) -> bool:
    return any(_is_solution(value) for row in rows for value in row.values())


def _is_solution(value: Any) -> bool:
    return isinstance(value, dict) and "solution" in value and "is_correct" in value


def _pair_up(row: Row, field: str, verdict: Verdict) -> PromptGroup:
    prompt, completion = text_of(row, "prompt"), text_of(row, field)
    if isinstance(prompt, str) and isinstance(completion, tuple):
        prompt = ({"role": "user", "content": prompt},)
    elif isinstance(prompt, tuple) and isinstance(completion, str):
        completion = (assistant(completion),)
    return PromptGroup(prompt, (completion,), verdict)


def _conversation(turns: tuple[Message, ...]) -> PromptGroup:
    if turns[-1]["role"] != "assistant":
        return PromptGroup(turns, (), NONE)
    if len(turns) == 1:
        raise DataError("the conversation has an answer but no prompt.")
    return PromptGroup(turns[:-1], (turns[-1:],), DEMONSTRATION)


def _demonstrate(row: Row, output: Text, extra: Any) -> PromptGroup:
    parts = [str(text_of(row, "instruction")), str(extra or "")]
    prompt = "".join(part + "\n\n" for part in parts if part)
    return PromptGroup(prompt, (output,), DEMONSTRATION)


def _split_text(prompt: str | None, chosen: str, rejected: str) -> tuple[str, str, str]:
    if prompt is not None:
        if prompt and chosen.startswith(prompt) and rejected.startswith(prompt):
            return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
        return prompt, chosen, rejected
    if is_transcript(chosen) and is_transcript(rejected):
        return split_pair(chosen, rejected)
    same = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    end = max(chosen.rfind(space, 0, same) for space in " \n\t")  # never inside a word
    if end <= 0:
        raise DataError(
            "'chosen' and 'rejected' begin differently and there is no 'prompt'. Add that field."
        )
    return chosen[:end], chosen[end:], rejected[end:]


def _split_messages(
    prompt: tuple[Message, ...] | None, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], ...]:
    if prompt is not None:
        n = len(prompt)
        if chosen[:n] == prompt == rejected[:n] and len(chosen) > n < len(rejected):
            return prompt, chosen[n:], rejected[n:]
        return prompt, chosen, rejected
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    while same > 0 and chosen[same]["role"] != "assistant":
        same -= 1
    if same == 0:
        raise DataError("'chosen' and 'rejected' have no common prompt. Add a field 'prompt'.")
    return chosen[:same], chosen[same:], rejected[same:]
