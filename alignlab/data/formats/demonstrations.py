"""Formats that demonstrate: text to model, one answer to a prompt, or a whole conversation."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from alignlab.data.formats.calls import calls_of, link
from alignlab.data.formats.chat import messages_of
from alignlab.data.formats.fields import (
    ANSWERS,
    CONVERSATIONS,
    QUESTIONS,
    Row,
    as_user,
    assemble,
    first_of,
    from_json,
    kind_of,
    plain,
    prompt_of,
    text_of,
    with_system,
)
from alignlab.data.group import DEMONSTRATION, NONE, Message, PromptGroup
from alignlab.errors import DataError

_BOXED = re.compile(r"\\f?boxed\s*(\{|[^\s{])")


def text(row: Row) -> PromptGroup:
    """Read plain text to model; the prompt is empty."""
    return PromptGroup("", (plain(row, "text"),), DEMONSTRATION)


def prompt_completion(row: Row) -> PromptGroup:
    """Read a prompt and its completion, each as text or messages."""
    answer = text_of(row, first_of(row, ANSWERS))
    return assemble(prompt_of(row, QUESTIONS), [answer], DEMONSTRATION)


def alpaca(row: Row) -> PromptGroup:
    """Read instruction, optional input, output; with a system prompt or a history, as messages."""
    answer = text_of(row, first_of(row, ("output", "response", "completion")))
    prompt = prompt_of(row, ("instruction",))
    if isinstance(prompt, str):
        return assemble(prompt, [answer], DEMONSTRATION)
    said: tuple[Message, ...] = (
        ({"role": "assistant", "content": answer},) if isinstance(answer, str) else answer
    )
    return as_group(prompt + said)


def self_instruct(row: Row) -> PromptGroup:
    """Read instruction and instances of {input, output}; the first instance demonstrates."""
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
        raise DataError("'instances' must be a list of {input, output}.")
    first = {"instruction": row["instruction"], "input": instances[0].get("input")}
    meta = {"more_instances": instances[1:]} if instances[1:] else {}
    answer = text_of(instances[0], "output")
    return assemble(prompt_of(first), [answer], DEMONSTRATION, meta)


def messages(row: Row) -> PromptGroup:
    """Read one conversation; every turn of the assistant is an answer.

    A conversation that ends with another role has no completion: it is a prompt.
    """
    return as_group(conversation_of(row))


def sharegpt(row: Row) -> PromptGroup:
    """Read ShareGPT's conversation of {from, value}, in which the two sides take turns."""
    turns = conversation_of(row)
    for number, (one, two) in enumerate(pairwise(turns), 2):
        if one["role"] == two["role"] != "tool":
            raise DataError(
                f"'{first_of(row, CONVERSATIONS)}', message {number}: two turns of the "
                f"{two['role']} in a row; a turn is missing, or a role is wrong."
            )
    return as_group(turns)


