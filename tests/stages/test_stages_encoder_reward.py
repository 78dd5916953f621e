"""An encoder as the reward model of a policy with another tokenizer: trained, resumed, and read."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stage_lab import Chain, Lab, weight_hashes

from alignlab import typed
from alignlab.data.group import PromptGroup, Verdict
from alignlab.engine.state import TrainState
from alignlab.errors import ConfigError
from alignlab.plan import build_stage
from alignlab.rewards.apart import Apart, carry_reading, stands_apart
from alignlab.rewards.trained import TrainedReward
from alignlab.run import Run
from alignlab.stages.annotations import FILE, read, texts_of, write

ROOM = str(Path(__file__).resolve().parent.parent / "models")
if ROOM not in sys.path:  # pytest puts a folder on the path only when it collects there
    sys.path.insert(0, ROOM)

from encoder_cases import make_encoder  # noqa: E402


def reward_stage(lab: Lab, folder: Path, **changes: Any) -> Any:
    """The reward stage on an encoder; on the command line this is two overrides more."""
    named = {"backbone.path": str(folder), "inputs": {"annotations": "annotate"}, "steps": 40}
    return lab.stage("reward", **{**named, "batch": 6, "optimizer.learning_rate": 3e-3, **changes})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    make_encoder("bert", folder)
    return folder


@pytest.fixture(scope="module")
def judged(chain: Chain, encoder: Path) -> Run:
    """A reward run on the encoder, with mean pooling."""
    stage = reward_stage(chain.lab, encoder, pooling="mean")
    run = chain.lab.run(stage, {"annotations": chain.annotations})
    return run


def by_hand(run: Run, encoder: Path, prompt: str, completion: str) -> float:
    """Score of a run by transformers alone."""
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(run.model_dir, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    ids = tokenizer(prompt, completion, return_tensors="pt")["input_ids"]
    first = tokenizer(prompt)["input_ids"]  # [CLS] prompt [SEP]
    segment = (torch.arange(ids.shape[1]) >= len(first)).long()[None]
    head = load_file(run.model_dir / "head.safetensors")
    with torch.no_grad():
        state = model(ids, token_type_ids=segment)[0][0].mean(0)
    raw = head["linear.weight"][0] @ state + head["linear.bias"][0]
    return float(head["gain"] * raw + head["offset"])


@pytest.mark.slow
def test_it_learns_and_scores_what_transformers_computes(judged, encoder, chain) -> None:
    assert judged.record["summary"]["validation_accuracy"] > 0.8
    assert judged.record["layout"] == "packed"
    assert stands_apart(judged.model_dir)
    assert not stands_apart(chain.reward.model_dir)
    judge = Apart.open(judged, "cpu")
    groups = [PromptGroup("3 bcd", ("klmaaa", "klm")), PromptGroup("17 fgh b", ("noa",))]
    [[first, second], [third]] = judge.scores(groups, 64)
    wanted = [by_hand(judged, encoder, "3 bcd", "klmaaa"), by_hand(judged, encoder, "3 bcd", "klm")]
    assert [first, second] == pytest.approx(wanted, abs=1e-5)
    assert third == pytest.approx(by_hand(judged, encoder, "17 fgh b", "noa"), abs=1e-5)
    assert first > second  # it counts the letter a


@pytest.mark.slow
def test_policies_are_judged_by_it(judged, chain, monkeypatch) -> None:
    """PPO, GRPO, best of n and annotation: each scores the texts, with the encoder's tokens."""
    lab = chain.lab
    inputs = {**chain.inputs("init", "reference"), "reward": judged}
    for name in ("ppo", "grpo"):
        stage = lab.stage(name, iterations=1, missing_eos_score=None)
        run = lab.run(stage, inputs)
        assert run.record["rewards"] == [judged.path.name]
        assert not (run.model_dir / "reading.json").exists()
    stage = lab.stage("evaluate_sft", best_of=2, samples=1)
    run = lab.run(stage, {**chain.inputs("policy", "reference"), "reward": judged})
    rows = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    judge = Apart.open(judged, "cpu")
    for row in rows:
        [[wanted]] = judge.scores([PromptGroup(row["prompt"], (row["completion"],))], 64)
        assert row["proxy"] == pytest.approx(wanted, abs=1e-4)
    assert np.ptp([row["proxy"] for row in rows]) > 0.01
    stage = lab.stage("annotate", inputs={"policy": "sft", "reward": "reward"})
    annotated = lab.run(stage, {**chain.inputs("policy"), "reward": judged})
    line = json.loads((annotated.path / FILE).read_text().splitlines()[0])
    [wanted] = judge.scores([PromptGroup(line["prompt"], tuple(line["completions"]))], 64)
    assert line["verdict"]["scores"] == pytest.approx(wanted, abs=1e-4)


def test_its_accuracy_is_benchmarked_in_its_own_tokens(judged, chain) -> None:
    node = {
        "_target_": "alignlab.stages.reward_benchmark.RewardBenchmark",
        "seed": 0,
        "inputs": {"reward": "reward", "annotations": "annotate"},
        "backbone": chain.lab.configs["sft"]["backbone"],
        "sets": {},
        "max_prompt": None,
        "max_completion": None,
    }
    inputs = {"reward": judged, "annotations": chain.annotations}
    run = chain.lab.run(build_stage(node, "stages.benchmark"), inputs)
    rows = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    found = sum(row["value"] for row in rows) / len(rows)
    assert found == pytest.approx(judged.record["summary"]["validation_accuracy"])


