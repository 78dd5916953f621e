"""A judge as a reward: wins against a reference, or against the other completions of the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from judge_cases import Taste, always_first, longer

from alignlab.compose import compose
from alignlab.errors import ConfigError, DataError
from alignlab.rewards.judge.asking import Asker
from alignlab.rewards.judge.reward import JudgeReward
from alignlab.rewards.reward import outside
from alignlab.spec import Spec, parse

LEXICON: dict[str, Any] = {"_target_": "alignlab.rewards.lexicon.Vader", "part": "completion"}
JUDGE = Spec(
    "alignlab.rewards.judge.reward_judge.RewardJudge",
    {"reward": parse(LEXICON, "reward"), "margin": 0.0},
)


def reward(against: str, judge: Taste, folder: Path) -> JudgeReward:
    made = JudgeReward(judge=JUDGE, against=against)
    made.__dict__["_asker"] = Asker(judge, folder)
    return made


def test_against_the_reference_by_hand(tmp_path: Path) -> None:
    judge = Taste(longer)
    made = reward("reference", judge, tmp_path)
    meta = [{"reference": "four"}] * 3
    assert made.score(["p"] * 3, ["longer", "four", "no"], meta).tolist() == [1, 0.5, 0]
    assert len(judge.asked) == 4  # both orders of two matches; equal texts tie unasked
    with pytest.raises(DataError, match="no field 'reference'"):
        made.score(["p"], ["x"], [{}])


def test_a_judge_of_positions_gives_everybody_a_half(tmp_path: Path) -> None:
    made = reward("reference", Taste(always_first), tmp_path)
    assert made.score(["p"] * 2, ["a", "bb"], [{"reference": "c"}] * 2).tolist() == [0.5, 0.5]


def test_a_match_without_a_verdict_is_a_half(tmp_path: Path) -> None:
    made = reward("reference", Taste(lambda question: "none"), tmp_path)
    assert made.score(["p"], ["a"], [{"reference": "c"}]).tolist() == [0.5]


def test_against_the_others_of_the_same_prompt_by_hand(tmp_path: Path) -> None:
    made = reward("others", Taste(longer), tmp_path)
    prompts = ["p", "q", "p", "q", "p"]
    texts = ["aaa", "x", "a", "yy", "aa"]
    # p: aaa beats both, aa beats a; q: yy beats x
    assert made.score(prompts, texts, [{}] * 5).tolist() == [1, 0, 0, 1, 0.5]
    with pytest.raises(ConfigError, match="one completion alone"):
        made.score(["p", "q", "p"], ["a", "b", "c"], [{}] * 3)
    spent = made.spent()
    assert spent["questions"] == 8  # (3 + 1) matches in both orders


def test_a_real_judge_is_built_and_named() -> None:
    made = JudgeReward(judge=JUDGE, against="others")
    found = made.score(["p"] * 2, ["a wonderful film", "an awful film"], [{}] * 2)
    assert found.tolist() == [1, 0]
    assert made.name.endswith("against others")
    assert made.fingerprint() != JudgeReward(judge=JUDGE, against="reference").fingerprint()
    assert made.score([], [], []).shape == (0,)


def test_the_yaml_and_the_fingerprint_of_who_judges() -> None:
    stated = compose(["pipeline=sft", "reward@gold=judge", "judge=lexicon"])["gold"]
    found = parse(stated, "gold")
    assert found.arguments["against"] == "others"
    assert found.arguments["judge"].target.endswith("RewardJudge")
    inside = Spec("alignlab.rewards.annotator.Annotator", {"reward": found})
    assert len(outside(inside)) == 1
