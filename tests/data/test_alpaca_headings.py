"""Alpaca's prompts, with and without an input, as Stanford wrote them."""

from __future__ import annotations

import pytest
from table_sources import source, write

from alignlab.errors import DataError

# The two prompts letter by letter, from the project's own repository (train.py, PROMPT_DICT).
WITHOUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName a river.\n\n### Response:"
)
WITH = (
    "Below is an instruction that describes a task, paired with an input that provides further"
    " context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nTranslate {x}.\n\n### Input:\nle chat\n\n### Response:"
)


def groups(tmp_path, rows, **changes):
    path = write(tmp_path / "rows.jsonl", rows)
    data = source(path=path, style="alpaca", validation=0.0, test=0.0, **changes)
    return sorted(data.load("sft"), key=lambda g: g.completions)


def test_the_two_prompts(tmp_path):
    rows = [
        {"instruction": "Name a river.", "input": "", "output": "a Rhine"},
        {"instruction": "Translate {x}.", "input": "le chat", "output": "b cat"},
    ]
    made = groups(tmp_path, rows)
    assert [g.prompt for g in made] == [WITHOUT, WITH]
    assert [g.completions for g in made] == [("a Rhine",), ("b cat",)]  # at once after the colon


def test_blank_inputs_have_no_heading_and_dollys_context_has(tmp_path):
    blank = {"instruction": "Name a river.", "input": " \n", "output": "a"}
    assert groups(tmp_path, [blank])[0].prompt == WITHOUT
    dolly = {"instruction": "Translate {x}.", "context": "le chat", "response": "b"}
    assert groups(tmp_path, [dolly])[0].prompt == WITH


def test_pairs_and_plain_prompts_have_the_headings_too(tmp_path):
    pair = {"instruction": "Translate {x}.", "input": "le chat", "chosen": "a", "rejected": "b"}
    [made] = groups(tmp_path, [pair])
    assert (made.prompt, made.completions) == (WITH, ("a", "b"))
    asked = {"prompt": "Name a river.", "completion": "c"}
    assert groups(tmp_path, [asked])[0].prompt == WITHOUT


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": r, "content": "c"} for r in ("user", "assistant")]}, "convers"),
        ({"instruction": "i", "input": "", "output": "o", "system": "s"}, "no place for"),
        ({"text": "a text"}, "needs a prompt"),
    ],
)
def test_what_has_no_headings_is_refused_with_its_place(tmp_path, row, message):
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 1.*{message}"):
        groups(tmp_path, [row])
