from __future__ import annotations

import pytest
from format_rows import A, U, group, share

from alignlab.data.formats.registry import detect, read
from alignlab.errors import DataError


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "choosen": "a", "rejected": "b"}, "'choosen'.*Did you mean 'chosen'"),
        (
            {"prompt": "p", "rejected": "b"},
            "'prompt' and 'rejected' are there, but chosen is missing",
        ),
        (
            {"prompt": "p", "chosen": "b"},
            "'chosen' and 'prompt' are there, but rejected is missing",
        ),
        ({"prompt": "p", "completions": "b", "scores": [1]}, "Did you mean 'completion'"),
        ({"prompt": "p", "completions": 3, "scores": [1]}, "'completions' must be a list of texts"),
        ({"completion": "b"}, "prompt is missing"),
        ({"foo": 1, "bar": 2}, "no format has the fields foo, bar.*data.fields.foo=prompt"),
        ({"answer": "q"}, "'answer' is there, but prompt is missing"),
        ({"prompt": 3, "completion": "c"}, "'prompt' must be text or a list of messages"),
        ({"chosen": "x", "rejected": [A]}, "both be text or both be messages"),
        ({"prompt": "p", "chosen": [A], "rejected": "x"}, "both be text or both be messages"),
        ({"instruction": "i", "imput": "x", "output": "o"}, "'imput'.*Did you mean 'input'"),
        ({"mesages": [U, A]}, "'mesages'.*data.fields.mesages=messages"),
        ({"prompt": "p", "completion": "c", "lable": True}, "Did you mean 'label'"),
        ({"prompt": "p", "completion": "c", "labels": True}, "'labels' would not be read.*'label'"),
        ({"prompt": "p", "completions": ["c"], "score": [1]}, "Did you mean 'scores'"),
        ({}, r"the fields \(none\)"),
        # which of them is better, nothing says
        ({"instruction": "i", "output": ["a", "b"]}, "'output' must be text or .*; it is a list"),
        (
            {"question": "q", "answer": ["a", "b"]},
            "'answer' must be text or a number; it is a list",
        ),
    ],
)
def test_what_cannot_be_read_says_why(row, message):
    with pytest.raises(DataError, match=message):
        group(row)


def test_what_nearly_fits_is_named():
    with pytest.raises(DataError) as caught:
        detect([{"prompt": "p", "completion": 3, "label": True}])
    said = str(caught.value)
    assert "Nearest is 'unpaired'" in said
    assert "'completion' must be text or a list of messages; it is a number" in said
    assert "'prompt_completion'" in said


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"problem": "p", "solution": "s", "messages": [U, A]}, ("messages", "worked_solution")),
        (
            {"instruction": "i", "response": "r", "conversations": share(("human", "i"))},
            ("alpaca", "sharegpt"),
        ),
        ({"prompt": "p", "text": "t"}, ("prompt_only", "text")),
        (
            {"prompt": "p", "completion": "c", "chosen": "a", "rejected": "b", "label": 1},
            ("preference", "unpaired"),
        ),
    ],
)
def test_an_ambiguous_row_names_what_it_could_be(row, names):
    with pytest.raises(DataError, match="row 1 fits several formats") as caught:
        detect([row])
    assert all(f"'{name}' (by " in str(caught.value) for name in names)
    assert "data.format=" in str(caught.value)
    for name in names:  # stated, each of them reads it
        assert read(name, row)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "p", "messages": [U, A]}, "messages"),  # UltraChat
        ({"prompt": "p", "completion": "c", "text": "pc"}, "prompt_completion"),
        ({"instruction": "i", "output": "o"}, "alpaca"),
        ({"instruction": "i", "input": ""}, "prompt_only"),
        ({"text": "t", "label": 1}, "text"),
        ({"question": "q", "answer": "a", "solution": "s"}, "worked_solution"),
        (
            {"question": "q", "ground_truth": "a", "m": {"solution": "s", "is_correct": 1}},
            "solutions",
        ),
        ({"prompt": [U], "answer": 4}, "question_answer"),
        ({"turns": ["q", "q2"]}, "prompt_turns"),
        ({"prompt": "p", "completion": "c", "responses": ["x"]}, "prompt_completion"),
        ({"prompt": "p", "completion": "c", "label": None, "chosen": None}, "prompt_completion"),
    ],
)
def test_the_format_that_explains_the_others_is_taken(row, name):
    assert detect([row]) == name
    assert detect([dict(reversed(row.items()))]) == name  # whatever the order of the fields


def test_the_first_row_of_another_format_is_named():
    rows = [{"instruction": "i", "output": "o"}] * 3 + [{"messages": [U, A]}]
    with pytest.raises(DataError, match="row 4 looks like 'messages' and row 1 like 'alpaca'"):
        detect(rows)
    with pytest.raises(DataError, match="line 9 looks like 'messages' and line 2 like 'alpaca'"):
        detect(rows, ["line 2", "line 3", "line 5", "line 9"])


def test_alpaca_without_an_output_is_not_a_prompt_beside_answers():
    rows = [{"instruction": "i", "output": "o"}, {"instruction": "i", "output": None}]
    with pytest.raises(DataError, match="row 2 looks like 'prompt_only'"):
        detect(rows)
    with pytest.raises(DataError, match=r"no 'output' .*which the format 'alpaca' needs"):
        read("alpaca", rows[1])


def test_a_broken_row_among_good_ones_is_left_to_the_reading_of_that_row():
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert detect([pair, {"prompt": "p", "chosen": "a"}, pair]) == "preference"
    with pytest.raises(DataError, match="no 'rejected'"):
        read("preference", {"prompt": "p", "chosen": "a"})


def test_a_row_that_looks_like_another_format_says_so():
    with pytest.raises(DataError, match=r"no 'messages'.*looks like 'alpaca'.*data.format=alpaca"):
        read("messages", {"instruction": "i", "output": "o"})


def test_a_row_without_a_needed_field():
    with pytest.raises(DataError, match=r"no 'completion'.*, which.*Did you mean 'complation'"):
        read("prompt_completion", {"prompt": "p", "complation": "c"})


def test_no_rows():
    with pytest.raises(DataError, match="there are no rows"):
        detect([])