def test_it_is_a_reward_of_texts_too(judged, chain, monkeypatch) -> None:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(chain.lab.store.root))
    limits = {"max_prompt": None, "max_completion": None, "token_budget": 64}
    reward = TrainedReward(run=judged.path.name, store=None, **limits)
    [[wanted]] = Apart.open(judged, "cpu").scores([PromptGroup("3 bcd", ("klmaa",))], 64)
    assert reward.score(["3 bcd"], ["klmaa"], [{}]) == pytest.approx([wanted], abs=1e-5)


class PowerCut(Exception):
    """A training that ends without a word."""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 4], ids=["full", "lora"])
def test_an_interrupted_training_ends_in_the_same_bytes(chain, encoder, rank, monkeypatch) -> None:
    lab, inputs = chain.lab, {"annotations": chain.annotations}
    stage = reward_stage(lab, encoder, **{"steps": 3, "backbone.adapter.rank": rank})
    straight = lab.run(stage, inputs)
    run, save = lab.new_run("reward"), TrainState.save

    def dying(self: TrainState, *args: Any) -> None:
        save(self, *args)
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "save", dying)
        with pytest.raises(PowerCut):
            lab.run(stage, inputs, run, checkpoint_every_seconds=0)
    assert weight_hashes(lab.run(stage, inputs, run)) == weight_hashes(straight)
    again = Apart.open(straight, "cpu").scores([PromptGroup("3 bcd", ("klmaa", "n"))], 64)
    assert again[0][0] != again[0][1]


def test_merged_encoders_read_texts_as_well(judged, chain) -> None:
    node = {
        "_target_": "alignlab.stages.merge_rewards.MergeRewards",
        "seed": 0,
        "inputs": {"model": "one", "model/1": "two"},
        "rule": {"_target_": "alignlab.models.merging.linear"},
        "weights": None,
        "rank": None,
    }
    merged = chain.lab.run(build_stage(node, "stages.warm"), {"model": judged, "model/1": judged})
    groups = [PromptGroup("3 bcd", ("klmaa", "n"))]
    [alone] = Apart.open(judged, "cpu").scores(groups, 64)
    assert Apart.open(merged, "cpu").scores(groups, 64)[0] == pytest.approx(alone, abs=1e-4)
    with pytest.raises(ConfigError, match="and some a policy's tokens"):
        carry_reading([judged.model_dir, chain.reward.model_dir], merged.model_dir)


@pytest.mark.slow
def test_scores_can_be_regressed_on_and_thumbs_classified(chain, encoder) -> None:
    lab, inputs = chain.lab, {"annotations": chain.annotations}
    objective = {"_target_": "alignlab.objectives.regression.squared_error"}
    stage = reward_stage(lab, encoder, objective=objective, normalize=False, steps=60)
    summary = lab.run(stage, inputs).record["summary"]
    assert summary["validation_loss"] < 0.5  # scores 0, 1, 2 have variance 2/3
    groups = [
        replace(g, verdict=Verdict("thumbs", thumbs=tuple(score > 0 for score in g.verdict.scores)))
        for g in texts_of(chain.annotations, "train")
    ]
    labelled = lab.new_run("annotate")
    labelled.path.mkdir(parents=True)
    write(labelled.path / FILE, groups, list(read(chain.annotations, "train")), 0.2)
    labelled.finish()
    objective = {"_target_": "alignlab.objectives.regression.cross_entropy"}
    stage = reward_stage(lab, encoder, objective=objective, normalize=False, steps=60)
    judge = Apart.open(lab.run(stage, {"annotations": labelled}), "cpu")
    logits = np.array(judge.scores(groups, 512)).ravel()  # log p / (1 − p) of the label 1
    labels = np.array([thumb for group in groups for thumb in group.verdict.thumbs])
    assert ((logits > 0) == labels).mean() > 0.9


def test_a_decoder_of_another_family_stands_apart_too(chain, tmp_path) -> None:
    from model_cases import architecture, random_model
    from transformers import AutoTokenizer

    from alignlab.models.load import resolve

    random_model(architecture("gpt2", vocab_size=259)).save_pretrained(tmp_path)
    tiny = resolve("random:tiny", chain.lab.store.cache)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    run = chain.lab.run(
        reward_stage(chain.lab, tmp_path, steps=2), {"annotations": chain.annotations}
    )
    assert stands_apart(run.model_dir)
    stage = chain.lab.stage("grpo", iterations=1, missing_eos_score=None)
    done = chain.lab.run(stage, {**chain.inputs("init", "reference"), "reward": run})
    assert done.record["rewards"] == [run.path.name]


def test_what_cannot_be_is_said_before_anything_runs(chain, encoder) -> None:
    lab = chain.lab
    with pytest.raises(ConfigError, match="nothing to be held to"):
        reward_stage(lab, encoder, anchor={"_target_": "alignlab.stages.anchors.L2SP", "weight": 1})
    stage = reward_stage(lab, encoder, inputs={"init": "sft", "annotations": "annotate"})
    behind = {"init": lab.stage("sft"), "annotations": lab.stage("annotate")}
    with pytest.raises(ConfigError, match="cannot start from a policy"):
        stage.estimate(lab.store.cache, behind)
    pooled = lab.stage("reward", pooling="mean")
    with pytest.raises(ConfigError, match="a decoder's score is read at its last token"):
        pooled.estimate(lab.store.cache, behind)
    assert "pooling" not in json.dumps(typed.to_mapping(lab.stage("sft")))
