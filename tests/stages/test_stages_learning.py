"""Every method learns something that was planted, on a model small enough to do it in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from stage_lab import Chain, Lab

from alignlab.run import Run

pytestmark = pytest.mark.slow

LETTERS = "klmnop"
RATE = {"optimizer__learning_rate": 5e-3, "optimizer__eps": 1e-8}


def planted(path: Path, prompts: int = 240) -> None:
    """Letters with spaces between them; a completion with an a is better than one without."""
    source = random.Random(1)
    rows = []
    for number in range(prompts):
        good, bad = (source.choices(LETTERS, k=source.randint(3, 5)) for _ in range(2))
        good[source.randrange(len(good))] = "a"
        texts, scores = [" ".join(good), " ".join(bad)], [1.0, 0.0]
        if source.random() < 0.5:
            texts, scores = texts[::-1], scores[::-1]
        prompt = f"{number} {''.join(source.choices('bcdfgh', k=4))}"
        rows.append({"prompt": prompt, "completions": texts, "scores": scores})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """An SFT model that writes letters, annotations by the planted rule; gold counts k and m."""
    folder = tmp_path_factory.mktemp("planted")
    planted(folder / "data.jsonl")
    overrides = ["reward@gold=contains", "gold.words=[k,m]", "gold.need=share", "size=default"]
    lab = Lab.make(folder, *overrides, "size.evaluate.prompts=64", data=folder / "data.jsonl")
    sft = lab.run(lab.stage("sft", steps=60, batch=32, evaluate_every=0, **RATE), {})
    annotate = lab.stage("annotate", validation_share=0.25, prompts=240)
    annotations = lab.run(annotate, {"policy": sft})
    return Chain(lab, sft, annotations, sft)


def gold(world: Chain, policy: Run) -> float:
    """Mean gold reward of a policy's samples on held-out prompts."""
    stage = world.lab.stage(
        "evaluate_sft",
        split="validation",
        samples=8,
        inputs={"policy": "sft", "reference": "sft"},
    )
    return world.lab.run(stage, {"policy": policy, "reference": world.sft}).summary()["gold"]


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto", "orpo"])
def test_planted_preferences_are_learned(world: Chain, name: str) -> None:
    stage = world.lab.stage(name, steps=60, batch=16, **RATE)
    run = world.lab.run(stage, world.inputs("init", "reference", "annotations"))
    summary = run.summary()
    assert run.record.get("reference") == (None if name == "orpo" else world.sft.path.name)
    assert summary["accuracy"] >= 0.9
    assert summary["margin"] > 0


def test_a_planted_rule_is_learned_by_the_reward_model(world: Chain) -> None:
    stage = world.lab.stage("reward", steps=80, batch=16, **RATE)
    run = world.lab.run(stage, world.inputs("init", "annotations"))
    assert run.summary()["validation_accuracy"] >= 0.9
    assert run.summary()["validation_pairs"] >= 30


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_programmatic_reward_is_raised_on_held_out_prompts(world: Chain, name: str) -> None:
    inputs = world.inputs("init", "reference")
    size = (
        {"iterations": 60, "rollout_batch": 8, "group": 8, "kl_coef": 0.005}
        if name == "grpo"
        else {
            "iterations": 40,
            "rollout_batch": 64,
            "ppo_epochs": 2,
            "minibatches": 2,
            "kl_coef": 0.005,
            "value_coef": 0.5,
        }
    )
    reward = {
        "_target_": "alignlab.rewards.verifiable.Contains",
        "words": ["k", "m"],
        "need": "share",
    }
    stage = world.lab.stage(
        name,
        inputs=dict.fromkeys(inputs, "sft"),
        reward=reward,
        missing_eos_score=-0.5,
        **size,
        **RATE,
    )
    run = world.lab.run(stage, inputs)
    rewards = [row["reward"] for row in run.metrics("train") if "reward" in row]
    before, after = gold(world, world.sft), gold(world, run)
    assert 0.2 < before < 0.7
    assert after > before + 0.2
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
