"""The formats of rows, told by fields and the look of their values: one reading for all of them.

Text of a row is kept exactly, spaces included. `alignlab/data/README.md` shows a row of every
format and the prompt group that it becomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from alignlab.data.formats import demonstrations, glaive, judged, pairs, prompts, shapes, writing
from alignlab.data.formats.calls import tools_of
from alignlab.data.formats.chat import check_order
from alignlab.data.formats.detection import choose, choose_most, looks_like
from alignlab.data.formats.fields import (
    ANSWERS,
    BESIDE,
    CONVERSATIONS,
    PROMPTS,
    QUESTIONS,
    SYSTEMS,
    Row,
    refuse_media,
)
from alignlab.data.formats.shapes import ANY, SAID, TEXT, Format, need
from alignlab.data.formats.written_calls import with_parsed_calls
from alignlab.data.group import PromptGroup
from alignlab.data.transcript import last_turn
from alignlab.errors import DataError, did_you_mean

Turns = Literal["all", "last", "each"]
Calls = Literal["parsed"]

_CHAT = (SYSTEMS, ("tools", "functions"))  # beside any messages
_ASKED = (*_CHAT, "history", BESIDE)  # beside any prompt
_prompt = need(SAID, *PROMPTS)
_question = need(SAID, *QUESTIONS)
_answer = need(SAID, *ANSWERS)
_conversation = need(shapes.MESSAGES, *CONVERSATIONS)
_thumb = need(ANY, "label", "kto_tag")

FORMATS: dict[str, Format] = {
    "group": Format(
        writing.group,
        (need(SAID, "prompt"), need(shapes.LIST, "completions"), need(shapes.OBJECT, "verdict")),
        ("id", "meta", "tools"),
        rank=0,
    ),
    "preference": Format(
        pairs.preference,
        (need(SAID, *pairs.CHOSEN), need(SAID, *pairs.REJECTED)),
        (*_ASKED, PROMPTS, CONVERSATIONS),
        rank=0,
    ),
    "rejected_response": Format(
        pairs.rejected_response, (_conversation, need(SAID, "rejected_response")), _CHAT, rank=0
    ),
    "openai_preference": Format(
        pairs.openai_preference,
        (
            need(shapes.OBJECT, "input"),
            need(SAID, "preferred_output"),
            need(SAID, "non_preferred_output"),
        ),
        rank=0,
    ),
    "side_by_side": Format(
        pairs.side_by_side,
        (
            need(SAID, *pairs.FIRSTS),
            need(SAID, *pairs.SECONDS),
            need(ANY, "winner", "winner_model_a", *pairs.CHOICES),
        ),
        (*_ASKED, PROMPTS, "winner_model_b", "winner_tie"),
        rank=0,
    ),
    "shp": Format(
        pairs.shp,
        (*(need(TEXT, f) for f in ("history", "human_ref_A", "human_ref_B")), need(ANY, "labels")),
        rank=0,
    ),
    "webgpt_comparisons": Format(
        pairs.webgpt_comparisons,
        tuple(need(ANY, f) for f in ("question", "answer_0", "answer_1", "score_0", "score_1")),
        rank=0,
    ),
    "summary_comparisons": Format(
        pairs.summary_comparisons,
        (need(shapes.OBJECT, "info"), need(shapes.VALUES, "summaries"), need(ANY, "choice")),
        rank=0,
    ),
    "judged_completions": Format(
        judged.judged_completions,
        (_prompt, need(shapes.OBJECTS, *judged.COMPLETIONS)),
        _ASKED,
        rank=0,
    ),
    "scored": Format(
        judged.scored,
        (
            _prompt,
            need(shapes.COMPLETIONS, *judged.COMPLETIONS),
            need(shapes.VALUES, *judged.SCORES, *judged.RANKS, "labels"),
        ),
        _ASKED,
        rank=0,
    ),
    "steps": Format(
        judged.steps,
        (
            _prompt,
            need(shapes.COMPLETIONS, "steps"),
            need(shapes.VALUES, *judged.SCORES, "labels"),
        ),
        _ASKED,
        rank=0,
    ),
    "unpaired": Format(judged.unpaired, (_question, _answer, _thumb), _ASKED, rank=0),
    "unpaired_conversation": Format(judged.unpaired, (_conversation, _thumb), _CHAT, rank=0),
    "attributes": Format(
        judged.attributes,
        (_question, _answer, need(shapes.NUMBER, *judged.OVERALL)),
        (*_ASKED, *judged.ATTRIBUTES),
        rank=0,
        together=True,
    ),
    "solutions": Format(judged.solutions, (_prompt,), _ASKED, rank=0, more=judged.solution_fields),
    "self_instruct": Format(
        demonstrations.self_instruct, (need(TEXT, "instruction"), need(shapes.OBJECTS, "instances"))
    ),
    "alpaca": Format(
        demonstrations.alpaca,
        (need(SAID, "instruction"), need(SAID, "output", "response", "completion")),
        (*_ASKED, "text"),
    ),
    "prompt_completion": Format(demonstrations.prompt_completion, (_question, _answer), _ASKED),
    "sharegpt": Format(
        demonstrations.sharegpt, (need(shapes.SHARED, "conversations", "conversation"),), _CHAT
    ),
    "messages": Format(
        demonstrations.messages, (need(shapes.MESSAGES, "messages"),), (*_CHAT, "prompt")
    ),
    "dialogue": Format(
        demonstrations.dialogue,
        (need(shapes.SPOKEN, "conversations", "conversation", "dialogue", "data"),),
        _CHAT,
    ),
    "function_calls": Format(
        demonstrations.function_calls,
        (_prompt, need(ANY, "tools"), need(shapes.CALLS, "answers")),
        ("history", *_CHAT[:1]),
    ),
    "glaive": Format(glaive.glaive, (need(TEXT, "system"), need(TEXT, "chat"))),
    "chat_log": Format(demonstrations.chat_log, (need(shapes.LOG, "messages"),)),
    "question_answer": Format(
        demonstrations.question_answer, (_prompt, need(shapes.ANSWER, "answer")), _ASKED
    ),
    "worked_solution": Format(
        demonstrations.worked_solution, (_prompt, need(TEXT, "solution")), (*_ASKED, "answer")
    ),
    "verifiable": Format(
        demonstrations.verifiable,
        (
            need(SAID, *QUESTIONS, *CONVERSATIONS),
            need(ANY, "ground_truth", "reward_model", "ideal"),
        ),
        _ASKED,
    ),
    "prompt_only": Format(prompts.prompt_only, (_prompt,), _ASKED, rank=2),
    "prompt_turns": Format(prompts.prompt_turns, (need(shapes.ASKED, "turns", "prompt"),), rank=2),
    "model_answers": Format(prompts.model_answers, (need(shapes.OBJECTS, "choices"),), rank=2),
    "text": Format(demonstrations.text, (need(TEXT, "text"),), rank=2),
}
FIELDS = tuple(sorted({field for form in FORMATS.values() for field in form.fields}))


def detect(rows: Sequence[Row], places: Sequence[str] = ()) -> str:
    """Return the name of the format that the fields of the first rows make.

    Args:
        rows: rows of one file; the first hundred count.
        places: what to call each row in an error; default "row 1" and so on.

    Raises:
        DataError: no format fits, or several that none of them explains, or the rows are of
            different formats, or a field looks like a misspelt one that would be ignored.
    """
    return choose(rows[:100], places, FORMATS)


def detect_most(rows: Sequence[Row]) -> tuple[str, dict[int, str]]:
    """Return the format of most rows, and for each row of another one (by position) which.

    Raises:
        DataError: no format fits any row, or a field looks like a misspelt one.
    """
    return choose_most(rows[:100], FORMATS)


def read(
    name: str,
    row: Row,
    *,
    turns: Turns = "all",
    weights: Mapping[str, float] | None = None,
    transcript: bool = False,
    calls: Calls | None = None,
) -> PromptGroup:
    """Read one row in a named format; fields that the format does not use become ``meta``.

    Args:
        name: a key of `FORMATS`.
        row: field -> value.
        turns: of a conversation, train on ``all`` turns of the assistant or on the ``last`` one
            (``each``: as ``all``; a source makes one group of each later).
        weights: attribute -> weight; scores become the weighted sum of the attributes.
        transcript: messages will become text, so that no chat template has to write them.
        calls: ``parsed``: tools and calls that stand as text become tools and tool calls.

    Raises:
        DataError: the row is not of this format; says what is wrong and what the row looks like.
    """
    if name not in FORMATS:
        raise DataError(f"no format '{name}': {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}")
    form = FORMATS[name]
    try:
        refuse_media(row)
        for one in form.needs:
            one.check(row, name)
        group = form.read(row)
        tools = group.tools or tools_of(row)
        if calls == "parsed":
            group = with_parsed_calls(replace(group, tools=tools))
            tools = group.tools
        check_order(group, transcript=transcript)
    except DataError as error:
        raise DataError(f"{error}{looks_like(row, name, FORMATS)}") from error
    used = form.used(row)
    rest = {key: value for key, value in row.items() if key not in used}
    if rest or tools:
        group = replace(group, meta={**rest, **group.meta}, tools=tools)
    if turns == "last":
        group = last_turn(group)
    return judged.reweigh(group, weights) if weights else group
