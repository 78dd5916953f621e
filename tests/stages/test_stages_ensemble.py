"""Several reward stages behind one role, and a reward that is only watched."""

from __future__ import annotations

import pytest
import torch
from stage_lab import Caught, Chain, PlainHead, largest_difference, plain_model, weights

from alignlab.errors import ConfigError
from alignlab.graph import ordered
from alignlab.run import Run

ROLES = ("init", "reference", "reward")
TWO = {"init": "sft", "reference": "sft", "reward/1": "reward", "reward/2": "reward_b"}
WATCH = {
    "_target_": "alignlab.rewards.verifiable.Matches",
    "pattern": "p",
    "whole": False,
    "ignore_case": False,
}


@pytest.fixture(scope="module")
def second(chain: Chain) -> Run:
    """A reward run that differs from the first in its seed and its length of training."""
    stage = chain.lab.stage("reward", seed=5, steps=2)
    return chain.lab.run(stage, chain.inputs("init", "annotations"))


def inputs(chain: Chain, second: Run) -> dict[str, Run]:
    rewards = {"reward/1": chain.reward, "reward/2": second}
    return {**chain.inputs("init", "reference"), **rewards}


def member_scores(chain: Chain, run: Run, groups) -> torch.Tensor:
    """Scores of every completion by transformers alone."""
    model = plain_model(run.model_dir, chain.lab.store.cache)
    head = PlainHead.load(run.model_dir)
    with torch.no_grad():
        return torch.stack(
            [head.along(model, g.prompt, c)[-1] for g in groups for c in g.completions]
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
@pytest.mark.parametrize("combine", ["mean", "min", "uwo"])
def test_the_training_reward_is_the_ensembles(
    chain: Chain, second: Run, caught: Caught, kind: str, combine: str
) -> None:
    changes = {"ensemble__combine": combine, "ensemble__penalty": 0.25, "iterations": 1}
    stage = chain.lab.stage(kind, inputs=TWO, **changes)
    run = chain.lab.run(stage, inputs(chain, second))
    experience = caught.work.experience
    a, b = (member_scores(chain, r, experience.groups) for r in (chain.reward, second))
    assert float((a - b).abs().max()) > 0.05  # the members disagree
    expected = {
        "mean": (a + b) / 2,
        "min": torch.minimum(a, b),
        # of two values the variance is the square of half their difference
        "uwo": (a + b) / 2 - 0.25 * ((a - b) / 2) ** 2,
    }[combine]
    torch.testing.assert_close(experience.scores.double(), expected, atol=1e-4, rtol=0)
    assert run.record["rewards"] == [chain.reward.path.name, second.path.name]


@pytest.mark.slow
def test_one_reward_under_a_numbered_name_is_that_reward(chain: Chain) -> None:
    stage, plain = chain.online("grpo")
    numbered = chain.lab.stage(
        "grpo", inputs={"init": "sft", "reference": "sft", "reward/1": "reward"}
    )
    one = chain.lab.run(stage, plain)
    runs = {**chain.inputs("init", "reference"), "reward/1": chain.reward}
    assert largest_difference(weights(one), weights(chain.lab.run(numbered, runs))) == 0


@pytest.mark.slow
def test_an_evaluation_reads_the_ensemble_as_its_proxy(chain: Chain, second: Run) -> None:
    roles = {"policy": "sft", "reference": "sft", "reward": "reward", "reward/2": "reward_b"}
    runs = {**chain.inputs("policy", "reference", "reward"), "reward/2": second}

    def proxies(combine: str) -> list[float]:
        stage = chain.lab.stage("evaluate_sft", inputs=roles, ensemble__combine=combine)
        return [row["proxy"] for row in chain.lab.run(stage, runs).samples()]

    mean, low = proxies("mean"), proxies("min")
    assert all(m >= n for m, n in zip(mean, low, strict=True))
    assert mean != low


@pytest.mark.slow
def test_what_is_watched_is_logged_and_trains_nothing(chain: Chain) -> None:
    stage, runs = chain.online("grpo")
    watching, _ = chain.online("grpo", monitor=WATCH)
    plain, watched = chain.lab.run(stage, runs), chain.lab.run(watching, runs)
    assert largest_difference(weights(plain), weights(watched)) == 0
    rows = watched.metrics("train")
    assert all(0 <= row["monitored_reward"] <= 1 for row in rows)
    assert not any("monitored_reward" in row for row in plain.metrics("train"))


def test_only_a_role_of_many_takes_numbers(chain: Chain) -> None:
    with pytest.raises(ConfigError, match=r"inputs.init/2: one stage fills the role 'init'"):
        chain.lab.stage("grpo", inputs={**TWO, "init/2": "sft"})
    with pytest.raises(ConfigError, match=r"inputs.rewards/1: .* Did you mean 'reward'"):
        chain.lab.stage("grpo", inputs={"init": "sft", "reference": "sft", "rewards/1": "reward"})


def test_a_numbered_input_must_be_of_a_fitting_kind(chain: Chain) -> None:
    stages = {
        "sft": chain.lab.stage("sft"),
        "grpo": chain.lab.stage("grpo", inputs={**TWO, "reward/1": "sft", "reward/2": "sft"}),
    }
    with pytest.raises(ConfigError, match=r"stages.grpo.inputs.reward/1: 'sft' is of kind sft"):
        ordered(stages)
