"""Prompts that reasoning-gym makes: split without overlap, scored by the package itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alignlab.compose import compose
from alignlab.data.gate.repetition_checks import plain
from alignlab.data.sources import reasoning_gym as gym
from alignlab.data.sources.reasoning_gym import ReasoningGym
from alignlab.errors import ConfigError, DataError
from alignlab.rewards.reasoning_gym import ReasoningGymScore, answer_of
from alignlab.spec import build, parse

SUMS = {"basic_arithmetic": {"min_terms": 2, "max_terms": 2, "max_digits": 1}}


class Sums:
    """Stands in for the package's task: sums of two digits, so that many prompts are copies."""

    def __init__(self, seed: int, size: int, most: int) -> None:
        self.seed, self.size, self.most = seed, size, most

    def __getitem__(self, index: int) -> dict[str, str]:
        a, b = np.random.default_rng([self.seed, index]).integers(0, self.most, 2).tolist()
        return {"question": f"{a} + {b}?", "answer": str(a + b)}

    def score_answer(self, answer: str | None, entry: dict[str, str]) -> float:
        return 1.0 if answer == entry["answer"] else 0.25 if answer else 0.0


@pytest.fixture
def stand_in(monkeypatch):
    made = {"basic_arithmetic": lambda options, seed, size: Sums(seed, size, 10)}

    def dataset(task, options, seed, size):
        return made[task](options, seed, size)

    monkeypatch.setattr(gym, "dataset", dataset)
    monkeypatch.setattr("alignlab.rewards.reasoning_gym.dataset", dataset)


def source(**changes) -> ReasoningGym:
    fields = {"tasks": SUMS, "seed": 0, "size": 80, "validation": 0.1, "test": 0.2, "limit": {}}
    return ReasoningGym(**{**fields, **changes})


def test_no_prompt_is_in_two_splits_and_none_twice(stand_in):
    data = source()
    prompts = {
        s: [plain(str(g.prompt)) for g in data.load(s)] for s in ("sft", "validation", "test")
    }
    every = [prompt for found in prompts.values() for prompt in found]
    assert len(every) == len(set(every))
    assert all(prompts.values())
    assert [g.prompt for g in data.load("preference")] == [g.prompt for g in data.load("sft")]
    assert [g.prompt for g in source(size=40).load("sft")] == [
        g.prompt for g in data.load("sft") if g.meta["gym"]["index"] < 40
    ]  # more rows move none
    assert len(source(limit={"sft": 3}).load("sft")) == 3


def test_training_prompts_are_bare_and_the_others_show_the_answer(stand_in):
    data = source()
    bare, shown = data.load("unlabeled")[0], data.load("sft")[0]
    assert bare.completions == ()
    assert shown.completions == (bare.meta["answer"],)
    [text] = data.load("pretrain")[0].completions
    assert text == f"{shown.prompt}{shown.completions[0]}"
    json.dumps(dict(bare.meta))  # annotate writes it


def test_answers_are_scored_by_the_task(stand_in):
    groups = source().load("unlabeled")[:3]
    right = [f"Let me see.\n{g.meta['answer']} " for g in groups]
    meta = [g.meta for g in groups]
    prompts = [str(g.prompt) for g in groups]
    assert ReasoningGymScore(read="last_line").score(prompts, right, meta).tolist() == [1, 1, 1]
    given = [right[0], "-7", ""]
    assert ReasoningGymScore(read="last_line").score(prompts, given, meta).tolist() == [1, 0.25, 0]
    with pytest.raises(DataError, match="no field 'gym'"):
        ReasoningGymScore(read="whole").score(["p"], ["c"], [{"answer": "1"}])


def test_where_the_answer_stands():
    text = "a <answer>1</answer> no: <answer> 2 </answer>\nDone."
    assert answer_of(text, "tagged") == "2"
    assert answer_of("I think <answer>3", "tagged") == "3"
    assert answer_of("3", "tagged") is None
    assert answer_of(text, "last_line") == "Done."
    assert answer_of(" \n", "last_line") is None
    assert answer_of(" 3 \n", "whole") == "3"


def test_without_the_package_it_says_what_to_install():
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"alignlab\[reasoning\]"):
            source().fingerprint()


def test_the_package_itself():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    data = build(parse(compose(["data=reasoning_gym", "data.size=40"])["data"], "data"))
    groups = data.load("unlabeled")
    assert [g.prompt for g in groups] == [g.prompt for g in data.load("preference")]
    assert len(data.fingerprint()) == 64
    reward = build(parse(compose(["reward@gold=reasoning_gym"])["gold"], "gold"))
    prompts, meta = [str(g.prompt) for g in groups], [g.meta for g in groups]
    right = [str(g.meta["answer"]) for g in groups]
    assert reward.score(prompts, right, meta).tolist() == [1.0] * len(groups)
    assert reward.score(prompts, ["no idea"] * len(groups), meta).max() < 1
    with pytest.raises(ConfigError, match="Did you mean 'basic_arithmetic'"):
        source(tasks={"basic_arithmetics": {}}).load("sft")
    with pytest.raises(ConfigError, match="basic_arithmetic"):
        source(tasks={"basic_arithmetic": {"no_option": 1}}).load("sft")
