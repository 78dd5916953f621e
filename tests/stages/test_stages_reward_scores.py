"""Reward models that learn scores themselves, and the annotator who gives some."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_lab import Chain, PlainHead, largest_difference, plain_model, weights

from alignlab.compose import compose
from alignlab.data.group import PromptGroup, Verdict
from alignlab.data.order import step_rows
from alignlab.errors import ConfigError, DataError
from alignlab.run import Run
from alignlab.spec import Spec
from alignlab.stages.annotate import read

ERROR = {"_target_": "alignlab.objectives.regression.squared_error"}
CLASSES = {"_target_": "alignlab.objectives.regression.cross_entropy"}


def learning(chain: Chain, objective: Any, **changes: Any) -> tuple[Any, dict[str, Run]]:
    stage = chain.lab.stage("reward", objective=objective, normalize=False, **changes)
    return stage, chain.inputs("init", "annotations")


def plain_scores(run: Run, groups: Sequence[Any], chain: Chain) -> list[list[float]]:
    """Scores of every completion at its last token, one sequence at a time."""
    model = plain_model(run.model_dir, chain.lab.store.cache)
    head = PlainHead.load(run.model_dir)
    with torch.no_grad():
        return [[float(head.along(model, g.prompt, c)[-1]) for c in g.completions] for g in groups]


def test_the_loss_is_the_squared_error_of_the_scores_by_hand(chain: Chain) -> None:
    stage, inputs = learning(chain, ERROR, batch=5, steps=1, optimizer__learning_rate=1e-12)
    run = chain.lab.run(stage, inputs, token_budget=48)
    groups = read(chain.annotations, "train")
    picked = [groups[row] for row in step_rows(0, 5, len(groups), stage.seed)]
    means = []
    for found, group in zip(plain_scores(run, picked, chain), picked, strict=True):
        squares = [(r - s) ** 2 for r, s in zip(found, group.verdict.scores, strict=True)]
        means.append(sum(squares) / len(squares))
    assert run.metrics("train")[0]["loss"] == pytest.approx(sum(means) / 5, rel=1e-4)


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "reward model (regression)",
    "two token budgets: weights to 1e-6",
)
def test_micro_batching_changes_no_weight(chain: Chain) -> None:
    stage, inputs = learning(chain, ERROR, steps=3)
    small, large = (chain.lab.run(stage, inputs, token_budget=n) for n in (48, 4096))
    assert largest_difference(weights(small), weights(large)) < 1e-6


@pytest.mark.slow
def test_it_learns_the_scale_of_the_scores(chain: Chain) -> None:
    # the scores of the data are 0, 1 and 2: their mean square about the mean is 2/3
    stage, inputs = learning(chain, ERROR, steps=40)
    summary = chain.lab.run(stage, inputs).summary()
    assert summary["validation_loss"] < 1 / 3
    assert summary["validation_accuracy"] > 0.8


def test_a_classifier_refuses_scores_that_are_no_probabilities(chain: Chain) -> None:
    stage, inputs = learning(chain, CLASSES, steps=1)
    with pytest.raises(DataError, match=r"not all in \[0, 1\]"):
        chain.lab.run(stage, inputs)


def thumbed(chain: Chain) -> Run:
    """The annotations with a single completion per prompt and a thumb: nothing to compare."""
    made = chain.lab.store.run("annotate", "0b0b0b")
    if not made.path.exists():
        made.path.mkdir(parents=True)
        lines = (chain.annotations.path / "annotations.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        for number, row in enumerate(rows):
            for name in ("completions", "completion_ids", "truncated", "masks"):
                row[name] = row[name][:1]
            up = number % 2 == 0
            row["verdict"] = {"kind": "thumbs", "ranks": [], "scores": [], "thumbs": [up]}
        (made.path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return made


def test_thumbs_of_single_completions_are_enough(chain: Chain) -> None:
    stage, inputs = learning(chain, CLASSES, steps=2, optimizer__learning_rate=1e-12)
    run = chain.lab.run(stage, {**inputs, "annotations": thumbed(chain)})
    [first, _] = run.metrics("train")
    groups = read(thumbed(chain), "train")
    picked = [groups[r] for r in step_rows(0, stage.batch, len(groups), stage.seed)]
    total = 0.0
    for [logit], group in zip(plain_scores(run, picked, chain), picked, strict=True):
        total += math.log1p(math.exp(-logit if group.verdict.thumbs[0] else logit))
    assert first["loss"] == pytest.approx(total / len(picked), abs=1e-4)
    assert "accuracy" not in first
    assert run.summary()["validation_accuracy"] is None
    assert run.summary()["validation_loss"] > 0


def test_scores_of_single_completions_are_kept_and_learned(chain: Chain, tmp_path: Path) -> None:
    """Of a file with one scored completion a prompt nothing is sampled."""
    rows = [
        {
            "prompt": f"{n} {'bcd'[n % 3] * 4}",
            "completions": ["kl" + "a" * (n % 4)],
            "scores": [n % 4],
        }
        for n in range(40)
    ]
    file = tmp_path / "scored.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {**chain.lab.configs["annotate"]["data"], "path": str(file)}
    stage = chain.lab.stage("annotate", data=data, completions=1, validation_share=0.2)
    made = chain.lab.run(stage, {"policy": chain.sft})
    groups = [*read(made, "train"), *read(made, "validation")]
    assert made.record["completions"] == len(groups) > 20
    assert "tokens_sampled" not in made.record
    stage, inputs = learning(chain, ERROR, steps=2, optimizer__learning_rate=1e-12)
    run = chain.lab.run(stage, {**inputs, "annotations": made})
    picked = read(made, "train")
    picked = [picked[r] for r in step_rows(0, stage.batch, len(picked), stage.seed)]
    errors = [
        (r - group.verdict.scores[0]) ** 2
        for [r], group in zip(plain_scores(run, picked, chain), picked, strict=True)
    ]
    assert run.metrics("train")[0]["loss"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    two = chain.lab.stage("annotate", data=data, completions=2)  # as ever: sampled for
    assert two._kind_of(PromptGroup("p", ("a",), Verdict("scores", scores=(1.0,)))) == "missing"


def test_one_sample_a_prompt_is_scored_where_nothing_is_compared(chain: Chain) -> None:
    length = {"_target_": "alignlab.rewards.length.Length", "target_words": 3}
    scoring = {
        "_target_": "alignlab.rewards.scoring.ScoringAnnotator",
        "reward": length,
        "noise": 0.0,
    }
    data = {**chain.lab.configs["annotate"]["data"]}
    bare = Path(data["path"]).with_name("bare.jsonl")
    lines = [json.loads(line) for line in Path(data["path"]).read_text().splitlines()]
    bare.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in lines))
    changes = {"data": {**data, "path": str(bare)}, "completions": 1, "prompts": 6}
    stage = chain.lab.stage("annotate", annotator=scoring, **changes)
    made = chain.lab.run(stage, {"policy": chain.sft})
    groups = [*read(made, "train"), *read(made, "validation")]
    assert [len(g.completions) for g in groups] == [1] * 6
    assert all(g.verdict.kind == "scores" for g in groups)
    ranked = chain.lab.stage("annotate", **changes)  # a single one has no rank worth a verdict
    with pytest.raises(DataError, match="needs scores"):
        chain.lab.run(ranked, {"policy": chain.sft})


def test_a_ranking_has_no_scores_to_learn(chain: Chain) -> None:
    ranked = chain.lab.store.run("annotate", "0e0e0e")
    ranked.path.mkdir(parents=True)
    lines = (chain.annotations.path / "annotations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["verdict"] = {"kind": "ranking", "ranks": [0, 1, 2], "scores": [], "thumbs": []}
    (ranked.path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    stage, inputs = learning(chain, ERROR, steps=1)
    with pytest.raises(DataError, match="verdict that this stage can use"):
        chain.lab.run(stage, {**inputs, "annotations": ranked})


def test_pairs_are_not_shuffled_where_there_are_none(chain: Chain) -> None:
    stage, _ = learning(chain, ERROR)
    with pytest.raises(ConfigError, match="no pairs"):
        replace(stage, pairs="shuffled")


@pytest.mark.slow
def test_the_yaml_leaves_the_scores_their_scale() -> None:
    stages = compose(["pipeline=instructgpt", "stage@stages.reward=reward_regression"])["stages"]
    assert stages["reward"]["objective"] == ERROR
    assert stages["reward"]["normalize"] is False
    other = compose(["pipeline=instructgpt", "reward_objective@stages.reward.objective=top_one"])
    target = other["stages"]["reward"]["objective"]["_target_"]
    assert target == "alignlab.objectives.ranking.top_one"


def test_the_scoring_annotator_keeps_the_scale() -> None:
    from alignlab.data.group import PromptGroup
    from alignlab.rewards.scoring import ScoringAnnotator

    reward = Spec("alignlab.rewards.length.Length", {"target_words": 3})
    group, texts = PromptGroup("p", id="1"), ["a b c", "a", "a b c d e f"]
    exact = ScoringAnnotator(reward=reward, noise=0.0).annotate(group, texts, 7)
    assert exact.verdict.kind == "scores"
    assert exact.verdict.scores == exact.scores
    assert not exact.flipped
    noisy = ScoringAnnotator(reward=reward, noise=0.5)
    one, again, other = (noisy.annotate(group, texts, seed).verdict.scores for seed in (7, 7, 8))
    assert one == again != other
    draws = [
        (noisy.annotate(PromptGroup("p", id=str(n)), texts[:1], 7).verdict.scores[0] - 0) / 0.5
        for n in range(400)
    ]
    mean = sum(draws) / 400
    assert abs(mean) < 0.2  # 0 ± 4·(1/√400)
    assert 0.85 < math.sqrt(sum((x - mean) ** 2 for x in draws) / 400) < 1.15
    assert noisy.fingerprint() != ScoringAnnotator(reward=reward, noise=0.4).fingerprint()
