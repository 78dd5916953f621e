"""Files that nobody here wrote: each is read whole, in the format that it is of."""

from __future__ import annotations

import pytest

from alignlab.data.formats.registry import detect, read
from alignlab.data.rows.files import read_rows

BENCH = "fastchat-bench/fastchat__llm_judge__data__"
FILES = [  # path, rows, format, kind of verdict, completions
    ("hh-rlhf/harmless-base-part.jsonl.gz", 1500, "preference", "ranking", 2),
    ("gsm8k/train.jsonl.gz", 7473, "question_answer", "demonstration", 1),
    ("gsm8k/test.jsonl.gz", 700, "question_answer", "demonstration", 1),
    ("gsm8k/example_model_solutions.jsonl.gz", 700, "solutions", "thumbs", 4),
    ("ifbench/IFBench_test.jsonl", 294, "prompt_only", "none", 0),
    ("self-instruct/seed_tasks.jsonl", 175, "self_instruct", "demonstration", 1),
    ("self-instruct/user_oriented_instructions.jsonl", 252, "self_instruct", "demonstration", 1),
    (f"{BENCH}mt_bench__question.jsonl", 80, "prompt_turns", "none", 0),
    (f"{BENCH}vicuna_bench__question.jsonl", 80, "prompt_turns", "none", 0),
    (f"{BENCH}mt_bench__reference_answer__gpt-4.jsonl", 30, "model_answers", "demonstration", 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "count", "name", "kind", "completions"), FILES)
def test_files(shared_data, path, count, name, kind, completions):
    file = shared_data / path
    if not file.is_file():
        pytest.skip(f"no {file}")
    rows = [row for _, row in read_rows(file)]
    assert detect(rows) == name
    groups = [read(name, row) for row in rows]
    assert len(groups) == count
    assert {group.verdict.kind for group in groups} == {kind}
    assert {len(group.completions) for group in groups} == {completions}


def test_judge_prompts_with_one_line_of_configuration(shared_data):
    rows = read_rows(shared_data / f"{BENCH}judge_prompts.jsonl")
    renamed = [
        {("prompt" if k == "prompt_template" else k): v for k, v in r.items()} for _, r in rows
    ]
    assert detect(renamed) == "prompt_only"
    assert all(read("prompt_only", row).conversational for row in renamed)  # they have a system
