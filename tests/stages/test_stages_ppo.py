"""PPO against an implementation written out in loops, and the choices that its docstring states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from stage_lab import (
    Caught,
    Chain,
    PlainAdamW,
    PlainHead,
    largest_difference,
    plain_model,
    token_logps,
    weights,
)

from alignlab.data.order import step_rows
from alignlab.errors import ConfigError
from alignlab.run import Run
from alignlab.stages import ppo_work

CONTAINS_P = {
    "_target_": "alignlab.rewards.verifiable.Matches",
    "pattern": "p",
    "whole": False,
    "ignore_case": False,
}


class NaivePPO:
    """One iteration of PPO over given rollouts: one sequence, one token, one number at a time."""

    def __init__(
        self, chain: Chain, reference: Run, stage: Any, experience: Any, ptx: list
    ) -> None:
        cache = chain.lab.store.cache
        self.stage, self.ptx = stage, ptx
        self.policy = plain_model(chain.sft.model_dir, cache)
        self.reference = plain_model(reference.model_dir, cache)
        self.body = plain_model(chain.reward.model_dir, cache)
        self.head = PlainHead.load(chain.reward.model_dir)
        self.reward_body = plain_model(chain.reward.model_dir, cache)
        self.reward_head = PlainHead.load(chain.reward.model_dir)
        self.head.weight.requires_grad_()
        self.head.bias.requires_grad_()
        self.rollouts = [
            (g.prompt, g.completions[0], bool(done))
            for g, done in zip(experience.groups, experience.finished, strict=True)
        ]
        self.optimizer = PlainAdamW.like(
            stage,
            [
                *self.policy.parameters(),
                *(p for n, p in self.body.named_parameters() if n != "lm_head.weight"),
                self.head.weight,
                self.head.bias,
            ],
        )

    def logps(self, model: Any, rollout: Any) -> torch.Tensor:
        return token_logps(model, rollout[0], rollout[1], self.stage.sampling.temperature)

    def values(self, rollout: Any) -> torch.Tensor:
        return self.head.along(self.body, rollout[0], rollout[1])[len(rollout[0]) - 1 : -1]

    def look_back(self) -> None:
        """Everything that is fixed before the first update."""
        stage = self.stage
        self.old, self.old_values, self.advantages, self.returns = [], [], [], []
        with torch.no_grad():
            for rollout in self.rollouts:
                old = self.logps(self.policy, rollout).tolist()
                ref = self.logps(self.reference, rollout).tolist()
                score = float(self.reward_head.along(self.reward_body, *rollout[:2])[-1])
                if not rollout[2]:
                    score = stage.missing_eos_score
                rewards = [-stage.kl_coef * (a - b) for a, b in zip(old, ref, strict=True)]
                rewards[-1] += score
                value = self.values(rollout).tolist()
                advantage = [0.0] * len(old)
                running = 0.0
                for t in reversed(range(len(old))):
                    following = value[t + 1] if t + 1 < len(old) else 0.0
                    delta = rewards[t] + stage.gamma * following - value[t]
                    running = delta + stage.gamma * stage.lam * running
                    advantage[t] = running
                self.old.append(old)
                self.old_values.append(value)
                self.advantages.append(advantage)
                self.returns.append([a + v for a, v in zip(advantage, value, strict=True)])
        every = [a for row in self.advantages for a in row]
        mean = sum(every) / len(every)
        variance = sum((a - mean) ** 2 for a in every) / len(every)
        if stage.whiten_advantages:
            self.advantages = [
                [(a - mean) / (variance + 1e-8) ** 0.5 for a in row] for row in self.advantages
            ]

    def update(self, chosen: list[int], step: int) -> None:
        """One optimizer step on the rollouts ``chosen``."""
        stage = self.stage
        tokens = sum(len(self.old[i]) for i in chosen)
        loss = torch.zeros((), dtype=torch.float64)
        for i in chosen:
            new, value = self.logps(self.policy, self.rollouts[i]), self.values(self.rollouts[i])
            for t, old in enumerate(self.old[i]):
                ratio, a = torch.exp(new[t] - old), self.advantages[i][t]
                plain = float(ratio.detach())
                near = min(max(plain, 1 - stage.clip), 1 + stage.clip)
                # the pessimistic of the two; a clipped one is a constant
                pessimistic = ratio * a if plain * a <= near * a else near * a
                loss = loss - pessimistic / tokens
                v, g = self.old_values[i][t], self.returns[i][t]
                moved = v + torch.clamp(value[t] - v, -stage.value_clip, stage.value_clip)
                error = torch.maximum((value[t] - g) ** 2, (moved - g) ** 2)
                loss = loss + stage.value_coef * 0.5 * error / tokens
        if self.ptx:
            size = stage.rollout_batch // stage.minibatches
            rows = step_rows(step - 1, size, len(self.ptx), stage.seed + 1)
            shown = [(self.ptx[r].prompt, self.ptx[r].completions[0]) for r in rows]
            count = sum(len(completion) for _, completion in shown)
            for prompt, completion in shown:
                nll = -token_logps(self.policy, prompt, completion).sum()
                loss = loss + stage.ptx_coef * nll / count
        self.optimizer.step(loss)

    def run(self) -> None:
        self.look_back()
        stage, size, step = self.stage, len(self.rollouts), 0
        for epoch in range(stage.ppo_epochs):
            order = step_rows(epoch, size, size, stage.seed * 1_000_003)
            for index in range(stage.minibatches):
                step += 1
                self.update(order[index :: stage.minibatches], step)


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "PPO and PPO-ptx",
    "a whole iteration equals one in naive float64 loops: policy and value weights to 1e-5",
)
@pytest.mark.parametrize("ptx", [0.0, 0.5], ids=["ppo", "ppo-ptx"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("whiten", [True, False])
def test_an_iteration_equals_one_written_out_in_loops(
    chain: Chain, earlier: Run, caught: Caught, ptx: float, temperature: float, whiten: bool
) -> None:
    stage, inputs = chain.online(
        "ppo",
        iterations=1,
        rollout_batch=6,
        ppo_epochs=2,
        minibatches=2,
        clip=0.05,
        value_clip=0.1,
        lam=0.9,
        gamma=0.97,
        kl_coef=0.1,
        whiten_advantages=whiten,
        ptx_coef=ptx,
        ptx_rows=10,
        sampling__temperature=temperature,
        sampling__max_new_tokens=7,  # some completions end and some do not
    )
    run = chain.lab.run(stage, {**inputs, "reference": earlier}, token_budget=70)
    experience = caught.work.experience
    assert 0 < int(experience.finished.sum()) < 6  # both sorts of ending occur
    naive = NaivePPO(chain, earlier, stage, experience, caught.work.ptx)
    naive.run()
    ours = weights(run)
    plain = {f"model.safetensors/{n}": p.detach() for n, p in naive.policy.named_parameters()}
    assert largest_difference(ours, plain) < 1e-5
    assert largest_difference(ours, weights(chain.sft)) > 1e-3
    value = {n: p.detach() for n, p in caught.backbone.trainable_parameters("value").items()}
    expected = {n: p.detach() for n, p in naive.body.named_parameters()}
    expected |= {
        "head.linear.weight": naive.head.weight.detach()[None],
        "head.linear.bias": naive.head.bias.detach()[None],
    }
    assert largest_difference(value, expected) < 1e-5
    last = run.metrics("train")[-1]
    assert last["clip_fraction"] > 0  # so that clipping was tried
    assert ("ptx_nll" in last) == (ptx > 0)


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence", "PPO", "the ratio is 1 at the first update, at any sampling temperature, to 1e-4"
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_ratio_is_one_before_the_first_update(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """The sampler's log-probs are those of training: same temperature, tokens and model."""
    seen = []
    ratio_of = ppo_work.importance_ratio

    def keeping(logps: Any) -> torch.Tensor:
        seen.append(ratio_of(logps).detach())
        return ratio_of(logps)

    monkeypatch.setattr(ppo_work, "importance_ratio", keeping)
    stage, inputs = chain.online(
        "ppo", iterations=1, ppo_epochs=2, minibatches=1, sampling__temperature=temperature
    )
    chain.lab.run(stage, inputs)
    assert float((seen[0] - 1).abs().max()) < 1e-4
    assert float((seen[1] - 1).abs().max()) > 1e-2


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form", "PPO", "the adaptive KL coefficient of a stage run, by hand from its logged KLs"
)
def test_the_adaptive_coefficient_by_hand(chain: Chain) -> None:
    stage, inputs = chain.online(
        "ppo", iterations=4, kl_coef=0.2, kl_target=0.5, kl_horizon=40, rollout_batch=8
    )
    run = chain.lab.run(stage, inputs)
    coefficient = 0.2
    rows = [row for row in run.metrics("train") if "kl" in row]
    assert len(rows) == 4
    for row in rows:
        assert row["kl_coef"] == pytest.approx(coefficient, rel=1e-6)  # the one that was used
        error = min(max(row["kl"] / 0.5 - 1, -0.2), 0.2)
        coefficient *= 1 + error * 8 / 40
    assert run.summary()["kl_coef"] == pytest.approx(coefficient, rel=1e-6)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)  # the policy is the reference at first


