"""Rows that are JSON and still wrong: one message that names file, line and field."""

from __future__ import annotations

import json

import pytest
from table_sources import source

from alignlab.errors import DataError

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
SCORED = {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}
THUMB = {"prompt": "p", "completion": "c", "label": True}
USER, ANSWER = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
CHAT = {"messages": [USER, ANSWER]}
HUMAN, BOT = {"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}

# a sound first row, a second one that is not, and what has to be said
WRONG = {
    "a null field": (PAIR, {**PAIR, "chosen": None}, "line 2.*'chosen'"),
    "a null prompt": (PAIR, {**PAIR, "prompt": None}, "line 2.*'prompt'"),
    "nulls everywhere": (PAIR, dict.fromkeys(PAIR), "line 2.*'chosen'"),
    "nested nulls": (CHAT, {"messages": [None]}, "line 2.*'messages'"),
    "a null text": (CHAT, {"messages": [{**USER, "content": None}, ANSWER]}, "line 2.*message 1"),
    "a null completion": (SCORED, {**SCORED, "completions": ["a", None]}, "line 2.*'completions'"),
    "a null score": (SCORED, {**SCORED, "scores": [1, None]}, "line 2.*'scores'.*None"),
    "a number for a text": (PAIR, {**PAIR, "chosen": 3}, "line 2.*'chosen' must be text"),
    "a number for a content": (CHAT, {"messages": [{**USER, "content": 3}, ANSWER]}, "line 2.*3"),
    "a text for a list": (SCORED, {**SCORED, "completions": "ab"}, "line 2.*'completions'.*list"),
    "an object for a list": (CHAT, {"messages": USER}, "line 2.*'messages' must be a list"),
    "a list in a list": (CHAT, {"messages": [[USER, ANSWER]]}, "line 2.*'messages'"),
    "an empty list": (CHAT, {"messages": []}, "line 2.*'messages'"),
    "words for scores": (SCORED, {**SCORED, "scores": ["good", "bad"]}, "line 2.*not 'good'"),
    "truths for scores": (SCORED, {**SCORED, "scores": [True, False]}, "line 2.*not True"),
    "lists for scores": (SCORED, {**SCORED, "scores": [[1], [2]]}, r"line 2.*not \[1\]"),
    "too few scores": (SCORED, {**SCORED, "scores": [1]}, "line 2.*one value per completion"),
    "an endless score": (SCORED, {**SCORED, "scores": [1, 10**400]}, "line 2.*'scores'"),
    "an infinite score": (
        SCORED,
        json.dumps(SCORED).replace("[1, 2]", "[1, 1e999]"),
        "line 2.*'scores' must hold finite",
    ),
    "an unknown role": (CHAT, {"messages": [{**USER, "role": "usr"}, ANSWER]}, "line 2.*'user'"),
    "a number for a role": (CHAT, {"messages": [{**USER, "role": 1}, ANSWER]}, "line 2.*role"),
    "an unknown speaker": (
        {"conversations": [HUMAN, BOT]},
        {"conversations": [{**HUMAN, "from": "alien"}, BOT]},
        "line 2.*'alien'",
    ),
    "a weight in words": (
        CHAT,
        {"messages": [USER, {**ANSWER, "weight": "heavy"}]},
        "line 2.*'weight'.*'heavy'",
    ),
    "a thumb in words": (THUMB, {**THUMB, "label": "maybe"}, "line 2.*'label'.*'maybe'"),
    "calls that are none": (
        CHAT,
        {"messages": [USER, {**ANSWER, "tool_calls": "x"}]},
        "line 2.*message 2",
    ),
    "tools that are none": (CHAT, {**CHAT, "tools": "x"}, "line 2.*'tools'"),
    "no field at all": (PAIR, {}, "line 2.*'chosen'"),
    "another format": (PAIR, CHAT, "rows.jsonl: line 2.*messages"),
    "rows in rows": ({"row": PAIR}, {"row": PAIR}, "rows.jsonl: no format has the fields row"),
    "a misspelt field": (
        {"prompt": "p", "choosen": "a", "rejected": "b"},
        {"prompt": "p", "choosen": "a", "rejected": "b"},
        "'choosen' is unknown. Did you mean 'chosen'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_error_names_line_and_field(tmp_path, name):
    sound, wrong, says = WRONG[name]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(sound), wrong if isinstance(wrong, str) else json.dumps(wrong)]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=says) as caught:
        source(path=str(path), validation=0.0, test=0.0).load("preference")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [
        [SCORED, {**SCORED, "scores": ["1", "2"]}],
        [CHAT, {"messages": json.dumps(CHAT["messages"])}],
        [PAIR, {**PAIR, "source": None}],
        [PAIR, {**PAIR, "prompt": ""}],
        [PAIR, {**PAIR, "extra": {"deep": [[[None]]]}}],
    ],
    ids=["numbers as text", "messages as text", "a null beside", "an empty prompt", "deep meta"],
)
def test_what_is_clear_all_the_same_is_read(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert len(source(path=str(path), validation=0.0, test=0.0).load("preference")) == 2