def dialogue(row: Row) -> PromptGroup:
    """Read a list of texts, user, assistant, user, ... (LIMA), or of {input, output} (Capybara)."""
    field = first_of(row, ("conversations", "conversation", "dialogue", "data"))
    roles = ("user", "assistant")
    turns: list[Any] = []
    for turn in row[field] if isinstance(row[field], list) else [None]:
        turns += [turn.get("input"), turn.get("output")] if isinstance(turn, dict) else [turn]
    if not all(isinstance(turn, str) for turn in turns):
        raise DataError(f"'{field}' must be a list of texts, or of {{input, output}} of texts.")
    said = tuple({"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns))
    return as_group(with_system(row, said))


def function_calls(row: Row) -> PromptGroup:
    """Read a query, tools and the calls that answer it (xLAM), as an assistant's tool calls."""
    calls = calls_of("'answers'", row["answers"])
    prompt = prompt_of(row)
    asked = as_user(prompt) if isinstance(prompt, str) else prompt
    return as_group((*asked, *link([{"role": "assistant", "content": "", "tool_calls": calls}])))


def chat_log(row: Row) -> PromptGroup:
    """Read a chat of two people, lines of {sender, text}: who writes first is the user.

    Lines in a row from one sender are one turn. Blank lines are left out, and so is a last turn
    that was never answered, if an answer stands before it.
    """
    said: list[tuple[str, list[str]]] = []
    for lines in row["messages"]:
        for line in lines if isinstance(lines, list) else [lines]:
            if not isinstance(line, dict):
                raise DataError("'messages' must hold lines {sender, text}, turn by turn or not.")
            sender, words = str(line.get("sender")), plain(line, "text")
            if not said or said[-1][0] != sender:
                said.append((sender, []))
            said[-1][1].append(words)
    turns = [(sender, text) for sender, texts in said if (text := "\n".join(filter(_full, texts)))]
    people = list(dict.fromkeys(sender for sender, _ in turns))
    if not 0 < len(people) < 3:
        raise DataError(f"'messages' must be a chat of two senders; {len(people)} wrote something.")
    if len(turns) > 2 and turns[-1][0] == people[0]:
        del turns[-1]
    roles = dict(zip(people, ("user", "assistant"), strict=False))
    return as_group(tuple({"role": roles[sender], "content": text} for sender, text in turns))


def _full(text: str) -> bool:
    return bool(text.strip())


def conversation_of(row: Row) -> tuple[Message, ...]:
    """Return the messages of the row's conversation, headed by its system prompt."""
    field = first_of(row, CONVERSATIONS)
    return with_system(row, messages_of(field, from_json(row[field])))


def as_group(turns: tuple[Message, ...]) -> PromptGroup:
    """Return a conversation as a demonstration: all from the assistant's first turn on.

    One that does not end with the assistant has nothing to demonstrate at its end and is a prompt.
    """
    if turns[-1]["role"] != "assistant":
        return PromptGroup(turns, (), NONE)
    first = next(n for n, turn in enumerate(turns) if turn["role"] == "assistant")
    return PromptGroup(turns[:first], (turns[first:],), DEMONSTRATION)


def question_answer(row: Row) -> PromptGroup:
    """Read a question and its answer; ``meta["answer"]`` is the final one, to check others by.

    That is what follows "####" (GSM8K), else what stands in the last box (MATH), else all of it.
    """
    options = first_of(row, ("choices", "options"))
    if options:
        raise DataError(
            f"'{options}' makes it multiple choice, and its answer means nothing without them. "
            "Write them into the question."
        )
    given = row["answer"]
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise DataError(f"'answer' must be text or a number; it is {kind_of(given)}.")
    answer = str(given)
    final = final_answer(answer) or answer.strip()
    return assemble(prompt_of(row), [answer], DEMONSTRATION, {"answer": final})


def worked_solution(row: Row) -> PromptGroup:
    r"""Read a problem and its solution (MATH); the answer is ``answer``, else what \boxed holds."""
    solution = plain(row, "solution")
    final = row.get("answer")
    final = final_answer(solution) if final is None else str(final).strip()
    meta = {"answer": final} if final else {}
    return assemble(prompt_of(row), [solution], DEMONSTRATION, meta)


def verifiable(row: Row) -> PromptGroup:
    """Read a prompt and the ground truth that a reward checks answers by (verl, Tülu's RLVR)."""
    truth = row.get("ground_truth", row.get("ideal"))
    if truth is None:
        rule = from_json(row.get("reward_model"))
        truth = rule.get("ground_truth") if isinstance(rule, dict) else None
    if truth is None or truth == "":
        raise DataError("no 'ground_truth' (nor 'reward_model' with one) to check answers by.")
    meta = {"answer": str(truth) if isinstance(truth, int | float) else truth}
    if first_of(row, CONVERSATIONS):
        group = as_group(conversation_of(row))
        return PromptGroup(group.prompt, group.completions, group.verdict, meta=meta)
    return assemble(prompt_of(row, QUESTIONS), [], NONE, meta)


def final_answer(solution: str) -> str:
    r"""Return what follows the last "####", else what the last \boxed{} holds, else nothing.

    Raises:
        DataError: a box that is opened and never closed.
    """
    marked = solution.rpartition("####")
    if marked[1] and marked[2].strip() and "\n" not in marked[2].strip():
        return marked[2].strip()
    boxes = list(_BOXED.finditer(solution))
    if not boxes:
        return ""
    last = boxes[-1]
    if last[1] != "{":
        return last[1]
    depth, start, place = 1, last.end(), last.end()
    while place < len(solution):
        sign = solution[place]
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return solution[start:place].strip()
        place += 2 if sign == "\\" else 1  # a brace after a backslash is a sign to print
    raise DataError(f"a box is opened and never closed: {solution[last.start() :][:60]!r}.")
