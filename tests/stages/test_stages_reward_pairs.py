"""Shuffled pairs: every comparison of a ranking as a training element of its own."""

from __future__ import annotations

import math

import pytest
from stage_lab import Chain, PlainHead, plain_model

from alignlab.data.order import step_rows
from alignlab.stages.annotate import read
from alignlab.stages.reward import single_pairs


def test_a_ranking_of_three_becomes_three_pairs(chain: Chain) -> None:
    groups = read(chain.annotations, "train")
    pairs = single_pairs(groups)
    assert len(pairs) == 3 * len(groups)
    assert [pair.row for pair in pairs] == list(range(len(pairs)))
    group = groups[0]
    best = max(range(3), key=group.verdict.utilities().__getitem__)
    first = [pair for pair in pairs if pair.id == group.id]
    assert all(pair.verdict.pairs() == ((0, 1),) for pair in pairs)  # the better one first
    wins = sum(pair.completions[0].tolist() == group.completions[best].tolist() for pair in first)
    assert wins == 2  # against both others


def test_a_step_is_so_many_pairs_whatever_their_prompts(chain: Chain) -> None:
    changes = {"batch": 7, "steps": 1, "normalize": False, "optimizer__learning_rate": 1e-12}
    stage = chain.lab.stage("reward", pairs="shuffled", **changes)
    run = chain.lab.run(stage, chain.inputs("init", "annotations"))
    pairs = single_pairs(read(chain.annotations, "train"))
    picked = [pairs[row] for row in step_rows(0, 7, len(pairs), stage.seed)]
    model = plain_model(run.model_dir, chain.lab.store.cache)
    head, losses = PlainHead.load(run.model_dir), []
    for pair in picked:
        good, bad = (float(head.along(model, pair.prompt, c)[-1]) for c in pair.completions)
        losses.append(math.log1p(math.exp(bad - good)) + 0.01 * (good + bad) ** 2)
    assert run.metrics("train")[0]["loss"] == pytest.approx(sum(losses) / 7, abs=1e-5)
    assert run.record["prompts"] == 7
    assert run.record["completions"] == 14


def test_an_epoch_has_every_pair_once(chain: Chain) -> None:
    stage = chain.lab.stage("reward", pairs="shuffled", batch=10, steps=None, epochs=1.0)
    run = chain.lab.run(stage, chain.inputs("init", "annotations"))
    pairs = 3 * len(read(chain.annotations, "train"))
    assert run.record["updates"] == math.ceil(pairs / 10)
