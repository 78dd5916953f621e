"""Rewards for tool calls and thoughts, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alignlab.data.group import CHOSEN_REJECTED, DEMONSTRATION, PromptGroup
from alignlab.errors import DataError
from alignlab.rewards.length import Length
from alignlab.rewards.mixture import Mixture, Weighted
from alignlab.rewards.process import ProcessReward
from alignlab.rewards.reward import known_of, prompt_text
from alignlab.rewards.thinking import ThinkingFormat, graded
from alignlab.rewards.tool_calls import ToolCallFormat, ToolCallMatch
from alignlab.rewards.verifiable import FinalNumber
from alignlab.spec import Spec

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
RAIN = {"type": "function", "function": {"name": "rain", "parameters": SCHEMA}}
XLAM = {
    "name": "sum",
    "parameters": {"a": {"type": "int"}, "b": {"type": "float, optional"}, "c": {"default": 1}},
}
TOOLACE = {  # types as Python names them, at any depth; one field is called type
    "name": "plan",
    "parameters": {
        "type": "dict",
        "properties": {
            "type": {"type": "string", "enum": ["str", "int"]},
            "where": {"type": "dict", "properties": {"x": {"type": "float"}}},
            "any": {"type": "any"},
            "tags": {"type": ["array", "null"], "items": {"type": "str"}},
        },
        "required": ["type"],
    },
}
KNOWN = {"tools": [RAIN, XLAM, TOOLACE]}


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def score(reward, *texts, known):
    got = reward.score(["q"] * len(texts), texts, [known] * len(texts))
    assert got.dtype == np.float32
    return got.tolist()


@pytest.mark.parametrize(
    ("text", "whole", "share"),
    [
        (call("rain", city="Rome"), 1, 1),
        (call("rain", city="Rome", days=2), 1, 1),
        (call("rain", city="Rome") + call("sum", a=1), 1, 1),
        (call("rain"), 0, 2 / 3),  # city is required
        (call("rain", city=3), 0, 2 / 3),
        (call("rain", city="Rome", moon=1), 0, 2 / 3),  # no such argument
        (call("snow", city="Rome"), 0, 1 / 3),  # no such function
        ("<tool_call>{rain}</tool_call>", 0, 0),
        ("It rains.", 0, 0),
        (call("sum", a=1, b=2.5), 1, 1),  # xLAM's types: b is optional, c has a default
        (call("sum", b=2.5), 0, 2 / 3),
        (call("sum", a="x"), 0, 2 / 3),
        (call("plan", type="str", where={"x": 1.5}, any=[1], tags=["a"]), 1, 1),
        (call("plan", type="str", tags=None), 1, 1),
        (call("plan", type="float"), 0, 2 / 3),
        (call("plan", type="int", where={"x": "far"}), 0, 2 / 3),
        (call("plan", type="int", tags=[1]), 0, 2 / 3),
    ],
)
def test_a_call_parses_is_declared_and_fits(text, whole, share):
    assert score(ToolCallFormat(credit="all"), text, known=KNOWN) == [whole]
    assert score(ToolCallFormat(credit="share"), text, known=KNOWN) == [pytest.approx(share)]


def test_no_call_is_right_where_the_reference_has_none():
    reward = ToolCallFormat(credit="all")
    assert score(reward, "Hello.", known={**KNOWN, "calls": []}) == [1]
    assert score(reward, "Hello.", known={**KNOWN, "calls": [{"name": "rain"}]}) == [0]
    with pytest.raises(DataError, match=r"line 3 has none.*data\.calls=parsed"):
        score(reward, "Hello.", known={"place": "line 3"})
    odd = {"tools": [{"name": "f", "parameters": {"type": "object", "properties": 3}}]}
    with pytest.raises(DataError, match="'f' has parameters that are no JSON Schema"):
        score(reward, call("f"), known=odd)


WANTED = [{"name": "rain", "arguments": {"city": "Rome", "days": 2}}]


@pytest.mark.parametrize(
    ("text", "exact", "partial"),
    [
        (call("rain", days=2.0, city="Rome"), 1, 1),  # 2 and 2.0 are one JSON value
        # S_max = 1 + 1 + 2 = 4; names 1; argument names 1 of 2; values 1
        (call("rain", city="Rome"), 0, (1 + 1 / 2 + 1) / 4),
        # names 1, argument names 2 of 2, one equal value
        (call("rain", city="Bari", days=2), 0, (1 + 1 + 1) / 4),
        (call("rain", city="Rome", days=True), 0, (1 + 1 + 1) / 4),  # true is no number
        # names 1 of 2 (one call too many); the second call matches best
        (call("rain", city="x") + call("rain", city="Rome", days=2), 0, (1 / 2 + 1 + 2) / 4),
        (call("snow", city="Rome", days=2), 0, 0),
        ("It rains.", 0, 0),
        ("<tool_call>{rain}</tool_call>", 0, 0),
    ],
)
@pytest.mark.conformance("closed form", "ToolRL", "partial credit of calls is R_max / S_max")
def test_calls_are_those_of_the_reference(text, exact, partial):
    known = {"calls": WANTED}
    assert score(ToolCallMatch(calls="calls", credit="exact"), text, known=known) == [exact]
    got = score(ToolCallMatch(calls="calls", credit="partial"), text, known=known)
    assert got == [pytest.approx(partial)]


def test_order_and_absence_of_calls():
    reward = ToolCallMatch(calls="answer", credit="exact")
    two = [*WANTED, {"name": "sum", "arguments": {"a": 1}}]
    known = {"answer": json.dumps(two)}  # as text, as many sets keep it
    turned = call("sum", a=1) + call("rain", city="Rome", days=2)
    assert score(reward, turned, call("sum", a=1), known=known) == [1, 0]
    assert score(reward, "Hello.", turned, known={"answer": []}) == [1, 0]
    with pytest.raises(DataError, match=r"no reference calls under 'answer' \(fields: city\)"):
        score(reward, "Hello.", known={"city": "Rome"})


# --- what a reward is told ------------------------------------------------------------------------


def test_a_reward_is_told_tools_and_the_calls_of_the_best_answer():
    function = {"name": "rain", "arguments": {"city": "Rome"}}
    asked = ({"role": "user", "content": "Rain?"},)
    calling = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    rest = ({"role": "tool", "content": "dry"}, {"role": "assistant", "content": "No."})
    group = PromptGroup(asked, ((calling, *rest),), DEMONSTRATION, tools=(RAIN,), meta={"x": 1})
    assert known_of(group) == {"tools": [RAIN], "calls": [function], "x": 1}
    answers = (({"role": "assistant", "content": "No."},), (calling,))
    pair = PromptGroup(asked, answers, CHOSEN_REJECTED, tools=(RAIN,))
    assert known_of(pair)["calls"] == []  # the better answer calls nothing
    assert known_of(PromptGroup(asked, (), tools=(RAIN,))) == {"tools": [RAIN]}
    assert known_of(PromptGroup("q", ("a",), DEMONSTRATION, meta={"x": 1})) == {"x": 1}
    turn = PromptGroup((*asked, calling, *rest, *asked))
    assert prompt_text(turn).splitlines()[0] == "User: Rain?"
    assert '"Rome"' in prompt_text(turn)
    assert "Tool: dry" in prompt_text(turn)
    assert prompt_text(PromptGroup(asked)) == "Rain?"


# --- thoughts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>hm</think>4", 1),
        ("\n<think>\nhm\n</think>\n\n4", 1),
        ("4", 0),
        ("<think>hm</think>", 0),  # no answer
        ("<think> </think>4", 0),  # no thought
        ("<think>hm", 0),
        ("so <think>hm</think>4", 0),
        ("<think>a</think>b<think>c</think>d", 0),
        ("hm</think>4", 0),
    ],
)
def test_the_form_of_a_thought(text, value):
    assert score(ThinkingFormat(), text, known={}) == [value]


def test_rewards_read_what_follows_the_thought():
    number, known = FinalNumber(answer="answer"), [{"answer": "4"}]

    def one(reward, text, prompt="q"):
        return float(graded(reward, [prompt], [text], known)[0])

    assert one(number, "<think>9</think>4") == 1
    assert one(number, "<think>it is 4") == 0  # cut off in its thought: no answer
    assert float(number.score(["q"], ["<think>it is 4"], known)[0]) == 1  # read whole, it would be
    assert one(number, "9 or 4", "…<think>\n") == 0  # the prompt opened the thought
    assert one(number, "9</think>4", "…<think>\n") == 1
    assert one(ThinkingFormat(), "9</think>4", "…<think>\n") == 1  # with the tag of its prompt
    words = Length(target_words=1)
    assert one(words, "<think>a b c d</think>yes") == one(words, "yes")
    terms = [("verifiable.FinalNumber", {"answer": "answer"}), ("thinking.ThinkingFormat", {})]
    mixed = Mixture(
        terms=tuple(
            Weighted(reward=Spec(f"alignlab.rewards.{name}", stated), weight=weight)
            for (name, stated), weight in zip(terms, (1.0, 0.5), strict=True)
        )
    )
    assert one(mixed, "<think>9</think>4") == 1.5
    assert one(mixed, "4") == 1
    assert ProcessReward.reads_thinking
