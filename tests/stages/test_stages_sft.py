"""Supervised fine-tuning: which tokens carry loss, and how it is averaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from stage_lab import Caught, Chain, largest_difference, plain_model, token_logps, weights

from alignlab.data.order import step_rows
from alignlab.data.template import Tokenization
from alignlab.models.load import resolve
from alignlab.spec import build
from alignlab.stages.sft import demonstrations


@pytest.mark.slow
@pytest.mark.parametrize("budget", [32, 4096])
def test_the_loss_is_the_token_mean_of_the_whole_batch(chain: Chain, budget: int) -> None:
    """Not the mean over rows, nor over micro-batches of unlike length."""
    stage = chain.lab.stage("sft", batch=5, steps=1)
    first = chain.lab.run(stage, {}, token_budget=budget).metrics("train")[0]
    base = resolve("random:tiny", chain.lab.store.cache)
    model = plain_model(base, chain.lab.store.cache)
    groups = tokenized(chain)
    picked = [groups[row] for row in step_rows(0, 5, len(groups), stage.seed)]
    with torch.no_grad():
        logps = [token_logps(model, g.prompt, g.completions[0]) for g in picked]
    by_token = -torch.cat(logps).mean()
    by_row = -torch.stack([x.mean() for x in logps]).mean()
    assert abs(by_token - by_row) > 1e-3  # the two can be told apart here
    assert first["loss"] == pytest.approx(float(by_token), abs=1e-5)
    assert first["nll"] == pytest.approx(float(by_token), abs=1e-5)


def tokenized(chain: Chain) -> list:
    from transformers import AutoTokenizer

    stage = chain.lab.stage("sft")
    folder = resolve("random:tiny", chain.lab.store.cache)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenization = Tokenization(tokenizer, stage.max_prompt, stage.max_completion)
    return tokenization.groups(demonstrations(build(stage.data).load("sft")))


def test_bos_stands_once_and_eos_ends_every_completion(chain: Chain, caught: Caught) -> None:
    chain.lab.run(chain.lab.stage("sft", steps=1, batch=16), {})
    batch = caught.work.micros(1)[0].data.batch
    tokenizer = caught.backbone.tokenizer
    for span in batch.spans:
        prompt = batch.input_ids[slice(*span.prompt)].tolist()
        [(start, end)] = span.completions
        completion = batch.input_ids[start:end].tolist()
        assert prompt[0] == tokenizer.bos_token_id
        assert (prompt + completion).count(tokenizer.bos_token_id) == 1
        assert completion[-1] == tokenizer.eos_token_id
        assert (prompt + completion).count(tokenizer.eos_token_id) == 1


def test_the_loss_holds_eos_and_nothing_of_the_prompt(chain: Chain, caught: Caught) -> None:
    chain.lab.run(chain.lab.stage("sft", steps=1, batch=16), {})
    batch = caught.work.micros(1)[0].data.batch
    eos = caught.backbone.tokenizer.eos_token_id
    assert len(batch.target_ids) == int(batch.lengths.sum())
    assert int((batch.target_ids == eos).sum()) == batch.completions
    inside = torch.zeros(batch.tokens, dtype=torch.bool)
    for span in batch.spans:
        for start, end in span.completions:
            inside[start:end] = True
    # The position after a predictor is what it predicts; a completion's first predictor is the
    # last prompt token, whose successor in a flat batch is that completion's first token.
    targets = batch.predictor_index + 1
    assert bool(inside[targets].all())
    assert torch.equal(batch.input_ids[targets], batch.target_ids)


def test_only_completion_tokens_get_a_gradient(chain: Chain, caught: Caught) -> None:
    """Other words in the prompts leave the loss's targets alone; a masked prompt has no term."""
    chain.lab.run(chain.lab.stage("sft", steps=1, batch=4), {})
    work, backbone = caught.work, caught.backbone
    [micro] = work.micros(1)
    with backbone.view("policy") as view:
        loss, _ = work.loss(view, micro)
    model = view.model.double()
    with torch.no_grad():
        losses = [-token_logps(model, g.prompt, g.completions[0]) for g in micro.data.groups]
    # Σ over completion tokens / number of completion tokens, prompts nowhere
    tokens = sum(map(len, losses))
    assert float(loss.detach()) == pytest.approx(float(torch.cat(losses).sum()) / tokens, abs=1e-5)
    assert micro.data.count == tokens


@pytest.mark.slow
def test_eos_is_learned(chain: Chain) -> None:
    """After a demonstration the trained model ends, and the untrained one does not."""
    run = chain.lab.run(chain.lab.stage("sft", steps=60, batch=16), {})
    cache = chain.lab.store.cache
    probability = []
    for folder in (resolve("random:tiny", cache), run.model_dir):
        model = plain_model(folder, cache)
        with torch.no_grad():
            last = [token_logps(model, g.prompt, g.completions[0])[-1] for g in tokenized(chain)]
        probability.append(float(torch.stack(last).exp().mean()))
    assert probability[0] < 0.05
    assert probability[1] > 0.3


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "SFT",
    "budget and layout do not change the weights",
)
@pytest.mark.parametrize("change", ["token_budget", "layout"])
def test_micro_batches_and_layout_do_not_change_the_weights(chain: Chain, change: str) -> None:
    stage = chain.lab.stage("sft")
    one = chain.lab.run(stage, {})
    if change == "layout":
        other = chain.lab.run(replace(stage, backbone=replace(stage.backbone, layout="padded")), {})
    else:
        other = chain.lab.run(stage, {}, token_budget=40)
    assert largest_difference(weights(one), weights(other)) < 1e-5


@pytest.mark.conformance(
    "determinism",
    "SFT",
    "the same seed gives the same bits, another seed others",
)
def test_the_seed_decides_the_order_and_nothing_else_is_drawn(chain: Chain) -> None:
    stage = chain.lab.stage("sft")
    same = chain.lab.run(stage, {}), chain.lab.run(stage, {})
    assert largest_difference(weights(same[0]), weights(same[1])) == 0
    other = chain.lab.run(replace(stage, seed=1), {})
    assert largest_difference(weights(same[0]), weights(other)) > 1e-5


def test_demonstrations_imitate_the_best_completion(chain: Chain) -> None:
    groups = build(chain.lab.stage("sft").data).load("sft")
    for group, shown in zip(groups, demonstrations(groups), strict=True):
        assert shown.completions == (group.completions[int(np.argmax(group.verdict.scores))],)
        assert shown.verdict.kind == "demonstration"


def test_going_on_from_an_sft_run_starts_at_its_weights(chain: Chain) -> None:
    first = chain.lab.run(chain.lab.stage("sft", steps=8), {})
    stage = chain.lab.stage("sft", steps=1, inputs={"init": "sft"})
    second = chain.lab.run(stage, {"init": first})
    start = second.metrics("train")[0]["nll"]
    fresh = first.metrics("train")[0]["nll"]
    assert start < fresh - 0.1
