"""Online preference optimization against an implementation written out in loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stage_lab import (
    Caught,
    Chain,
    PlainAdamW,
    PlainHead,
    largest_difference,
    objective,
    plain_model,
    token_logps,
    weights,
)

from alignlab.data.order import step_rows
from alignlab.errors import ConfigError
from alignlab.run import Run
from alignlab.stages import online_preference_work

NEVER = {
    "_target_": "alignlab.rewards.verifiable.Matches",
    "pattern": "never written",
    "whole": False,
    "ignore_case": False,
}


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rollouts of a stage with all their completions, as they are collected."""
    found: list[Any] = []
    collect = online_preference_work.collect

    def keeping(*given: Any, **named: Any) -> Any:
        result = collect(*given, **named)
        found.append(result[0])
        return result

    monkeypatch.setattr(online_preference_work, "collect", keeping)
    return found


class NaiveOnlineDPO:
    """One iteration over given rollouts: one prompt, one pair, one completion at a time."""

    def __init__(self, chain: Chain, reference: Run, stage: Any, experience: Any) -> None:
        cache = chain.lab.store.cache
        self.stage, self.groups = stage, experience.groups
        self.policy = plain_model(chain.sft.model_dir, cache)
        self.reference = plain_model(reference.model_dir, cache)
        self.optimizer = PlainAdamW.like(stage, list(self.policy.parameters()))
        reward = plain_model(chain.reward.model_dir, cache)
        head = PlainHead.load(chain.reward.model_dir)
        finished = experience.finished.view(-1, stage.completions).tolist()
        with torch.no_grad():
            scores = [
                [
                    float(head.along(reward, g.prompt, c)[-1]) if ends else stage.missing_eos_score
                    for c, ends in zip(g.completions, finished[i], strict=True)
                ]
                for i, g in enumerate(self.groups)
            ]
        self.pairs = [self.compared(values) for values in scores]

    def compared(self, scores: list[float]) -> list[tuple[int, int]]:
        k = range(len(scores))
        if self.stage.pairs == "all":
            return [(i, j) for i in k for j in k if scores[i] > scores[j]]
        best, worst = scores.index(max(scores)), max(i for i in k if scores[i] == min(scores))
        return [(best, worst)] if scores[best] > scores[worst] else []

    def log_ratio(self, group: Any, place: int) -> torch.Tensor:
        completion = group.completions[place]
        with torch.no_grad():
            reference = token_logps(self.reference, group.prompt, completion).sum()
        return token_logps(self.policy, group.prompt, completion).sum() - reference

    def update(self, chosen: list[int]) -> None:
        beta, loss, count = 0.1, torch.zeros((), dtype=torch.float64), 0
        for i in chosen:
            for better, worse in self.pairs[i]:
                gap = self.log_ratio(self.groups[i], better) - self.log_ratio(self.groups[i], worse)
                loss, count = loss - torch.log(torch.sigmoid(beta * gap)), count + 1
        nothing = 0 * sum(p.sum() for p in self.optimizer.parameters)
        self.optimizer.step(loss / max(count, 1) + nothing)

    def run(self) -> None:
        size = len(self.groups)
        order = step_rows(0, size, size, self.stage.seed * 1_000_003)
        for index in range(self.stage.updates):
            self.update(order[index :: self.stage.updates])


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "online DPO",
    "a whole iteration equals one in naive float64 loops: weights to 1e-5",
)
@pytest.mark.parametrize("pairs", ["best_worst", "all"])
def test_an_iteration_equals_one_written_out_in_loops(
    chain: Chain, earlier: Run, collected: list[Any], pairs: str
) -> None:
    stage, inputs = chain.online(
        "online_dpo",
        iterations=1,
        rollout_batch=8,
        completions=4,
        updates=2,
        pairs=pairs,
        sampling__temperature=1.3,  # the objective's own log-probs are those at temperature 1
        optimizer__learning_rate=3e-2,
    )
    run = chain.lab.run(stage, {**inputs, "reference": earlier}, token_budget=90)
    assert 0 < int(collected[0].finished.sum()) < 32  # both sorts of ending occur
    naive = NaiveOnlineDPO(chain, earlier, stage, collected[0])
    assert sum(map(len, naive.pairs)) >= 4
    naive.run()
    plain = {f"model.safetensors/{n}": p.detach() for n, p in naive.policy.named_parameters()}
    assert largest_difference(weights(run), plain) < 1e-5
    assert largest_difference(weights(run), weights(chain.sft)) > 1e-2
    assert run.record["label"] == "Online DPO (beta=0.1, label_smoothing=0.0)"


