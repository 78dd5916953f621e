"""GRPO and its relatives against an implementation written out in loops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
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

from alignlab.compose import conf_dir
from alignlab.data.order import step_rows
from alignlab.errors import ConfigError
from alignlab.run import Run
from alignlab.stages import grpo_work
from alignlab.stages.grpo_work import GRPOWork
from alignlab.stages.online import require_prompts_for_all

CONTAINS_P = {
    "_target_": "alignlab.rewards.verifiable.Matches",
    "pattern": "p",
    "whole": False,
    "ignore_case": False,
}


def relative(name: str) -> dict[str, Any]:
    """What conf/stage/<name>.yaml changes about GRPO."""
    changes = yaml.safe_load((conf_dir() / "stage" / f"{name}.yaml").read_text(encoding="utf-8"))
    return {k: v for k, v in changes.items() if k not in ("defaults", "updates")}


RELATIVES = {
    "grpo": {},
    "dr_grpo": relative("dr_grpo"),
    "dapo": relative("dapo"),
    "rloo": relative("rloo"),
    "gspo": {**relative("gspo"), "clip_low": 0.02, "clip_high": 0.04},
    "cispo": {**relative("cispo"), "clip_low": 0.1, "clip_high": 0.2},
    "reinforce_pp": {**relative("reinforce_pp"), "kl_coef": 0.3},
    "reinforce_pp_baseline": relative("reinforce_pp_baseline"),
    "k2": {"kl_estimator": "k2"},
    "k3_gradient_k2": {"kl_estimator": "k3_gradient_k2", "normalizer": "token"},
    "sequence_ratio_with_kl": {"ratio": "sequence", "kl_coef": 0.3},
}


class NaiveGRPO:
    """One iteration over given rollouts: one completion, one token, one number at a time."""

    def __init__(self, chain: Chain, reference: Run, stage: Any, experience: Any) -> None:
        cache = chain.lab.store.cache
        self.stage, self.groups = stage, experience.groups
        self.finished = experience.finished.view(-1, stage.group).tolist()
        self.policy = plain_model(chain.sft.model_dir, cache)
        self.reference = plain_model(reference.model_dir, cache)
        reward = plain_model(chain.reward.model_dir, cache)
        head = PlainHead.load(chain.reward.model_dir)
        self.optimizer = PlainAdamW.like(stage, list(self.policy.parameters()))
        with torch.no_grad():
            self.old = [self.logps(self.policy, g) for g in self.groups]
            self.ref = [self.logps(self.reference, g) for g in self.groups]
            self.scores = [
                [float(head.along(reward, g.prompt, c)[-1]) for c in g.completions]
                for g in self.groups
            ]
        self.advantages = [self.advantage(i) for i in range(len(self.groups))]
        if stage.advantage in ("whitened", "group_whitened"):
            everything = [a for group in self.advantages for row in group for a in row]
            mean = sum(everything) / len(everything)
            std = (sum((a - mean) ** 2 for a in everything) / len(everything)) ** 0.5
            self.advantages = [
                [[(a - mean) / std for a in row] for row in group] for group in self.advantages
            ]

    def logps(self, model: Any, group: Any) -> list[torch.Tensor]:
        return [
            token_logps(model, group.prompt, c, self.stage.sampling.temperature)
            for c in group.completions
        ]

    def advantage(self, i: int) -> list[list[float]]:
        """Of every token of every completion of prompt i."""
        lengths = [len(c) for c in self.groups[i].completions]
        rewards = self.rewards(i)
        if self.stage.advantage == "whitened":
            gaps = [self.old[i][j] - self.ref[i][j] for j in range(len(lengths))]
            beta = self.stage.kl_coef
            return [
                [rewards[j] - beta * float(gaps[j][t:].sum()) for t in range(n)]
                for j, n in enumerate(lengths)
            ]
        return [[a] * n for a, n in zip(self.relative(rewards), lengths, strict=True)]

    def rewards(self, i: int) -> list[float]:
        stage, rewards = self.stage, []
        for j, score in enumerate(self.scores[i]):
            value = score if self.finished[i][j] else stage.missing_eos_score
            if stage.kl_place == "reward":
                value -= stage.kl_coef * float((self.old[i][j] - self.ref[i][j]).sum())
            rewards.append(value)
        return rewards

    def relative(self, rewards: list[float]) -> list[float]:
        stage = self.stage
        if len(set(rewards)) == 1:
            return [0.0] * len(rewards)
        n, mean = len(rewards), sum(rewards) / len(rewards)
        if stage.advantage == "group_std":
            std = (sum((r - mean) ** 2 for r in rewards) / (n - 1)) ** 0.5
            return [(r - mean) / (std + 1e-4) for r in rewards]
        if stage.advantage in ("group_mean", "group_whitened"):
            return [r - mean for r in rewards]
        return [r - (sum(rewards) - r) / (n - 1) for r in rewards]  # against the others

    def update(self, chosen: list[int]) -> None:
        stage = self.stage
        lengths = [len(c) for i in chosen for c in self.groups[i].completions]
        loss = torch.zeros((), dtype=torch.float64)
        for i in chosen:
            new = self.logps(self.policy, self.groups[i])
            for j, completion in enumerate(self.groups[i].completions):
                if stage.normalizer == "sequence":
                    weight = 1 / len(completion) / len(lengths)
                elif stage.normalizer == "token":
                    weight = 1 / sum(lengths)
                else:
                    weight = 1 / stage.sampling.max_new_tokens / len(lengths)
                gain = self.advantages[i][j]
                if stage.ratio == "sequence":
                    ratio = torch.exp((new[j] - self.old[i][j]).sum())
                    loss = loss - weight * self.pessimistic(ratio, gain[0])
                if stage.ratio == "sequence_mean":
                    ratio = torch.exp((new[j] - self.old[i][j]).mean())
                    loss = loss - weight * len(completion) * self.pessimistic(ratio, gain[0])
                for t in range(len(completion)):
                    ratio = torch.exp(new[j][t] - self.old[i][j][t])
                    if stage.ratio == "token":
                        loss = loss - weight * self.pessimistic(ratio, gain[t])
                    if stage.ratio == "token_weight":
                        loss = loss - weight * self.cut(float(ratio.detach())) * gain[t] * new[j][t]
                    if stage.kl_place == "loss":
                        kl = self.kl(new[j][t], self.ref[i][j][t])
                        loss = loss + weight * stage.kl_coef * kl
        self.optimizer.step(loss)

    def pessimistic(self, ratio: torch.Tensor, a: float) -> torch.Tensor | float:
        plain = float(ratio.detach())
        near = self.cut(plain)
        return ratio * a if plain * a <= near * a else near * a

    def cut(self, ratio: float) -> float:
        return min(max(ratio, 1 - self.stage.clip_low), 1 + self.stage.clip_high)

    def kl(self, new: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
        if self.stage.kl_estimator == "k3":
            return torch.exp(ref - new) - 1 - (ref - new)
        return (new - ref) ** 2 / 2  # the gradient of k3_gradient_k2 too

    def run(self) -> None:
        size = len(self.groups)
        order = step_rows(0, size, size, self.stage.seed * 1_000_003)
        for index in range(self.stage.updates):
            self.update(order[index :: self.stage.updates])


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "GRPO, Dr.GRPO, DAPO, RLOO, GSPO, CISPO, REINFORCE++",
    "a whole iteration equals one in naive float64 loops: weights to 1e-5",
)
@pytest.mark.parametrize("name", RELATIVES)
@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_an_iteration_equals_one_written_out_in_loops(
    chain: Chain, earlier: Run, caught: Caught, name: str, temperature: float
) -> None:
    stage, inputs = chain.online(
        "grpo",
        iterations=1,
        rollout_batch=4,
        group=3,
        updates=2,
        optimizer__learning_rate=3e-2,
        sampling__temperature=temperature,
        **RELATIVES[name],
    )
    run = chain.lab.run(stage, {**inputs, "reference": earlier}, token_budget=90)
    experience = caught.work.experience
    assert 0 < int(experience.finished.sum()) < 12  # both sorts of ending occur
    naive = NaiveGRPO(chain, earlier, stage, experience)
    naive.run()
    plain = {f"model.safetensors/{n}": p.detach() for n, p in naive.policy.named_parameters()}
    assert largest_difference(weights(run), plain) < 1e-5
    assert largest_difference(weights(run), weights(chain.sft)) > 1e-2


@pytest.mark.conformance(
    "closed form", "GRPO", "sequence, token and constant normalisers are three losses"
)
def test_the_three_normalisers_are_three_losses(chain: Chain) -> None:
    """By hand above each for itself; here that they do differ on completions of unlike length."""
    runs = []
    for normalizer in ("sequence", "token", "constant"):
        stage, inputs = chain.online(
            "grpo", iterations=1, kl_coef=0.0, normalizer=normalizer, optimizer__max_grad_norm=None
        )
        runs.append(weights(chain.lab.run(stage, inputs)))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert largest_difference(runs[i], runs[j]) > 1e-5


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence", "GRPO", "leaving out groups of equal rewards changes no weight (1e-6)"
)
@pytest.mark.parametrize("updates", [1, 4])
def test_groups_with_equal_rewards_are_skipped_for_free(
    chain: Chain, caught: Caught, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    """With 4 updates of one group each, whole steps have no gradient; momentum goes on in them."""
    inputs = chain.inputs("init", "reference")
    stage = chain.lab.stage(
        "grpo",
        inputs=dict.fromkeys(inputs, "sft"),
        reward=CONTAINS_P,
        kl_coef=0.0,
        missing_eos_score=None,
        iterations=3,
        updates=updates,
        rollout_batch=4,
        group=2,
    )
    kept: list[int] = []
    pack = grpo_work.pack_experience

    def counting(experience: Any, chosen: Any, *args: Any, **named: Any) -> Any:
        kept.append(len(chosen))
        return pack(experience, chosen, *args, **named)

    monkeypatch.setattr(grpo_work, "pack_experience", counting)
    skipping = chain.lab.run(stage, inputs)
    skipped = sum(kept)
    shares = [r["zero_std_share"] for r in skipping.metrics("train") if "zero_std_share" in r]
    assert len(shares) == 3  # no iteration lost its metrics
    assert 0 < sum(shares) < 3
    kept.clear()
    monkeypatch.setattr(GRPOWork, "carries_gradient", lambda *_: True)
    whole = chain.lab.run(stage, inputs)
    assert sum(kept) == 12
    assert skipped < 12 or updates == 4  # a step always keeps one group
    assert largest_difference(weights(skipping), weights(whole)) < 1e-6
    assert largest_difference(weights(skipping), weights(chain.sft)) > 1e-3


def test_no_group_is_skipped_when_the_loss_has_a_kl_term(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = chain.inputs("init", "reference")
    never = {**CONTAINS_P, "pattern": "never written"}
    stage = chain.lab.stage(
        "grpo",
        inputs=dict.fromkeys(inputs, "sft"),
        reward=never,
        kl_coef=0.1,
        missing_eos_score=None,
        iterations=2,
    )
    kept: list[int] = []
    pack = grpo_work.pack_experience

    def counting(experience: Any, chosen: Any, *args: Any, **named: Any) -> Any:
        kept.append(len(chosen))
        return pack(experience, chosen, *args, **named)

    monkeypatch.setattr(grpo_work, "pack_experience", counting)
    chain.lab.run(stage, inputs)
    assert kept == [4, 4]


@pytest.mark.conformance(
    "closed form", "GRPO", "rewards that are all equal move no weight, bit for bit"
)
def test_rewards_that_are_all_equal_teach_nothing(chain: Chain) -> None:
    inputs = chain.inputs("init", "reference")
    never = {**CONTAINS_P, "pattern": "never written"}
    stage = chain.lab.stage(
        "grpo",
        inputs=dict.fromkeys(inputs, "sft"),
        reward=never,
        kl_coef=0.0,
        missing_eos_score=None,
    )
    run = chain.lab.run(stage, inputs)
    assert largest_difference(weights(run), weights(chain.sft)) == 0
    assert run.summary()["zero_std_share"] == 1


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "GRPO",
    "sampler and trainer agree at the first update, at any temperature, to 1e-5",
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_ratio_is_one_at_the_first_update(chain: Chain, temperature: float) -> None:
    stage, inputs = chain.online("grpo", iterations=1, updates=2, sampling__temperature=temperature)
    first, second = chain.lab.run(stage, inputs).metrics("train")
    assert first["sampler_gap"] < 1e-5
    assert first["clip_fraction"] == 0
    assert second["sampler_gap"] > 1e-3


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "RLOO",
    "on-policy a ratio per token and one per completion are the same step, to 1e-5",
)
def test_on_policy_the_two_ratios_are_one_method(chain: Chain) -> None:
    runs = []
    for ratio in ("token", "sequence"):
        changes = {**relative("rloo"), "ratio": ratio}
        stage, inputs = chain.online("grpo", updates=1, **changes)
        runs.append(chain.lab.run(stage, inputs))
    assert largest_difference(weights(runs[0]), weights(runs[1])) < 1e-5
    assert largest_difference(weights(runs[0]), weights(chain.sft)) > 1e-3


def test_k1_in_the_loss_is_refused(chain: Chain) -> None:
    with pytest.raises(ConfigError, match=r"expected gradient is zero.*k3_gradient_k2"):
        chain.online("grpo", kl_estimator="k1", kl_coef=0.1)
    chain.online("grpo", kl_estimator="k1", kl_coef=0.1, kl_place="reward")
    chain.online("grpo", kl_estimator="k1", kl_coef=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": 1}, "group=1: advantage=group_std compares the completions of one prompt"),
        ({"updates": 5, "rollout_batch": 4}, "updates=5 is more than rollout_batch=4"),
        ({"kl_place": "token_reward"}, "advantage=group_std one to a completion"),
        (
            {"kl_place": "token_reward", "advantage": "whitened", "ratio": "sequence_mean"},
            "ratio=sequence_mean takes a completion as one action",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    chain: Chain, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        chain.online("grpo", **changes)


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "GSPO and CISPO",
    "on-policy, with one update of a rollout, the same step as GRPO without KL, to 1e-5",
)
@pytest.mark.parametrize(("name", "normalizer"), [("gspo", "sequence"), ("cispo", "token")])
def test_on_policy_the_relatives_are_grpo(chain: Chain, name: str, normalizer: str) -> None:
    runs = []
    for changes in (relative(name), {"kl_coef": 0.0, "normalizer": normalizer}):
        stage, inputs = chain.online("grpo", updates=1, iterations=1, **changes)
        runs.append(chain.lab.run(stage, inputs))
    assert largest_difference(weights(runs[0]), weights(runs[1])) < 1e-5
    assert largest_difference(weights(runs[0]), weights(chain.sft)) > 1e-3


def test_reinforce_pp_needs_no_group(chain: Chain) -> None:
    stage, inputs = chain.online("grpo", group=1, rollout_batch=8, **relative("reinforce_pp"))
    run = chain.lab.run(stage, inputs)
    assert run.record["label"] == "REINFORCE++ (G=1, β=0.01)"
    assert run.record["completions"] == run.record["prompts"]
    assert largest_difference(weights(run), weights(chain.sft)) > 1e-3


def test_without_a_kl_term_no_reference_is_loaded(chain: Chain, caught: Caught) -> None:
    stage, inputs = chain.online("grpo", kl_coef=0.0)
    chain.lab.run(stage, inputs)
    assert not caught.backbone.has("reference")


@pytest.mark.slow
@pytest.mark.conformance("equivalence", "GRPO", "any token budget: the same weights to 1e-5")
def test_micro_batches_do_not_change_the_weights(chain: Chain) -> None:
    stage, inputs = chain.online("grpo", updates=2)
    small = chain.lab.run(stage, inputs, token_budget=40)
    large = chain.lab.run(stage, inputs, token_budget=4096)
    assert largest_difference(weights(small), weights(large)) < 1e-5


def test_more_processes_than_prompts_are_refused() -> None:
    class Three:
        def workers(self) -> SimpleNamespace:
            return SimpleNamespace(world=3)

    require_prompts_for_all(Three(), 3)
    with pytest.raises(ConfigError, match="3 processes share the 2 prompts"):
        require_prompts_for_all(Three(), 2)
