"""SFT on sampled completions, and annotation by reward runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from stage_lab import Chain, PlainHead, largest_difference, plain_model, weights

from alignlab.data.group import Kind, TokenGroup, Verdict
from alignlab.errors import ConfigError, DataError
from alignlab.stages.annotate import FILE
from alignlab.stages.annotations import read
from alignlab.stages.imitation import Imitate
from alignlab.stages.pairing import verdict_of_scores

IDS = ([7], [8, 9], [7], [5, 5, 5], [6])  # the first and the third are equal
ALL = {
    "best": 9,
    "least": None,
    "distinct": False,
    "truncated": "keep",
    "demonstrations": False,
}


def judged(kind: Kind = "scores", **values: Any) -> TokenGroup:
    values = values or {"scores": (0.5, 2.0, 0.5, 1.0, -1.0)}
    return TokenGroup(
        prompt=np.array([1], dtype=np.int32),
        completions=tuple(np.array(ids, dtype=np.int32) for ids in IDS),
        verdict=Verdict(kind, **values),
        row=0,
        id="one",
        truncated=(False, False, False, True, False),
        meta={"gold": (1.0, 0.0, 1.0, 0.0, 1.0)} if kind == "ranking" else {},
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1, 3, 0, 2, 4]),  # by score, the first of equals first
        ({"best": 1}, [1]),
        ({"distinct": True}, [1, 3, 0, 4]),
        ({"truncated": "drop"}, [1, 0, 2, 4]),
        ({"least": 0.5, "truncated": "drop", "distinct": True, "best": 2}, [1, 0]),
        ({"least": 3.0}, []),
    ],
)
def test_what_is_imitated(changes: dict[str, Any], expected: list[int]) -> None:
    assert Imitate(**{**ALL, **changes}).places(judged()) == expected


def test_a_bound_is_one_on_scores_and_the_order_that_of_the_verdict() -> None:
    ranked = judged("ranking", ranks=(3, 0, 3, 1, 2))
    assert Imitate(**ALL).places(ranked) == [1, 3, 4, 0, 2]
    assert Imitate(**{**ALL, "least": 1.0}).places(ranked) == [4, 0, 2]  # gold scores of the meta
    thumbs = judged("thumbs", thumbs=(True, False, True, False, True))
    with pytest.raises(DataError, match="ranks or thumbs and no score"):
        Imitate(**{**ALL, "least": 1.0}).places(thumbs)


def test_a_difference_of_rounding_is_a_tie() -> None:
    verdict = verdict_of_scores((0.1234567, 0.1234568, 0.12344, -2.0))
    assert verdict.scores == (0.12346, 0.12346, 0.12344, -2.0)
    assert verdict.pairs() == ((0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


def test_groups_without_any_are_left_out() -> None:
    how = Imitate(**{**ALL, "least": 1.0, "distinct": True})
    [found] = how.of([judged(), judged("scores", scores=(0.0,) * 5)])
    assert [c.tolist() for c in found.completions] == [[8, 9], [5, 5, 5]]
    assert found.verdict.kind == "demonstration"
    assert found.truncated == (False, True)


@pytest.mark.conformance(
    "closed form",
    "best-of-n distillation",
    "trains on the best completions of the annotations alone, as sampled: equals SFT on them",
)
def test_best_of_n_is_sft_on_the_best(chain: Chain) -> None:
    inputs = {"init": chain.sft, "annotations": chain.annotations}
    stage = chain.lab.stage("best_of_n", batch=4, steps=1, optimizer__max_grad_norm=None)
    run = chain.lab.run(stage, inputs)
    groups = [g for g in read(chain.annotations, "train") if not all(g.truncated)]
    assert run.record["prompts"] == 4
    assert run.record["label"] == "best-of-n SFT"
    from alignlab.data.order import step_rows

    model = plain_model(chain.sft.model_dir, chain.lab.store.cache)
    total, count = 0.0, 0
    for row in step_rows(0, 4, len(groups), stage.seed):
        group = groups[row]
        order = sorted(range(len(group.completions)), key=lambda i: -group.verdict.utilities()[i])
        best = next(i for i in order if not group.truncated[i])
        ids = torch.tensor([[*map(int, group.prompt), *map(int, group.completions[best])]])
        logits = model(input_ids=ids).logits[0].log_softmax(-1)
        for t, token in enumerate(group.completions[best]):
            total = total - float(logits[len(group.prompt) - 1 + t, int(token)].detach())
            count += 1
    [line] = [x for x in run.metrics("train") if "nll" in x]
    assert line["nll"] == pytest.approx(total / count, abs=1e-5)
    assert largest_difference(weights(run), weights(chain.sft)) > 1e-3


def test_the_demonstrations_may_be_trained_on_too(chain: Chain) -> None:
    how = {**ALL, "best": 2, "least": 1.0, "distinct": True, "demonstrations": True}
    inputs = {"annotations": chain.annotations}
    stage = chain.lab.stage("best_of_n", imitate=how, batch=4, steps=None, epochs=1.0, rows=10)
    run = chain.lab.run(stage, inputs)
    alone = chain.lab.stage(
        "best_of_n", imitate={**how, "demonstrations": False}, batch=4, steps=None
    )
    sampled = chain.lab.run(alone, inputs).record["prompts"]
    # steps show whole batches of 4: 10 demonstrations more are 2 or 3 steps more
    assert run.record["prompts"] - sampled in (8, 12)


def test_what_passes_nothing_is_refused(chain: Chain) -> None:
    inputs = {"init": chain.sft, "annotations": chain.annotations}
    stage = chain.lab.stage("best_of_n", imitate={**ALL, "least": 1e9})
    with pytest.raises(DataError, match="no completion passes imitate"):
        chain.lab.run(stage, inputs)
    with pytest.raises(ConfigError, match="set both"):
        chain.lab.stage("best_of_n", imitate=None)
    with pytest.raises(ConfigError, match="set both"):
        chain.lab.stage("sft", imitate=ALL)


@pytest.mark.conformance(
    "closed form",
    "annotation by a reward run",
    "each completion scores what the reward model gives it, whatever verdict came with the data",
)
def test_reward_runs_judge(chain: Chain) -> None:
    roles = {"policy": "sft", "reward": "reward"}
    stage = chain.lab.stage("annotate", inputs=roles, completions=4, prompts=6, skip=3)
    run = chain.lab.run(stage, chain.inputs("policy", "reward"))
    rows = [json.loads(line) for line in (run.path / FILE).open(encoding="utf-8")]
    given = [json.loads(line) for line in (chain.annotations.path / FILE).open(encoding="utf-8")]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in given[3:9]]
    model = plain_model(chain.reward.model_dir, chain.lab.store.cache)
    head = PlainHead.load(chain.reward.model_dir)
    for row in rows:
        assert len(row["completions"]) == 4
        with torch.no_grad():
            expected = [
                float(head.along(model, row["prompt_ids"], ids)[-1])
                for ids in row["completion_ids"]
            ]
        assert row["verdict"]["scores"] == pytest.approx(expected, abs=2e-5)


def test_several_rewards_say_how_they_are_one(chain: Chain) -> None:
    roles = {"policy": "sft", "reward": "reward", "reward/1": "reward"}
    with pytest.raises(ConfigError, match="several reward stages judge"):
        chain.lab.stage("annotate", inputs=roles)
    how = {"combine": "min", "penalty": 0.5}
    stage = chain.lab.stage("annotate", inputs=roles, ensemble=how, prompts=4)
    inputs = {**chain.inputs("policy", "reward"), "reward/1": chain.reward}
    run = chain.lab.run(stage, inputs)
    one = chain.lab.stage("annotate", inputs={k: roles[k] for k in ("policy", "reward")}, prompts=4)
    alone = chain.lab.run(one, chain.inputs("policy", "reward"))
    assert (run.path / FILE).read_bytes() == (alone.path / FILE).read_bytes()
