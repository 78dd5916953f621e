"""Assessments: for every evaluation a judge, for every policy a benchmark, and nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignlab.compose import compose
from alignlab.design.assess import assessment_name, with_assessments
from alignlab.design.draft import Draft
from alignlab.errors import ConfigError
from alignlab.plan import Plan
from alignlab.run import Store

JUDGE = {"_target_": "alignlab.stages.judge.Judge", "inputs": {}, "repeats": 3}
BENCHMARK = {"_target_": "alignlab.stages.benchmark.Benchmark", "inputs": {}}
REWARD = {"_target_": "alignlab.stages.reward_benchmark.RewardBenchmark", "inputs": {}}
EVALUATE = "alignlab.stages.evaluate.Evaluate"


def evaluation(policy: str, reference: str = "sft", **fields: Any) -> dict[str, Any]:
    inputs = {"policy": policy, "reference": reference}
    return {"_target_": EVALUATE, "split": "test", "best_of": 1, "inputs": inputs, **fields}


STAGES: dict[str, Any] = {
    "sft": {"_target_": "alignlab.stages.sft.SFT", "inputs": {}},
    "reward": {
        "_target_": "alignlab.stages.reward.Reward",
        "inputs": {"init": "sft", "annotations": "annotate"},
    },
    "dpo": {"_target_": "alignlab.stages.preference.Preference", "inputs": {"init": "sft"}},
    "evaluate_sft": evaluation("sft"),
    "evaluate_best_of_n": evaluation("sft", best_of=4),
    "evaluate_dpo": evaluation("dpo"),
    "evaluate_dpo,beta=1": evaluation("dpo"),
    "validate_dpo,trial=1": evaluation("dpo", split="validation"),
}


def added(stages: dict[str, Any], assess: Any) -> dict[str, dict[str, str]]:
    found = with_assessments(Draft(stages), assess).stages
    assert all(found[name] is node for name, node in stages.items())
    return {name: dict(node["inputs"]) for name, node in found.items() if name not in stages}


def test_every_tested_evaluation_is_judged_against_that_of_sft() -> None:
    assert added(STAGES, {"judge": JUDGE}) == {
        "judge_best_of_n": {"samples": "evaluate_best_of_n", "opponent": "evaluate_sft"},
        "judge_dpo": {"samples": "evaluate_dpo", "opponent": "evaluate_sft"},
        "judge_dpo,beta=1": {"samples": "evaluate_dpo,beta=1", "opponent": "evaluate_sft"},
    }


def test_a_template_keeps_its_fields_and_its_own_inputs() -> None:
    template = {**JUDGE, "inputs": {"opponent": "evaluate_best_of_n", "judge": "reward"}}
    found = with_assessments(Draft(STAGES), {"judge": template}).stages
    assert found["judge_dpo"] == {
        **JUDGE,
        "inputs": {
            "samples": "evaluate_dpo",
            "opponent": "evaluate_best_of_n",
            "judge": "reward",
        },
    }
    assert "judge_sft" in found  # against an opponent of its own, SFT is of interest
    assert "judge_best_of_n" not in found
    assert template["inputs"] == {"opponent": "evaluate_best_of_n", "judge": "reward"}


def test_without_an_evaluation_of_sft_the_answers_of_the_data_are_the_opponent() -> None:
    stages = {name: node for name, node in STAGES.items() if name != "evaluate_sft"}
    assert added(stages, {"judge": JUDGE})["judge_dpo"] == {"samples": "evaluate_dpo"}


def test_references_that_differ_have_their_own_opponents() -> None:
    stages = {
        "evaluate_sft,rows=1": evaluation("sft,rows=1", "sft,rows=1"),
        "evaluate_sft,rows=2": evaluation("sft,rows=2", "sft,rows=2"),
        "evaluate_dpo,rows=2": evaluation("dpo,rows=2", "sft,rows=2"),
    }
    assert added(stages, {"judge": JUDGE}) == {
        "judge_dpo,rows=2": {"samples": "evaluate_dpo,rows=2", "opponent": "evaluate_sft,rows=2"}
    }


def test_every_policy_is_benchmarked_once() -> None:
    assert added(STAGES, {"benchmark": BENCHMARK}) == {
        "benchmark_sft": {"policy": "sft"},
        "benchmark_dpo": {"policy": "dpo"},
    }


def test_every_reward_stage_is_tested_with_its_annotations() -> None:
    found = added(STAGES, {"reward_benchmark": REWARD, "judge": None})
    assert found == {"reward_benchmark_reward": {"reward": "reward", "annotations": "annotate"}}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("evaluate_dpo", "judge_dpo"),
        ("evaluate", "judge"),
        ("evaluate,beta=1", "judge,beta=1"),
        ("evaluated", "judge_evaluated"),
        ("greedy", "judge_greedy"),
    ],
)
def test_names(source: str, name: str) -> None:
    assert assessment_name("judge", source) == name


@pytest.mark.parametrize(
    ("assess", "parts"),
    [
        ("judge", ["assess:", "expected templates"]),
        ({"jugde": JUDGE}, ["assess.jugde", "Did you mean 'judge'?"]),
        ({"judge": {"inputs": {}}}, ["assess.judge", "/stage@assess.judge"]),
        ({"judge": BENCHMARK}, ["assess.judge", "benchmark stage"]),
    ],
)
def test_refusals_say_where(assess: Any, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        added(STAGES, assess)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_name_that_is_taken_is_refused() -> None:
    stages = {**STAGES, "judge_dpo": {**JUDGE, "inputs": {"samples": "evaluate_dpo"}}}
    with pytest.raises(ConfigError, match="a stage 'judge_dpo' already"):
        added(stages, {"judge": JUDGE})


@pytest.mark.slow
def test_a_design_of_everything_plans(tmp_path: Path) -> None:
    config = compose(
        [
            "pipeline=compare",
            "experiment=smoke",
            "search=default",
            "budget.trials=2",
            "grid={evaluate_best_of_n:{best_of:[2,3]}}",
            "+stage@assess.judge=judge",
            "+stage@assess.benchmark=benchmark",
            "+stage@assess.reward_benchmark=reward_benchmark",
        ]
    )
    plan = Plan.from_configs([config], Store(tmp_path))
    kinds = [node.kind for node in plan.nodes.values()]
    # six methods, two controls of best of n; SFT is the opponent
    assert kinds.count("judge") == 8
    assert kinds.count("benchmark") == 7
    assert kinds.count("reward_benchmark") == 1
    assert kinds.count("select") == 6
    by_name = {node.name: node for node in plan.nodes.values()}
    assert by_name["benchmark_dpo"].parents["policy"] == by_name["dpo"].run
    assert by_name["dpo"].kind == "select"
