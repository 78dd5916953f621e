"""Evaluation: exact zeros, the best of n, and one row per prompt whatever happened before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from stage_lab import Chain, PlainHead, plain_model, token_logps

from alignlab.errors import ConfigError
from alignlab.rewards.judge.annotator import reference_of
from alignlab.rollout import rollout as rollouts
from alignlab.run import Run
from alignlab.spec import build
from alignlab.stages.evaluate import best_indices

FIELDS = {
    "prompt_id", "prompt", "sample", "completion", "tokens", "finished", "gold", "audit", "proxy",
    "kl",
}  # fmt: skip


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Rollouts as the evaluation got them."""
    kept: list[Any] = []
    sample = rollouts.sample_rollout

    def keeping(*args: Any, **named: Any) -> Any:
        kept.append(sample(*args, **named))
        return kept[-1]

    monkeypatch.setattr(rollouts, "sample_rollout", keeping)
    return kept


def evaluate(
    chain: Chain, policy: Run | None = None, run: Run | None = None, **changes: Any
) -> Run:
    stage = chain.lab.stage("evaluate_sft", split="validation", **changes)
    inputs = {**chain.inputs("policy", "reference", "reward")}
    inputs["policy"] = policy or chain.sft
    return chain.lab.run(stage, inputs, run)


@pytest.fixture(scope="module")
def moved(chain: Chain) -> Run:
    stage, inputs = chain.prefer()
    return chain.lab.run(stage, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["chain", "lora_chain"])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_the_kl_of_a_model_to_itself_is_exactly_zero(
    request: pytest.FixtureRequest, which: str, temperature: float
) -> None:
    run = evaluate(request.getfixturevalue(which), sampling__temperature=temperature)
    assert [row["kl"] for row in run.samples()] == [0.0] * len(run.samples())
    assert run.summary()["kl"] == 0.0