@pytest.mark.conformance(
    "equivalence", "PPO", "the value view starts as the reward run, values read before each token"
)
def test_the_value_view_starts_as_the_reward_run(chain: Chain, caught: Caught) -> None:
    stage, inputs = chain.online("ppo", iterations=1, optimizer__learning_rate=1e-12)
    chain.lab.run(stage, inputs)
    value = caught.backbone.trainable_parameters("value")
    started = {n: p.detach() for n, p in value.items() if not n.startswith("head.")}
    body = plain_model(chain.reward.model_dir, chain.lab.store.cache)
    assert largest_difference(started, dict(body.named_parameters())) < 1e-9
    head = PlainHead.load(chain.reward.model_dir)
    experience = caught.work.experience
    with torch.no_grad():
        for group, values in zip(experience.groups, experience.tokens["values"], strict=True):
            along = head.along(body, group.prompt, group.completions[0])
            expected = along[len(group.prompt) - 1 : -1]
            assert torch.allclose(values.double(), expected, atol=1e-4)


def test_a_reward_function_in_place_of_a_reward_run(chain: Chain, caught: Caught) -> None:
    inputs = chain.inputs("init", "reference")
    stage = chain.lab.stage("ppo", inputs=dict.fromkeys(inputs, "sft"), reward=CONTAINS_P)
    run = chain.lab.run(stage, inputs)
    experience = caught.work.experience
    tokenizer = caught.backbone.tokenizer
    texts = [tokenizer.decode(g.completions[0]) for g in experience.groups]
    assert experience.scores.tolist() == [float("p" in text) for text in texts]
    assert run.record["reference"] == chain.sft.path.name


