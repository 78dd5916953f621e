"""A reference that moves, BCO's shift of a whole step, and objectives over whole prompts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from stage_lab import (
    Chain,
    largest_difference,
    objective,
    plain_model,
    token_logps,
    weight_hashes,
    weights,
)
from test_stages_resume import Stopped, stopping_after

from alignlab.errors import ConfigError
from alignlab.run import Run
from alignlab.spec import function
from alignlab.stages.annotate import read
from alignlab.stages.moving import Moves, MovingReference


def moving(chain: Chain, weight: float, every: int, **changes: Any) -> tuple[Any, dict[str, Run]]:
    stage, inputs = chain.prefer(**changes)
    return replace(stage, reference_moves=Moves(weight=weight, every=every)), inputs


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.metrics("train")]


@pytest.mark.slow
def test_a_reference_that_is_the_policy_of_the_step_before(chain: Chain) -> None:
    # α = 1 after every step: h = 0 whenever a step begins, and its loss is log 2
    stage, inputs = moving(chain, 1.0, 1, steps=4)
    assert losses(chain.lab.run(stage, inputs)) == pytest.approx([math.log(2)] * 4, abs=1e-5)
    # after every third: log 2 at the steps 1, 4 and 7 alone
    stage, inputs = moving(chain, 1.0, 3, steps=7)
    still = [abs(loss - math.log(2)) < 1e-5 for loss in losses(chain.lab.run(stage, inputs))]
    assert still == [True, False, False, True, False, False, True]


@pytest.mark.conformance(
    "equivalence",
    "TR-DPO",
    "a reference that never moves is DPO's frozen one: the same weights to 1e-6",
)
def test_a_reference_that_does_not_move_yet_is_dpo(chain: Chain) -> None:
    stage, inputs = moving(chain, 0.5, 100, steps=3)
    plain, _ = chain.prefer(steps=3)
    one, other = chain.lab.run(stage, inputs), chain.lab.run(plain, inputs)
    assert largest_difference(weights(one), weights(other)) < 1e-6
    assert one.record["reference"] == chain.sft.path.name


def test_the_moves_are_the_mixture(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float, float, float]] = []
    follow = MovingReference.follow

    def watching(self: MovingReference, step: int) -> None:
        def first(name: str) -> float:
            return float(next(iter(self.backbone.trainable_parameters(name).values())).flatten()[0])

        before, policy = first("reference"), first("policy")
        follow(self, step)
        seen.append((step, before, policy, first("reference")))

    monkeypatch.setattr(MovingReference, "follow", watching)
    stage, inputs = moving(chain, 0.25, 2, steps=4)
    chain.lab.run(stage, inputs)
    assert [step for step, *_ in seen] == [1, 2, 3, 4]
    for step, before, policy, after in seen:
        expected = before if step % 2 else 0.25 * policy + 0.75 * before
        assert after == pytest.approx(expected, abs=1e-7)
    assert seen[1][1] != seen[1][3]


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "TR-DPO",
    "stopped between two moves and continued: the same bytes, the reference included",
)
def test_a_moving_reference_survives_an_interruption(chain: Chain) -> None:
    stage, inputs = moving(chain, 0.5, 2, steps=6)
    straight = chain.lab.run(stage, inputs)
    run = chain.lab.new_run("preference")
    with stopping_after(3), pytest.raises(Stopped):
        chain.lab.run(stage, inputs, run, checkpoint_every_seconds=0)
    resumed = chain.lab.run(stage, inputs, run)
    assert weight_hashes(resumed) == weight_hashes(straight)
    assert losses(resumed) == losses(straight)


def test_copies_of_adapters_move_and_mixtures_are_refused(lora_chain: Chain) -> None:
    stage, inputs = moving(lora_chain, 1.0, 1, steps=3)
    run = lora_chain.lab.run(stage, inputs)
    assert losses(run) == pytest.approx([math.log(2)] * 3, abs=1e-4)
    with pytest.raises(ConfigError, match="no mixture of what they do"):
        moving(lora_chain, 0.5, 1)


def test_what_has_no_reference_cannot_move_it(chain: Chain) -> None:
    stage, _ = chain.prefer(objective=objective("orpo"))
    with pytest.raises(ConfigError, match="no reference that could move"):
        replace(stage, reference_moves=Moves(weight=1.0, every=1))


def test_parts_of_weights_cannot_be_mixed(chain: Chain) -> None:
    with pytest.raises(ConfigError, match=r"engine\.zero=2"):
        MovingReference(
            None, chain.sft, replace(chain.lab.engine, zero=2), Moves(weight=1, every=1)
        )  # type: ignore[arg-type]


def test_the_name_in_tables_says_that_the_reference_moves(chain: Chain) -> None:
    stage, _ = moving(chain, 0.5, 64)
    assert stage.name().startswith("TR-DPO (beta=0.1")
    assert stage.name().endswith("reference moves 0.5 every 64)")
    assert chain.prefer(objective=objective("dpo_length"))[0].name().startswith("R-DPO (beta")
    assert chain.prefer(objective=objective("simper"))[0].name() == "SimPER"


@pytest.mark.conformance(
    "equivalence",
    "BCO",
    "the shift is over the whole optimizer step, whatever the micro-batches (by hand, to 1e-4)",
)
def test_the_shift_of_bco_by_hand(chain: Chain, earlier: Run) -> None:
    from alignlab.models.backbone import Backbone
    from alignlab.objectives.declaration import declaration
    from alignlab.stages.reference import ReferenceLogps
    from alignlab.stages.terms import Terms

    stage, _ = chain.prefer(objective=objective("bco"), pairs="all")
    backbone = Backbone.load(stage.backbone, chain.lab.store.cache)
    step = stage.select(read(chain.annotations, "train"))[:5]
    reference = ReferenceLogps(backbone, earlier, chain.lab.engine, chain.lab.store.cache)
    reference.prepare(step)
    backbone.add("policy", source=chain.sft.model_dir, trainable=True)
    policy, before = (plain_model(r.model_dir, chain.lab.store.cache) for r in (chain.sft, earlier))
    up, down = [], []
    with torch.no_grad():
        for group in step:
            for completion, thumb in zip(group.completions, group.verdict.desirable(), strict=True):
                if thumb is not None:
                    new = float(token_logps(policy, group.prompt, completion).sum())
                    old = float(token_logps(before, group.prompt, completion).sum())
                    (up if thumb else down).append(new - old)
    by_hand = (sum(up) / len(up) + sum(down) / len(down)) / 2
    assert abs(by_hand) > 0.1
    bco = function(stage.objective)
    terms = Terms(bco, declaration(bco), reference)
    for budget in (32, 4096):
        engine = replace(chain.lab.engine, token_budget=budget)
        found = terms.log_ratio_shift(backbone, step, engine)["log_ratio_shift"]
        assert float(found) == pytest.approx(by_hand, abs=1e-4)
        assert not found.requires_grad


def test_what_bco_reports_of_its_shift(chain: Chain) -> None:
    stage, inputs = chain.prefer(objective=objective("bco"), steps=3, pairs="all")
    rows = chain.lab.run(stage, inputs).metrics("train")
    assert rows[0]["log_ratio_shift"] == pytest.approx(0.0, abs=1e-4)  # policy = reference
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(rows[2]["log_ratio_shift"]) > 1e-3


def test_a_whole_prompt_is_one_example(chain: Chain) -> None:
    # at policy = reference, whatever the scores: log 3! of DPO-PL, log 3 of InfoNCA, 2·log 2 of NCA
    for name, expected in (
        ("dpo_ranking", math.log(6)),
        ("info_nca", math.log(3)),
        ("nca", 2 * math.log(2)),
    ):
        stage, inputs = chain.prefer(objective=objective(name), steps=1, pairs="all")
        [row] = chain.lab.run(stage, inputs).metrics("train")
        assert row["loss"] == pytest.approx(expected, abs=1e-5)
    stage, inputs = chain.prefer(objective=objective("info_nca"), steps=1)  # best against worst
    [row] = chain.lab.run(stage, inputs).metrics("train")
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_grpo_trains_on_what_a_judge_prefers_among_the_samples_of_a_prompt(chain: Chain) -> None:
    length = {"_target_": "alignlab.rewards.length.Length", "target_words": 3}
    judge = {
        "_target_": "alignlab.rewards.judge.reward_judge.RewardJudge",
        "reward": length,
        "margin": 0.0,
    }
    reward = {
        "_target_": "alignlab.rewards.judge.reward.JudgeReward",
        "judge": judge,
        "against": "others",
    }
    named = {"init": "sft", "reference": "sft"}
    stage = chain.lab.stage("grpo", inputs=named, reward=reward, iterations=2)
    run = chain.lab.run(stage, chain.inputs("init", "reference"))
    # every match gives one point in all, so the mean score of any group is a half
    for row in run.metrics("train"):
        assert row["reward"] == pytest.approx(0.5, abs=1e-6)
