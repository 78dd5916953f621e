"""A reward function behind ``reward``: best of n, ensembles and annotation go by it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from alignlab.errors import ConfigError
from alignlab.plan import build_stage
from alignlab.rewards.apart import FILE, stands_apart
from alignlab.rewards.trained import TrainedReward
from alignlab.run import Run
from alignlab.stages.annotations import texts_of


def stage(**changes: Any) -> Any:
    node = {
        "_target_": "alignlab.stages.reward_function.RewardFunction",
        "seed": 0,
        "inputs": {"annotations": "annotate"},
        "label": None,
        "reward": {
            "_target_": "alignlab.rewards.verifiable.Contains",
            "words": ["a"],
            "need": "any",
        },
        "normalize": True,
    }
    return build_stage({**node, **changes}, "stages.reward")


@pytest.fixture(scope="module")
def judged(chain) -> Run:
    """The letter a at the end: what the annotations count, as shares of a text's last character."""
    reward = {
        "_target_": "alignlab.rewards.verifiable.Matches",
        "pattern": "aa$",
        "whole": False,
        "ignore_case": False,
    }
    return chain.lab.run(stage(reward=reward), {"annotations": chain.annotations})


@pytest.mark.slow
def test_scores_have_the_unit_of_the_annotations(chain, judged) -> None:
    groups = list(texts_of(chain.annotations, "train"))
    raw = np.array([text.endswith("aa") for group in groups for text in group.completions], float)
    said = json.loads((judged.model_dir / FILE).read_text())
    assert said["mean"] == pytest.approx(raw.mean())
    assert said["std"] == pytest.approx(raw.std(ddof=1))
    assert stands_apart(judged.model_dir)
    # of three completions with 0, 1 and 2 letters two pairs are told apart, and one is a tie
    assert judged.record["summary"]["train_accuracy"] == pytest.approx((1 + 1 + 0.5) / 3)
    reward = TrainedReward(
        run=judged.path.name, store=str(chain.lab.store.root), max_prompt=None,
        max_completion=None, token_budget=64,
    )  # fmt: skip
    found = reward.score(["x"] * 2, ["kaa", "ka"], [{}] * 2)
    wanted = [(value - raw.mean()) / raw.std(ddof=1) for value in (1, 0)]
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.slow
def test_best_of_n_and_ensembles_go_by_it(chain, judged) -> None:
    lab = chain.lab
    inputs = {**chain.inputs("policy", "reference", "reward"), "reward/1": judged}
    names = {"policy": "sft", "reference": "sft", "reward": "reward", "reward/1": "other"}
    only = lab.stage("evaluate_sft", best_of=4, samples=1)
    run = lab.run(only, {**chain.inputs("policy", "reference"), "reward": judged})
    rows = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    said = json.loads((judged.model_dir / FILE).read_text())
    for row in rows:
        raw = float(row["completion"].endswith("aa"))
        assert row["proxy"] == pytest.approx((raw - said["mean"]) / said["std"], abs=1e-5)
    both = lab.stage("evaluate_sft", best_of=1, samples=1, inputs=names)
    assert lab.run(both, inputs).record["summary"]["proxy"] is not None
    stated = lab.stage("grpo", iterations=1, missing_eos_score=None)
    done = lab.run(stated, {**chain.inputs("init", "reference"), "reward": judged})
    assert done.record["rewards"] == [judged.path.name]


def test_what_it_cannot_be_is_refused(chain) -> None:
    with pytest.raises(ConfigError, match=r"no inputs\.annotations"):
        stage(inputs={})
    constant = {
        "_target_": "alignlab.rewards.verifiable.Matches",
        "pattern": "never",
        "whole": False,
        "ignore_case": False,
    }
    with pytest.raises(ConfigError, match="gives all texts the same score"):
        chain.lab.run(stage(reward=constant), {"annotations": chain.annotations})
    benchmark = build_stage(
        {
            "_target_": "alignlab.stages.reward_benchmark.RewardBenchmark",
            "seed": 0,
            "inputs": {"reward": "reward", "annotations": "annotate"},
            "backbone": chain.lab.configs["sft"]["backbone"],
            "sets": {},
            "max_prompt": None,
            "max_completion": None,
        },
        "stages.b",
    )
    with pytest.raises(ConfigError, match="a benchmark needs a reward model"):
        benchmark.accept({"reward": stage(), "annotations": chain.lab.stage("annotate")})
    again = chain.lab.stage("reward", inputs={"init": "reward", "annotations": "annotate"})
    behind = {"init": stage(), "annotations": chain.lab.stage("annotate")}
    with pytest.raises(ConfigError, match="has no model to start from"):
        again.estimate(chain.lab.store.cache, behind)
    grpo = chain.lab.stage("grpo").estimate(chain.lab.store.cache, {"reward": stage()})
    plain = chain.lab.stage("grpo").estimate(chain.lab.store.cache, {})
    assert grpo.workload is not None
    assert plain.workload is not None
    assert grpo.workload.frozen == plain.workload.frozen - 1  # it is no view of the policy's model