@pytest.mark.parametrize(
    "change", [{"sampling__top_p": 0.9}, {"sampling__top_k": 5}, {"sampling__temperature": 0.0}]
)
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_truncated_sampling_is_refused_before_anything_runs(
    chain: Chain, name: str, change: dict
) -> None:
    with pytest.raises(ConfigError, match="whole distribution"):
        chain.online(name, **change)


def test_a_stage_without_any_reward_is_refused(chain: Chain) -> None:
    for name in ("ppo", "grpo"):
        with pytest.raises(ConfigError, match=r"inputs\.reward"):
            chain.lab.stage(name, inputs={"init": "sft", "reference": "sft"})


def test_more_minibatches_than_rollouts_are_refused(chain: Chain) -> None:
    with pytest.raises(ConfigError, match="minibatches=9"):
        chain.online("ppo", minibatches=9)


@pytest.mark.slow
@pytest.mark.conformance("equivalence", "PPO", "any token budget: the same weights to 1e-5")
def test_micro_batches_do_not_change_the_weights(chain: Chain) -> None:
    stage, inputs = chain.online("ppo", ppo_epochs=2)
    small = chain.lab.run(stage, inputs, token_budget=40)
    large = chain.lab.run(stage, inputs, token_budget=4096)
    assert largest_difference(weights(small), weights(large)) < 1e-5


def test_rollouts_of_one_prompt_twice_in_a_batch_differ(chain: Chain, caught: Caught) -> None:
    """More rollouts than prompts: a prompt comes again with samples of its own."""
    stage, inputs = chain.online("ppo", prompts=2, rollout_batch=8, iterations=1)
    chain.lab.run(stage, inputs)
    groups = caught.work.experience.groups
    rows = [g.row for g in groups]
    assert sorted(rows) == [0, 0, 0, 0, 1, 1, 1, 1]
    same = [tuple(g.completions[0].tolist()) for g in groups if g.row == 0]
    assert len(set(same)) > 1


def test_record_counts_what_was_sampled(chain: Chain, caught: Caught) -> None:
    stage, inputs = chain.online("ppo", iterations=2)
    run = chain.lab.run(replace(stage), inputs)
    rows = [row for row in run.metrics("train") if "completion_length" in row]
    sampled = sum(row["completion_length"] * stage.rollout_batch for row in rows)
    assert run.record["tokens_sampled"] == pytest.approx(sampled)
    assert run.record["completions"] == 2 * stage.rollout_batch