@pytest.mark.slow
def test_the_kl_by_hand(chain: Chain, moved: Run, sampled: list[Any]) -> None:
    run = evaluate(chain, moved, samples=2, sampling__temperature=0.8)
    policy = plain_model(moved.model_dir, chain.lab.store.cache)
    sft = plain_model(chain.sft.model_dir, chain.lab.store.cache)
    [rollout] = sampled
    expected = []
    with torch.no_grad():
        for group in rollout.groups:
            for completion in group.completions:
                new = token_logps(policy, group.prompt, completion, 0.8).sum()
                ref = token_logps(sft, group.prompt, completion, 0.8).sum()
                expected.append(float(new - ref))
    assert [row["kl"] for row in run.samples()] == pytest.approx(expected, abs=1e-4)
    assert run.summary()["kl"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert run.summary()["kl"] != 0


def test_best_of_n_keeps_the_highest_proxy(chain: Chain, sampled: list[Any]) -> None:
    run = evaluate(chain, samples=2, best_of=4)
    [rollout] = sampled
    model = plain_model(chain.reward.model_dir, chain.lab.store.cache)
    head = PlainHead.load(chain.reward.model_dir)
    rows = iter(run.samples())
    for group, texts in zip(rollout.groups, rollout.completions, strict=True):
        with torch.no_grad():
            scores = [float(head.along(model, group.prompt, c)[-1]) for c in group.completions]
        assert len(scores) == 8
        for sample in range(2):
            part = scores[4 * sample : 4 * sample + 4]
            row = next(rows)
            assert row["sample"] == sample
            assert row["proxy"] == pytest.approx(max(part), abs=1e-4)
            assert row["completion"] == texts[4 * sample + part.index(max(part))]
            assert row["kl"] is None  # unknown for a selected sample
    assert next(rows, None) is None
    assert run.record["best_of"] == 4


def test_best_of_more_is_better_by_the_proxy(chain: Chain) -> None:
    one, many = evaluate(chain).summary(), evaluate(chain, best_of=8).summary()
    assert many["proxy"] > one["proxy"]


def test_a_tie_goes_to_the_first() -> None:
    import numpy as np

    # [1, 3, 3 | 2, 0, 2]
    assert best_indices(np.array([1.0, 3.0, 3.0, 2.0, 0.0, 2.0]), 3) == [1, 3]


def test_one_row_per_prompt_and_sample(chain: Chain, moved: Run) -> None:
    for samples in (1, 3):
        run = evaluate(chain, moved, samples=samples)
        rows = run.samples()
        assert all(row.keys() == FIELDS for row in rows)
        ids = [(row["prompt_id"], row["sample"]) for row in rows]
        assert len(ids) == len(set(ids)) == run.record["prompts"] * samples
        held_out = build(chain.lab.stage("sft").data).load("validation")
        assert {name for name, _ in ids} == {group.id for group in held_out}


def test_the_answers_of_the_data_are_scored_too(chain: Chain) -> None:
    run = evaluate(chain)
    held_out = build(chain.lab.stage("sft").data).load("validation")
    answers = [str(reference_of(group)) for group in held_out]
    expected = sum("a" in text for text in answers) / len(answers)  # gold: is there an a
    assert run.summary()["reference_gold"] == pytest.approx(expected)
    assert expected > 0


def test_means_are_those_of_the_rows(chain: Chain, moved: Run) -> None:
    run = evaluate(chain, moved, samples=2)
    rows, summary = run.samples(), run.summary()
    for name in ("gold", "audit", "proxy", "kl", "tokens", "finished"):
        mean = sum(float(row[name]) for row in rows) / len(rows)
        assert summary[name] == pytest.approx(mean), name
    assert all(row["gold"] == float("a" in row["completion"]) for row in rows)
    assert (run.record["policy"], run.record["reference"]) == (
        moved.path.name,
        chain.sft.path.name,
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", ["rows", "end"])
def test_an_interrupted_evaluation_writes_nothing_twice(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    run = chain.lab.new_run("evaluate")
    sample, calls = Run.sample, []

    def failing(self: Run, row: Any) -> None:
        sample(self, row)
        calls.append(row)
        if len(calls) == 2:
            raise KeyboardInterrupt

    def never(self: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, *(("sample", failing) if place == "rows" else ("finish", never)))
        with pytest.raises(KeyboardInterrupt):
            evaluate(chain, run=run, samples=3)
    assert run.samples()
    evaluate(chain, run=run, samples=3)
    whole = evaluate(chain, samples=3)
    assert run.samples() == whole.samples()
    assert len(run.metrics()) == len(whole.metrics()) == 1


@pytest.mark.slow
def test_the_same_prompts_and_draws_for_every_policy(chain: Chain, moved: Run) -> None:
    """Pairs of rows can be compared prompt by prompt."""
    one, two = evaluate(chain).samples(), evaluate(chain, moved).samples()
    assert [row["prompt_id"] for row in one] == [row["prompt_id"] for row in two]
    assert evaluate(chain).samples() == one


def test_best_of_n_without_a_proxy_is_refused(chain: Chain) -> None:
    with pytest.raises(ConfigError, match="best_of > 1"):
        chain.lab.stage("evaluate_sft", best_of=2, inputs={"policy": "sft", "reference": "sft"})


def test_micro_batches_change_no_sample(chain: Chain, moved: Run) -> None:
    stage = chain.lab.stage("evaluate_sft", split="validation")
    inputs = {**chain.inputs("reference", "reward"), "policy": moved}
    one = chain.lab.run(stage, inputs).samples()
    other = chain.lab.run(
        replace(stage, sampling=replace(stage.sampling, batch=2)), inputs, token_budget=30
    ).samples()
    assert [r["completion"] for r in one] == [r["completion"] for r in other]
    assert [r["kl"] for r in one] == pytest.approx([r["kl"] for r in other], abs=1e-4)