@pytest.mark.conformance(
    "law",
    "online DPO",
    "completions that the judge does not tell apart move no weight, bit for bit",
)
def test_ties_teach_nothing(chain: Chain) -> None:
    inputs = chain.inputs("init", "reference")
    stage = chain.lab.stage(
        "online_dpo",
        inputs=dict.fromkeys(inputs, "sft"),
        reward=NEVER,
        missing_eos_score=None,
        optimizer__weight_decay=0.0,
    )
    run = chain.lab.run(stage, inputs)
    assert largest_difference(weights(run), weights(chain.sft)) == 0
    assert run.summary()["tie_share"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kto", "simpo", "bco"])
def test_other_objectives_go_online(chain: Chain, earlier: Run, name: str) -> None:
    """Thumbs with a statistic of the step, and pairs without a reference."""
    stage, inputs = chain.online(
        "online_dpo", objective=objective(name), missing_eos_score=None, iterations=2, updates=2
    )
    if name == "simpo":
        del inputs["reference"]
    else:
        inputs["reference"] = earlier
    run = chain.lab.run(stage, inputs)
    assert largest_difference(weights(run), weights(chain.sft)) > 1e-3
    assert ("reference" in run.record) == (name != "simpo")
    lines = [line for line in run.metrics("train") if "tie_share" in line]
    assert len(lines) == 2  # once per rollout
    assert all(("kl" in line) == (name != "simpo") for line in lines)


def test_an_annotator_judges(chain: Chain, collected: list[Any], caught: Caught) -> None:
    inputs = chain.inputs("init", "reference")
    annotator = dict(chain.lab.configs["annotate"]["annotator"])
    annotator["reward"] = {**NEVER, "pattern": "p"}
    stage = chain.lab.stage(
        "online_dpo",
        inputs=dict.fromkeys(inputs, "sft"),
        annotator=annotator,
        missing_eos_score=None,
        iterations=1,
        updates=1,
        pairs="all",
    )
    chain.lab.run(stage, inputs)
    [experience], work = collected, caught.work
    assert set(experience.scores.tolist()) == {0.0, 1.0}  # its gold scores are reported
    scores = experience.scores.view(-1, stage.completions).tolist()
    for group, values in zip(work.groups, scores, strict=True):
        assert group.verdict.kind == "ranking"
        assert list(group.verdict.ranks) == [int(max(values) - v) for v in values]
    assert 0 < work.tie_share < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": NEVER, "annotator": NEVER}, "one of them must judge"),
        ({"annotator": NEVER}, "an annotator ranks"),
        ({}, "inputs.reward is missing"),
        ({"reward": NEVER, "sampling__temperature": 0.0}, "above 0"),
        ({"reward": NEVER, "updates": 7}, "takes its share"),
        ({"reward": NEVER, "updates": 6, "objective": objective("kto")}, "needs 2 or more"),
        ({"reward": NEVER, "inputs": {"init": "sft"}}, "inputs.reference is missing"),
    ],
)
def test_what_cannot_be_is_refused(chain: Chain, changes: dict[str, Any], message: str) -> None:
    inputs = dict.fromkeys(("init", "reference"), "sft")
    with pytest.raises(ConfigError, match=message):
        chain.lab.stage("online_dpo", **{"inputs": inputs, **changes})
