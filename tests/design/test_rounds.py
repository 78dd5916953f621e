"""Rounds: what is repeated, what reads what, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignlab.compose import compose
from alignlab.design.draft import Draft
from alignlab.design.rounds import with_rounds
from alignlab.errors import ConfigError
from alignlab.plan import Plan
from alignlab.run import Store

ROUNDS = {
    "count": 3,
    "repeat": ["sample", "policy"],
    "carry": {"sample.policy": "policy", "policy.init": "policy"},
    "advance": {"sample.seed": 1000, "sample.skip": 24},
}


def stages() -> dict[str, Any]:
    """A pipeline in which a policy is sampled from, trained on what it said, and evaluated."""
    objective = {"_target_": "alignlab.objectives.pairwise.dpo", "beta": 0.1}
    kinds = {"sample": "annotate.Annotate", "policy": "preference.Preference"}
    return {
        "sft": {"_target_": "alignlab.stages.sft.SFT", "inputs": {}, "seed": 3, "label": None},
        "sample": {
            "_target_": f"alignlab.stages.{kinds['sample']}",
            "inputs": {"policy": "sft", "reward": "reward"},
            "seed": 3,
            "label": None,
            "skip": None,
        },
        "policy": {
            "_target_": f"alignlab.stages.{kinds['policy']}",
            "inputs": {"init": "sft", "reference": "sft", "annotations": "sample"},
            "seed": 3,
            "label": None,
            "objective": objective,
        },
        "evaluate": {
            "_target_": "alignlab.stages.evaluate.Evaluate",
            "inputs": {"policy": "policy", "reference": "sft"},
            "seed": 3,
            "label": None,
        },
    }


def test_three_rounds_by_hand() -> None:
    given = stages()
    found = with_rounds(Draft(given), ROUNDS).stages
    assert {name: node["inputs"] for name, node in found.items()} == {
        "sft": {},
        "evaluate": {"policy": "policy,round=3", "reference": "sft"},
        "sample": {"policy": "sft", "reward": "reward"},
        "policy": {"init": "sft", "reference": "sft", "annotations": "sample"},
        "sample,round=2": {"policy": "policy", "reward": "reward"},
        "policy,round=2": {"init": "policy", "reference": "sft", "annotations": "sample,round=2"},
        "sample,round=3": {"policy": "policy,round=2", "reward": "reward"},
        "policy,round=3": {
            "init": "policy,round=2",
            "reference": "sft",
            "annotations": "sample,round=3",
        },
    }
    samples = [found[name] for name in ("sample", "sample,round=2", "sample,round=3")]
    assert [node["seed"] for node in samples] == [3, 1003, 2003]
    assert [node["skip"] for node in samples] == [None, 24, 48]
    assert found["policy,round=3"]["seed"] == 3
    assert found["policy"] == given["policy"]  # the first round is the pipeline's, key and all
    labels = [found[f"policy{which}"]["label"] for which in ("", ",round=2", ",round=3")]
    assert labels == [None, "DPO, round 2", "DPO, round 3"]
    assert found["sample,round=2"]["label"] is None


def test_one_round_is_the_pipeline() -> None:
    assert with_rounds(Draft(stages()), {**ROUNDS, "count": 1}).stages == stages()


def test_a_stage_that_reads_a_repeated_one_may_be_repeated_too() -> None:
    rounds = {**ROUNDS, "count": 2, "repeat": ["sample", "policy", "evaluate"]}
    found = with_rounds(Draft(stages()), rounds).stages
    assert found["evaluate"]["inputs"]["policy"] == "policy"
    assert found["evaluate,round=2"]["inputs"] == {"policy": "policy,round=2", "reference": "sft"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeat": ["sampel", "policy"]}, r"rounds.repeat: .*'sampel'.*Did you mean 'sample'"),
        ({"carry": {"sample.policy": "sft"}}, r"rounds.carry.sample.policy: .*'sft'"),
        ({"carry": {"sample.polici": "policy"}}, r"no input 'polici' \(it has: policy, reward\)"),
        ({"carry": {"evaluate.policy": "policy"}}, r"rounds.carry.evaluate.policy: .*'evaluate'"),
        ({"advance": {"sample.sed": 1}}, r"rounds.advance.sample.sed.*Did you mean 'seed'"),
        ({"advance": {"simple.seed": 1}}, r"rounds.advance.simple.seed.*Did you mean 'sample'"),
        ({"count": 0}, "rounds.count"),
        ({"cuont": 2}, "Did you mean 'count'"),
    ],
)
def test_what_is_not_there_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_rounds(Draft(stages()), {**ROUNDS, **changes})


def plan(tmp_path: Path, *overrides: str) -> Plan:
    given = ["pipeline=iterative_preference", "experiment=smoke", *overrides]
    return Plan.from_configs([compose(given)], Store(tmp_path))


@pytest.mark.slow
def test_a_longer_study_shares_the_rounds_of_a_shorter_one(tmp_path: Path) -> None:
    two = plan(tmp_path, "rounds.count=2").nodes
    three = plan(tmp_path, "rounds.count=3").nodes
    assert set(two) < set(three)
    assert sorted(three[name].kind for name in set(three) - set(two)) == [
        "annotate",
        "evaluate",
        "preference",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search=default", "search: stages in rounds"),
        ("grid={policy: {objective.beta: [0.1, 0.2]}}", "grid.policy: the stage is repeated"),
    ],
)
def test_rounds_are_varied_all_together(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, override)
    assert len(plan(tmp_path, "grid={sft: {seed: [0, 1]}}").nodes) == 2 * 10
