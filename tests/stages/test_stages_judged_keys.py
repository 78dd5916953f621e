"""Keys of stages that a judge scores for: another judge is another run."""

from __future__ import annotations

import pytest
from stage_lab import Lab

from alignlab.rewards.judge.reward_judge import RewardJudge

LENGTH = {"_target_": "alignlab.rewards.length.Length", "target_words": 3}
JUDGE = {
    "_target_": "alignlab.rewards.judge.reward_judge.RewardJudge",
    "reward": LENGTH,
    "margin": 0.0,
}
REWARD = {
    "_target_": "alignlab.rewards.judge.reward.JudgeReward",
    "judge": JUDGE,
    "against": "others",
}
ANNOTATOR = {
    "_target_": "alignlab.rewards.judge.annotator.JudgeAnnotator",
    "judge": JUDGE,
    "aggregation": "copeland",
}
NAMED = {"init": "sft", "reference": "sft"}
STAGES = {
    "grpo": ("grpo", {"inputs": NAMED, "reward": REWARD}),
    "ppo": ("ppo", {"inputs": NAMED, "reward": REWARD}),
    "online": ("online_dpo", {"inputs": NAMED, "reward": REWARD}),
    "monitor": ("grpo", {"inputs": {**NAMED, "reward": "reward"}, "monitor": REWARD}),
    "gold": ("evaluate_sft", {"gold": REWARD}),
    "audit": ("evaluate_sft", {"audit": REWARD}),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.make(tmp_path_factory.mktemp("judged"))


@pytest.mark.slow
@pytest.mark.parametrize("where", [*STAGES])
def test_what_a_judge_is_beside_its_fields_is_in_the_key(
    where: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the files of a local judge's model, which change without any field changing."""
    name, changes = STAGES[where]
    stage = lab.stage(name, **changes)
    before = stage.fingerprint()
    assert before == lab.stage(name, **changes).fingerprint()
    monkeypatch.setattr(RewardJudge, "fingerprint", lambda self: "other files")
    assert stage.fingerprint() != before


def test_stages_without_a_judge_are_named_as_before(lab: Lab) -> None:
    data = lab.stage("sft").fingerprint()
    for name in ("grpo", "ppo", "evaluate_sft"):
        assert lab.stage(name).fingerprint() == data  # data and base model alone


def test_an_annotating_judge_is_named_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "alignlab.rewards.judge.annotator.JudgeAnnotator.fingerprint", lambda self: "the judge"
    )
    found = lab.stage("annotate", annotator=ANNOTATOR).fingerprint()
    assert found == f"{lab.stage('annotate').fingerprint()} the judge"
