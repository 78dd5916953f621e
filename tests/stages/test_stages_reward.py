"""Reward modelling: a ranking as one element, the score at the last token, and normalisation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from stage_lab import Caught, Chain, PlainHead, largest_difference, plain_model, weights

from alignlab.data.order import step_rows
from alignlab.stages.annotate import read
from alignlab.stages.reward import pair_accuracy


def plain_scores(folder, groups, cache) -> list[list[float]]:
    """Scores of every completion at its last token, one sequence at a time."""
    model, head = plain_model(folder, cache), PlainHead.load(folder)
    with torch.no_grad():
        return [[float(head.along(model, g.prompt, c)[-1]) for c in g.completions] for g in groups]


def by_hand(scores: list[list[float]], groups, centering: float) -> float:
    """Mean over prompts of the mean over the three pairs of −log σ(r_w − r_l) + c (r_w + r_l)²."""
    per_prompt = []
    for values, group in zip(scores, groups, strict=True):
        terms = []
        for i, j in itertools.permutations(range(len(values)), 2):
            if (
                group.verdict.ranks[i] < group.verdict.ranks[j]
                if group.verdict.ranks
                else (group.verdict.scores[i] > group.verdict.scores[j])
            ):
                gap = values[i] - values[j]
                total = values[i] + values[j]
                terms.append(math.log1p(math.exp(-gap)) + centering * total * total)
        assert len(terms) == 3  # K = 3 without ties
        per_prompt.append(sum(terms) / 3)
    return sum(per_prompt) / len(per_prompt)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [48, 4096])
def test_a_ranking_of_three_is_one_element(chain: Chain, caught: Caught, budget: int) -> None:
    stage = chain.lab.stage(
        "reward", batch=5, steps=1, normalize=False, optimizer__learning_rate=1e-12
    )
    run = chain.lab.run(
        stage, chain.inputs("init", "annotations"), token_budget=budget
    )  # the step is so small that the saved weights are those of the loss
    groups = read(chain.annotations, "train")
    picked = [groups[row] for row in step_rows(0, 5, len(groups), stage.seed)]
    scores = plain_scores(run.model_dir, picked, chain.lab.store.cache)
    expected = by_hand(scores, picked, centering=0.01)
    assert run.metrics("train")[0]["loss"] == pytest.approx(expected, abs=1e-5)
    tokens = sum(len(g.prompt) + sum(map(len, g.completions)) for g in picked)
    assert run.record["tokens_trained"] == tokens  # every completion passes once, not K − 1 times


def test_the_score_is_read_at_the_last_completion_token(chain: Chain, caught: Caught) -> None:
    run = chain.lab.run(chain.lab.stage("reward"), chain.inputs("init", "annotations"))
    groups = read(chain.annotations, "validation")
    expected = plain_scores(run.model_dir, groups, chain.lab.store.cache)
    from alignlab.stages.reward import scores_of

    found = scores_of(caught.backbone, "reward", groups, chain.lab.engine)
    flat = [value for values in expected for value in values]
    assert found.tolist() == pytest.approx(flat, abs=1e-4)
    model, head = plain_model(run.model_dir, chain.lab.store.cache), PlainHead.load(run.model_dir)
    with torch.no_grad():
        along = head.along(model, groups[0].prompt, groups[0].completions[0])
    assert abs(along[-1] - along[-2]) > 1e-3  # another position would be another number


def test_scores_have_mean_zero_and_deviation_one_after_training(chain: Chain) -> None:
    groups = read(chain.annotations, "train")
    scores = plain_scores(chain.reward.model_dir, groups, chain.lab.store.cache)
    flat = torch.tensor([value for values in scores for value in values])
    assert float(flat.mean()) == pytest.approx(0, abs=1e-4)
    assert float(flat.std()) == pytest.approx(1, abs=1e-4)


def test_normalisation_keeps_every_order(chain: Chain) -> None:
    inputs = chain.inputs("init", "annotations")
    raw = chain.lab.run(chain.lab.stage("reward", normalize=False), inputs)
    even = chain.lab.run(chain.lab.stage("reward"), inputs)
    assert raw.summary() == even.summary()
    moved = largest_difference(weights(raw), weights(even))
    assert moved > 1e-3  # gain and offset only
    names = {n for n, v in weights(raw).items() if not torch.equal(v, weights(even)[n])}
    assert names == {"head.safetensors/gain", "head.safetensors/offset"}


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "reward model",
    "budgets do not change the weights, nor the normalisation",
)
@pytest.mark.parametrize("budget", [64, 4096])
def test_micro_batches_do_not_change_the_weights(chain: Chain, budget: int) -> None:
    stage, inputs = chain.lab.stage("reward"), chain.inputs("init", "annotations")
    run = chain.lab.run(stage, inputs, token_budget=budget)
    assert largest_difference(weights(run), weights(chain.reward)) < 1e-5


def test_accuracy_counts_a_tie_as_one_half(
    chain: Chain, caught: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.lab.run(chain.lab.stage("reward"), chain.inputs("init", "annotations"))
    import alignlab.stages.reward as room

    groups = read(chain.annotations, "train")[:1]
    order = sorted(range(3), key=lambda i: -groups[0].verdict.utilities()[i])
    values = torch.zeros(3)
    values[order[0]], values[order[1]], values[order[2]] = 1.0, 0.0, 0.0
    monkeypatch.setattr(room, "scores_of", lambda *_: values)
    # best > middle: 1, best > worst: 1, middle = worst: one half
    found = pair_accuracy(caught.backbone, "reward", groups, chain.lab.engine)
    assert found == pytest.approx(2.5 / 3)


def test_a_reward_model_starts_from_its_init_run(chain: Chain) -> None:
    longer = chain.lab.run(chain.lab.stage("sft", steps=6), {})
    stage = chain.lab.stage("reward", steps=1, optimizer__learning_rate=1e-12)
    run = chain.lab.run(stage, {"init": longer, "annotations": chain.annotations})
    body = {n: v for n, v in weights(run).items() if not n.startswith("head")}
    assert largest_difference(body, weights(longer)) < 1e-9
