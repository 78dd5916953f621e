"""Strict and loose verdicts of whole prompts."""

from __future__ import annotations

from typing import Any

import pytest

from alignlab.data.group import PromptGroup
from alignlab.errors import DataError
from alignlab.evaluation.instructions import (
    _rows,
    instructions_of,
    judge,
    known_ids,
    variants,
)

COMMA = ("punctuation:no_comma", {})
QUOTE = ("startend:quotation", {})
TITLE = ("detectable_format:title", {})
UNKNOWN = ("words:start_verb", {})


def test_loose_forgives_a_first_line_and_asterisks() -> None:
    text = 'Sure, here it is:\n"No comma"'
    assert judge(text, [COMMA, QUOTE]) == ([False, False], [True, True], [])
    assert judge('*"so"*', [QUOTE]) == ([False], [True], [])
    assert judge("a, b\nc, d", [COMMA])[1] == [False]


def test_variants_by_hand() -> None:
    assert variants("a\n*b*\nc") == [
        "a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*",
        "a\nb\nc", "b\nc", "a\nb", "b",
    ]  # fmt: skip


def test_what_nobody_can_check_is_neither_right_nor_wrong() -> None:
    strict, loose, unknown = judge("no title", [COMMA, UNKNOWN])
    assert (strict, loose) == ([True, None], [True, None])
    assert unknown == ["words:start_verb (no checker)"]
    rows = _rows("i", "p", "no title", strict, loose)
    assert [(r.metric, r.value) for r in rows] == [
        ("instruction_strict", 1.0),
        ("instruction_loose", 1.0),
    ]  # no verdict on the prompt


def test_a_prompt_is_right_if_all_its_instructions_are() -> None:
    strict, loose, _ = judge("no title", [COMMA, TITLE])
    values = {(r.metric, r.value) for r in _rows("i", "p", "t", strict, loose)}
    assert values == {
        ("prompt_strict", 0.0), ("prompt_loose", 0.0),
        ("instruction_strict", 1.0), ("instruction_strict", 0.0),
        ("instruction_loose", 1.0), ("instruction_loose", 0.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "instruction_id_list"),
        ({"instruction_id_list": ["a"]}, "kwargs"),
        ({"instruction_id_list": ["a"], "kwargs": [{}, {}]}, "kwargs"),
    ],
)
def test_rows_without_instructions_are_refused(meta: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        instructions_of(PromptGroup("p", meta=meta))


def test_ids_and_arguments_are_read() -> None:
    meta = {"instruction_id_list": ["a:b", "c:d"], "kwargs": [{"n": 1}, None]}
    assert instructions_of(PromptGroup("p", meta=meta)) == [("a:b", {"n": 1}), ("c:d", {})]
    assert len(known_ids()) == 25 + 55  # every one of IFBench but two
