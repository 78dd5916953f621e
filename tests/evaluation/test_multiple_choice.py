"""Questions and their right choices in the spellings of known sets, and the three metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from alignlab.errors import DataError
from alignlab.evaluation.multiple_choice import MultipleChoice, Question, rows_of

SETS: list[tuple[dict[str, Any], dict[str, Any], tuple[str, ...], int]] = [
    ({}, {"ctx": "Sky?", "endings": ["blue", "red"], "label": "1"}, ("blue", "red"), 1),
    (
        {"question": "question", "choices": ("choices",), "answer": "answerKey"},
        {
            "question": "Sky?",
            "choices": {"text": ["blue", "red"], "label": ["1", "2"]},
            "answerKey": "2",
        },
        ("blue", "red"),
        1,
    ),
    (
        {"question": "goal", "choices": ("sol1", "sol2")},
        {"goal": "Sky?", "sol1": "blue", "sol2": "red", "label": 0},
        ("blue", "red"),
        0,
    ),
    (
        {
            "question": "sentence",
            "choices": ("option1", "option2"),
            "answer": "answer",
            "answer_from": 1,
        },
        {"sentence": "Sky?", "option1": "blue", "option2": "red", "answer": "1"},
        ("blue", "red"),
        0,
    ),
    (
        {"answer": "key"},
        {"ctx": "Sky?", "endings": ["blue", "red"], "key": "B"},
        ("blue", "red"),
        1,
    ),
    ({"answer": "key"}, {"ctx": "S", "endings": ["blue", "red"], "key": "red"}, ("blue", "red"), 1),
]


def task(path: Path, rows: list[dict[str, Any]], **changes: Any) -> MultipleChoice:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fields: dict[str, Any] = {
        "question": "ctx", "choices": ("endings",), "answer": "label", "answer_from": 0,
        "frame": "{question}", "delimiter": " ", "items": None,
    }  # fmt: skip
    return MultipleChoice(path=str(path), **{**fields, **changes})


@pytest.mark.parametrize(("fields", "row", "choices", "answer"), SETS)
def test_rows_of_known_sets(
    fields: dict[str, Any],
    row: dict[str, Any],
    choices: tuple[str, ...],
    answer: int,
    tmp_path: Path,
) -> None:
    [found] = task(tmp_path / "rows.jsonl", [row], **fields).questions()
    assert (found.choices, found.answer) == (choices, answer)


def test_frame_and_number_of_items(tmp_path: Path) -> None:
    rows = [{"ctx": f"Sky {n}?", "endings": ["blue", "red"], "label": 0} for n in range(3)]
    made = task(tmp_path / "rows.jsonl", rows, frame="Q: {question}\nA:", items=2)
    assert [q.prompt for q in made.questions()] == ["Q: Sky 0?\nA:", "Q: Sky 1?\nA:"]
    ids = [q.id for q in made.questions()]
    assert len(set(ids)) == 2
    assert ids == [q.id for q in made.questions()]  # the same for every policy
    with pytest.raises(DataError, match=r"\{question\}"):
        task(tmp_path / "rows.jsonl", rows, frame="Q:")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ctx": "S", "endings": ["a", "b"], "label": 2}, "neither an index"),
        ({"ctx": "S", "endings": ["a", "b"], "label": "C"}, "neither an index"),
        ({"ctx": "S", "endings": ["a"], "label": 0}, "two choices"),
        ({"ctx": "S", "endings": "a b", "label": 0}, "list of choices"),
        ({"ctx": "S", "ending": ["a", "b"], "label": 0}, "endings"),
    ],
)
def test_a_row_that_is_wrong_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {"ctx": "Sky?", "endings": ["blue", "red"], "label": 0}
    with pytest.raises(DataError, match=f"line 2.*{message}"):
        task(tmp_path / "rows.jsonl", [good, row]).questions()


def test_the_metrics_by_hand() -> None:
    question = Question("q", "Sky?", ("blue", "redder!!"), 1)
    # the first is likelier, but per character the second: −4 / 4 against −4.8 / 8
    acc, norm, brier = rows_of(question, [-4.0, -4.8])
    assert (acc.metric, acc.value, acc.completion) == ("acc", 0.0, "blue")
    assert (norm.metric, norm.value) == ("acc_norm", 1.0)
    p = 1 / (1 + math.exp(-0.8))  # of the first choice
    assert brier.value == pytest.approx(2 * p**2)


def test_of_equals_the_first_is_chosen() -> None:
    acc, *_ = rows_of(Question("q", "S", ("a", "b"), 0), [-1.0, -1.0])
    assert acc.value == 1.0
