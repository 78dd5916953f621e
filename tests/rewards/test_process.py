"""Scores of steps and what is made of them, by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from alignlab.compose import compose
from alignlab.errors import ConfigError
from alignlab.rewards.process import ProcessReward, prefixes
from alignlab.spec import Spec, parse

LENGTH = Spec("alignlab.rewards.length.Length", {"target_words": 4})
TEXT = "one\ntwo three\n\nfour\n"


class Logits:
    """Gives the completion's last line, read as a number, and remembers what it was asked."""

    name = "logits"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Mapping[str, Any]]] = []

    def score(self, prompts: Sequence[str], completions: Sequence[str], meta: Any) -> np.ndarray:
        self.asked += zip(prompts, completions, meta, strict=True)
        return np.array([float(c.strip().split("\n")[-1]) for c in completions], np.float32)


def process(combine: str, inner: Any) -> ProcessReward:
    made = ProcessReward(reward=LENGTH, separator="\n", combine=combine)
    made.__dict__["_inner"] = inner
    return made


def test_a_solution_up_to_the_end_of_each_step():
    assert prefixes(TEXT, "\n") == ["one", "one\ntwo three", "one\ntwo three\n\nfour"]
    assert prefixes("one", "\n") == ["one"]
    assert prefixes("", "\n") == [""]
    assert prefixes(" \n ", "\n") == [" \n "]
    assert prefixes("a; b", "; ") == ["a", "a; b"]


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        # logits [1, −2, 0.5] and [3]
        ("min", [sigma(-2), sigma(3)]),
        ("product", [sigma(1) * sigma(-2) * sigma(0.5), sigma(3)]),
        ("mean", [(sigma(1) + sigma(-2) + sigma(0.5)) / 3, sigma(3)]),
        ("last", [sigma(0.5), sigma(3)]),
    ],
)
def test_the_steps_are_combined_by_hand(combine: str, expected: list[float]) -> None:
    inner = Logits()
    found = process(combine, inner).score(["p", "q"], ["1\n-2\n0.5", "3"], [{"n": 1}, {"n": 2}])
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert inner.asked == [
        ("p", "1", {"n": 1}),
        ("p", "1\n-2", {"n": 1}),
        ("p", "1\n-2\n0.5", {"n": 1}),
        ("q", "3", {"n": 2}),
    ]


def test_far_logits_stay_probabilities():
    found = process("product", Logits()).score(["p"] * 2, ["800\n-800", "800\n800"], [{}] * 2)
    assert found.tolist() == [0, 1]


def test_nothing_to_score():
    assert process("min", Logits()).score([], [], []).shape == (0,)


def test_a_separator_is_needed_and_everything_is_in_the_fingerprint():
    with pytest.raises(ConfigError, match="separator is empty"):
        ProcessReward(reward=LENGTH, separator="", combine="min")
    made = [
        ProcessReward(reward=LENGTH, separator=s, combine=c)
        for s, c in (("\n", "min"), ("\n", "last"), ("\n\n", "min"))
    ]
    assert len({one.fingerprint() for one in made}) == 3
    assert made[0].name == "min of steps by length_4"


def test_the_yaml_reads_a_run():
    stated = compose(["pipeline=sft", "reward@gold=process", "gold.reward.run=reward-abc"])["gold"]
    found = parse(stated, "gold")
    assert found.arguments["separator"] == "\n"
    assert found.arguments["reward"].arguments["run"] == "reward-abc"
