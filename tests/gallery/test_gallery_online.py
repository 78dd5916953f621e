"""The gallery of silent bugs: sampling, PPO, GRPO and evaluation.

Every test is named after a bug that other projects had and says in which public thread it is known.
It runs a second time with that bug planted in our own source, where it must fail.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain as chain_of_scores
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from mutation import catches
from stage_lab import (
    Caught,
    Chain,
    PlainHead,
    largest_difference,
    plain_model,
    token_logps,
    weights,
)
from torch import Tensor

from alignlab.data.group import TokenGroup
from alignlab.data.pack import flatten
from alignlab.data.template import Tokenization
from alignlab.engine.dealt import Dealt
from alignlab.errors import ConfigError
from alignlab.models.tiny import SPECIALS
from alignlab.rollout.rollout import sample_rollout
from alignlab.rollout.sampler import sample
from alignlab.rollout.sampling import Sampling
from alignlab.run import Run
from alignlab.spec import build
from alignlab.stages import grpo_work, ppo_work
from alignlab.stages.grpo_work import GRPOWork
from alignlab.stages.online import Experience
from alignlab.stages.session import open_backbone

ONE_STEP_GAE = {"gamma": 1.0, "lam": 0.0, "whiten_advantages": False}


def matches(pattern: str) -> dict[str, Any]:
    """Configuration of a reward: 1 where the pattern occurs in the completion's text, else 0."""
    return {
        "_target_": "alignlab.rewards.verifiable.Matches",
        "pattern": pattern,
        "whole": False,
        "ignore_case": False,
    }


def online(
    chain: Chain,
    name: str,
    *,
    reward: dict[str, Any] | None = None,
    reference: Run | None = None,
    token_budget: int = 4096,
    **changes: Any,
) -> Run:
    """One iteration of PPO or GRPO from SFT, with the reward run or a reward function."""
    roles = ("init", "reference") if reward else ("init", "reference", "reward")
    inputs = chain.inputs(*roles)
    if reward:
        changes |= {"reward": reward, "inputs": dict.fromkeys(roles, "sft")}
    stage = chain.lab.stage(name, **{"iterations": 1, **changes})
    if reference is not None:
        inputs["reference"] = reference
    return chain.lab.run(stage, inputs, token_budget=token_budget)


def evaluate(chain: Chain, policy: Run | None = None, **changes: Any) -> Run:
    inputs = chain.inputs("policy", "reference", "reward")
    inputs["policy"] = policy or chain.sft
    return chain.lab.run(chain.lab.stage("evaluate_sft", split="validation", **changes), inputs)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[Experience]:
    """The rollouts of every iteration of PPO and GRPO, in order."""
    kept: list[Experience] = []
    for module in (ppo_work, grpo_work):

        def keeping(*args: Any, collect: Any = module.collect, **named: Any) -> Any:
            made = collect(*args, **named)
            kept.append(made[0])
            return made

        monkeypatch.setattr(module, "collect", keeping)
    return kept


def completions(groups: Sequence[TokenGroup]) -> list[list[int]]:
    return [ids.tolist() for group in groups for ids in group.completions]


def plain_models(chain: Chain, *runs: Run) -> list[Any]:
    return [plain_model(run.model_dir, chain.lab.store.cache) for run in runs]


def token_rewards_of(experience: Experience) -> list[Tensor]:
    """Per-token rewards, from advantages with γ = 1, λ = 0: A_t = r_t + V_{t+1} − V_t."""
    tokens = experience.tokens
    return [
        a + v - torch.cat([v[1:], torch.zeros(1)])
        for a, v in zip(tokens["advantages"], tokens["values"], strict=True)
    ]


# Advantages of groups


@pytest.mark.conformance(
    "silent bug",
    "zero-std groups amplify rounding noise",
    "completions with equal rewards have an advantage of exactly 0",
    issue="NVIDIA-NeMo/RL#4161",
)
@catches(
    "alignlab.objectives.advantage",
    "return advantages.masked_fill(equal_groups(rewards, group, groups)[group], 0)",
    "return advantages",
)
def test_zero_std_groups_amplify_rounding_noise(chain: Chain, caught: Caught) -> None:
    """NVIDIA-NeMo/RL#4161: a mean that is off by its last bit, divided by a std of almost 0."""
    changes = {"group": 7, "missing_eos_score": -0.3, "sampling__max_new_tokens": 2}
    online(chain, "grpo", reward=matches("never"), kl_coef=0.0, **changes)
    experience = caught.work.experience
    finished = experience.finished.view(-1, 7)
    equal = ~finished.any(dim=1)  # nobody ended: all have the score of a missing EOS
    assert equal.any()
    advantages = torch.stack([a[0] for a in experience.tokens["advantages"]]).view(-1, 7)
    assert (advantages[equal] == 0).all()


@pytest.mark.conformance(
    "silent bug",
    "advantages over the batch in place of the prompt's own group",
    "every advantage is taken against the completions of the same prompt",
    issue="dllm-reasoning/d1#19",
)
@catches(
    "alignlab.stages.grpo_work",
    "torch.arange(len(rows)).repeat_interleave(stage.group)",
    "torch.arange(len(rows)).repeat(stage.group)",
)
def test_advantages_across_prompts(chain: Chain, caught: Caught) -> None:
    """dllm-reasoning/d1#19, XU-YIJIE/grpo-flat#2: groups formed across the batch."""
    expected, found = group_advantages_by_hand(chain, caught)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.conformance(
    "silent bug",
    "GRPO's standard deviation with another divisor",
    "the std of a group is the sample's, with n − 1, as in TRL and verl",
    issue="one-covenant/grail#9",
)
@catches(
    "alignlab.objectives.advantage",
    "group, groups) / (size - 1).clamp(min=1)\n        advantages = centred / (",
    "group, groups) / size\n        advantages = centred / (",
)
def test_grpo_std_with_another_divisor(chain: Chain, caught: Caught) -> None:
    """one-covenant/grail#9 divides by numpy's std, which has n; torch's has n − 1.

    With three completions the advantages differ by √(3/2).
    """
    expected, found = group_advantages_by_hand(chain, caught)
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(map(abs, found)) > 0.5


def group_advantages_by_hand(chain: Chain, caught: Caught) -> tuple[list[float], list[float]]:
    online(chain, "grpo", missing_eos_score=None, kl_coef=0.0)
    experience = caught.work.experience
    scores = experience.scores.view(-1, 3).tolist()
    expected = [(r - fmean(own)) / (stdev(own) + 1e-4) for own in scores for r in own]
    return expected, [float(a[0]) for a in experience.tokens["advantages"]]


# Normalisers


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "zero-advantage groups leave the normaliser",
    "skipping groups that teach nothing does not change the weights",
    issue="huggingface/trl#6365",
)
@catches("alignlab.stages.grpo_work", "count=float(count)", "count=float(2 * len(moving))")
def test_zero_advantage_groups_leave_the_normaliser(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface/trl#6365 wants it as an option; unasked, steps grow as groups become equal."""
    changes = {"kl_coef": 0.0, "missing_eos_score": None, "optimizer__max_grad_norm": None}
    changes |= {"rollout_batch": 8, "group": 2}
    skipping = online(chain, "grpo", reward=matches("p"), **changes)
    assert 0 < skipping.summary()["zero_std_share"] < 1
    with monkeypatch.context() as patch:
        patch.setattr(GRPOWork, "carries_gradient", lambda *_: True)
        whole = online(chain, "grpo", reward=matches("p"), **changes)
    assert largest_difference(weights(skipping), weights(whole)) < 1e-6


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "GRPO and PPO normaliser under accumulation",
    "the loss is divided by the count of the whole step, however it is cut into micro-batches",
    issue="huggingface/trl#6024",
)
@catches(
    "alignlab.stages.online",
    "OnlinePack(batch, term, count, tokens)",
    "OnlinePack(batch, term, float(len(batch.target_ids)), tokens)",
)
def test_online_normaliser_under_accumulation(chain: Chain) -> None:
    """huggingface/trl#6024 (up to 4×), modelscope/ms-swift#10116 (÷ accumulation steps)."""
    for name, changes in (("grpo", {"normalizer": "token"}), ("ppo", {})):
        runs = [
            online(chain, name, token_budget=budget, optimizer__max_grad_norm=None, **changes)
            for budget in (50, 4096)
        ]
        assert largest_difference(*map(weights, runs)) < 1e-5


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "advantages whitened per micro-batch or per rank",
    "advantages are whitened once, over all tokens of the rollout",
    issue="THUDM/slime#2235",
)
@catches(
    "alignlab.stages.ppo_work",
    "mean_variance(moments(advantages))",
    "mean_variance(moments(advantages[: len(advantages) // 2]))",
)
def test_whitening_per_shard(chain: Chain, caught: Caught) -> None:
    """THUDM/slime#2235: every rank whitened its own slice, so no statistic was the batch's."""
    online(chain, "ppo")
    advantages = torch.cat(caught.work.experience.tokens["advantages"]).double()
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-5)
    assert float(advantages.var(correction=0)) == pytest.approx(1, abs=1e-5)


# Sampling


def rollout_of(chain: Chain, **changes: Any) -> tuple[Any, Any]:
    """A backbone in training mode, and what was sampled from its policy view."""
    stage = chain.lab.stage("grpo", **changes)
    backbone = open_backbone(stage.backbone, chain.lab.new_run("grpo"), chain.lab.engine, 0)
    backbone.add("policy", source=chain.sft.model_dir, trainable=True)
    tokenization = Tokenization(backbone.tokenizer, stage.max_prompt, stage.max_completion)
    prompts = tokenization.prompts(build(stage.data).load("preference")[:4])
    backbone.train_mode(True)
    with backbone.view("policy") as view:
        rollout = sample_rollout(view, prompts, tokenization, stage.sampling, 2, seed=0, step=0)
    backbone.train_mode(False)
    return backbone, rollout


@pytest.mark.conformance(
    "silent bug",
    "sampling in train mode",
    "dropout is off while the policy samples, whatever mode training is in",
    issue="huggingface/trl#3000",
)
@catches(
    "alignlab.rollout.sampler",
    "with torch.inference_mode(), _evaluation(model), lean_layers(model):",
    "with torch.no_grad():",
)
def test_sampling_in_train_mode(lora_chain: Chain) -> None:
    """huggingface/trl#3000, #155: the sampled policy is then no policy that is ever scored."""
    backbone, rollout = rollout_of(lora_chain, backbone__adapter__dropout=0.5)
    with backbone.view("policy") as view, torch.no_grad():
        scored = view.logps(flatten(rollout.groups))
    kept = torch.from_numpy(np.concatenate(rollout.logps))
    assert float((kept - scored).abs().max()) < 1e-5


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "values and old log-probs computed with dropout on",
    "what a rollout is scored with does not depend on dropout masks",
    issue="huggingface/trl#3234",
)
@catches("alignlab.engine.loop", "    backbone.train_mode(False)\n    micros =", "    micros =")
def test_rollouts_scored_with_dropout(lora_chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface/trl#3234, #4: log-probs that dropout changes are not reproducible."""
    pairs = []
    read_values = ppo_work.shared_outputs

    def twice(*args: Any, **named: Any) -> Any:
        first, second = read_values(*args, **named), read_values(*args, **named)
        pairs.append((torch.cat(first), torch.cat(second)))
        return first

    with monkeypatch.context() as patch:
        patch.setattr(ppo_work, "shared_outputs", twice)
        online(lora_chain, "ppo", iterations=2, backbone__adapter__dropout=0.5)
    assert len(pairs) == 2
    assert all(torch.equal(first, second) for first, second in pairs)


@pytest.mark.conformance(
    "silent bug",
    "sampling in another dtype than training",
    "every layer computes in bfloat16 in sampling as in training, and the weights stay float32",
    issue="huggingface/trl#3867",
)
@catches(
    "alignlab.models.backbone",
    "with whole, autocast(self.device, self.dtype), ",
    "with whole, autocast(self.device, torch.float32), ",
)
def test_sampling_in_another_dtype(
    chain: Chain, caught: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface/trl#3867: sampler and trainer disagree, so training is off-policy unawares."""
    seen = {True: set(), False: set()}
    linear = torch.nn.functional.linear  # of training, and of decoding's joined layers

    def noting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = linear(x, weight, bias)
        if len(weight) > 1:  # scalar heads are float32 always
            seen[torch.is_grad_enabled()].add(out.dtype)
        return out

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", noting)
        online(chain, "grpo", reward=matches("p"), kl_coef=0.0, backbone__dtype="bfloat16")
    assert seen[True] == {torch.bfloat16}  # training
    assert seen[False] == seen[True]  # sampling
    trained = caught.backbone.trainable_parameters("policy").values()
    assert {p.dtype for p in trained} == {torch.float32}


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "logits not divided by the temperature",
    "sampler, policy and reference give log-probs of the same tempered distribution",
    issue="huggingface/trl#4159",
)
@catches(
    "alignlab.stages.grpo_work",
    "view.logps(micro.data.batch, temperature=stage.sampling.temperature)",
    "view.logps(micro.data.batch)",
)
@catches(
    "alignlab.stages.ppo_work",
    "view.logps(micro.data.batch, temperature=self.stage.sampling.temperature)",
    "view.logps(micro.data.batch)",
)
@catches(
    "alignlab.stages.online", "view.logps(batch, temperature=temperature)", "view.logps(batch)"
)
@catches("alignlab.rollout.choose", "scaled = scaled / temperature", "scaled = scaled + 0")
def test_logits_not_divided_by_temperature(chain: Chain, collected: list[Experience]) -> None:
    """huggingface/trl#4159, THUDM/slime#557: ratios far from 1 before anything was learned."""
    collected.clear()
    grpo = online(chain, "grpo", sampling__temperature=0.6).metrics("train")[0]
    ppo = online(chain, "ppo", sampling__temperature=0.6).metrics("train")[0]
    assert grpo["sampler_gap"] < 1e-5
    assert ppo["approx_kl"] < 1e-8
    for row in (grpo, ppo):  # the reference is the SFT model that the policy starts from
        assert row["kl"] == pytest.approx(0, abs=1e-5)
    model = plain_model(chain.sft.model_dir, chain.lab.store.cache)
    group = collected[0].groups[0]
    with torch.no_grad():
        expected = token_logps(model, group.prompt, group.completions[0], 0.6)
    assert torch.allclose(collected[0].old[0].double(), expected, atol=1e-5)


@pytest.mark.conformance(
    "silent bug",
    "top-p or top-k sampling under a policy gradient",
    "truncated and greedy sampling are refused where ratios are taken",
    issue="huggingface/trl#736",
)
@catches(
    "alignlab.stages.stage",
    "if sampling.top_p < 1 or sampling.top_k > 0 or sampling.temperature <= 0:",
    "if sampling.temperature < 0:",
)
def test_truncated_sampling_under_a_policy_gradient(chain: Chain) -> None:
    """huggingface/trl#736, #235, modelscope/ms-swift#8442: negative KL, ratios of two policies."""
    refused = []
    for name in ("ppo", "grpo"):
        for change in ({"top_p": 0.9}, {"top_k": 5}, {"temperature": 0.0}):
            try:
                chain.online(name, **{f"sampling__{k}": v for k, v in change.items()})
            except ConfigError as error:
                refused.append(str(error))
    assert len(refused) == 6
    assert all("whole distribution" in message for message in refused)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "the same sample again",
    "samples of one prompt differ within a group, within a batch and between iterations",
    issue="modelscope/ms-swift#5967",
)
@catches(
    "alignlab.rollout.rollout", "group.row, before)", "group.row)"
)  # a prompt that comes twice
@catches(
    "alignlab.rollout.slots",
    "[(self.seeds[prompt], sample) for prompt, sample in rows]",
    "[(self.seeds[prompt], 0) for prompt, sample in rows]",
)  # completions of a group
@catches("alignlab.rollout.rollout", "{seed}:{step}:{row}", "{seed}:{row}")  # the next iteration
def test_the_same_sample_again(chain: Chain, collected: list[Experience]) -> None:
    """modelscope/ms-swift#5967: a group of identical completions has nothing to compare."""
    collected.clear()
    still = {"optimizer__learning_rate": 1e-30, "prompts": 2}
    online(chain, "ppo", rollout_batch=4, iterations=2, **still)
    online(chain, "grpo", rollout_batch=2, group=4, **still)
    first, second, groups = collected
    for experience in (first, second, groups):
        by_prompt: dict[int, list[list[int]]] = {}
        for group in experience.groups:
            by_prompt.setdefault(group.row, []).extend(completions([group]))
        for own in by_prompt.values():
            assert len(own) > 1
            assert len({tuple(ids) for ids in own}) == len(own)
    assert sorted(completions(first.groups)) != sorted(completions(second.groups))


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "a sample depends on its company",
    "a prompt's completions are the same in every batch",
    issue="huggingface/transformers#30670",
)
@catches(
    "alignlab.rollout.slots",
    "            self.uniforms.gather(1, at[:, None])[:, 0],",
    "            self.uniforms.roll(1, 0).gather(1, at[:, None])[:, 0],",
)
def test_a_sample_depends_on_its_company(chain: Chain, collected: list[Experience]) -> None:
    """huggingface/transformers#30670: other generations in another batch."""
    collected.clear()
    for batch in (2, 256):
        online(chain, "grpo", rollout_batch=8, sampling__batch=batch)
    one, other = collected
    assert completions(one.groups) == completions(other.groups)
    assert len({len(ids) for ids in completions(one.groups)}) > 2  # rows left at different steps


@pytest.fixture(scope="module")
def gpt2() -> Any:
    """A model with learned absolute positions: with rotary ones a shift changes nothing."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.3)).eval()


@pytest.mark.conformance(
    "silent bug",
    "position ids of left-padded prompts",
    "a prompt that is padded in its batch is continued as it would be alone",
    issue="unslothai/unsloth#3803",
)
@catches(
    "alignlab.rollout.waves",
    "np.maximum(mask[:, :seen].cumsum(1) - 1, 0)[:, given:]",
    "np.tile(np.arange(seen), (len(prompts), 1))[:, given:]",
)
@catches(
    "alignlab.rollout.waves",
    "attention_mask=None if self.mask is None else self.mask[:, : self.filled]",
    "attention_mask=None",
)
def test_left_padding_in_the_key_value_cache(gpt2: Any) -> None:
    """unslothai/unsloth#3803: shorter prompts of a batch got the positions of the longest."""
    prompts = [np.arange(3, 3 + size, dtype=np.int32) for size in (2, 9, 5)]
    sampling = Sampling(max_new_tokens=6, temperature=1.0, top_p=1.0, top_k=0, batch=8)
    got = sample(gpt2, prompts, n=1, sampling=sampling, eos_id=2, seeds=[1, 2, 3], device="cpu")
    with torch.no_grad():
        for prompt, ids, logps in zip(prompts, got.ids, got.logps, strict=True):
            alone = token_logps(gpt2, prompt, ids)  # uncached, unpadded
            assert torch.allclose(torch.from_numpy(logps), alone, atol=1e-5)


@pytest.mark.conformance(
    "silent bug",
    "a sampled EOS without log-prob or loss",
    "a completion that ended carries its EOS through log-probs, weights and gradient",
    issue="huggingface/trl#4970",
)
@catches(
    "alignlab.rollout.slots",
    "self.drawn.length[done] = torch.from_numpy(self.step[over])",
    "self.drawn.length[done] = torch.from_numpy(np.maximum(self.step[over] - 1, 1))",
)
def test_a_sampled_eos_without_loss(chain: Chain, caught: Caught) -> None:
    """huggingface/trl#4970, pytorch/rl#3580: a mask made from token values hid EOS as padding."""
    online(chain, "grpo")
    experience, eos = caught.work.experience, caught.backbone.tokenizer.eos_token_id
    assert 0 < int(experience.finished.sum()) < len(experience.finished)
    rows = zip(
        completions(experience.groups),
        experience.finished.tolist(),
        experience.old,
        experience.tokens["weights"],
        strict=True,
    )
    for ids, finished, old, weight in rows:
        assert (ids[-1] == eos) == finished
        assert len(ids) == len(old) == len(weight)
        assert (weight > 0).all()


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "KL and entropy summed over what follows EOS",
    "sums over a completion end at its EOS",
    issue="huggingface/trl#6121",
)
@catches(
    "alignlab.rollout.slots",
    "self.drawn.length[done] = torch.from_numpy(self.step[over])",
    "self.drawn.length[done] = torch.from_numpy(self.step[over] * 0 + self.limit)",
)
def test_kl_and_entropy_summed_over_padding(
    chain: Chain, earlier: Run, collected: list[Experience]
) -> None:
    """huggingface/trl#6121: entropy was negative, since padding counted."""
    collected.clear()
    row = online(chain, "grpo", reference=earlier).metrics("train")[0]
    policy, reference = plain_models(chain, chain.sft, earlier)
    eos = SPECIALS.index("<|eos|>")
    kl, surprise, tokens = [], 0.0, 0
    with torch.no_grad():
        for group in collected[0].groups:
            for ids in completions([group]):
                real = ids[: ids.index(eos) + 1] if eos in ids else ids
                new = token_logps(policy, group.prompt, real)
                kl.append(float((new - token_logps(reference, group.prompt, real)).sum()))
                surprise, tokens = surprise - float(new.sum()), tokens + len(real)
    assert row["kl"] == pytest.approx(fmean(kl), abs=1e-4)
    assert row["entropy_estimate"] == pytest.approx(surprise / tokens, abs=1e-4)
    assert row["completion_length"] == tokens / len(kl)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "the sampler runs a policy that is no longer trained",
    "every iteration samples from the weights of the last update",
    issue="huggingface/trl#3679",
)
@catches(
    "alignlab.stages.outside",
    'with backbone.view("policy") as view',
    'with backbone.view("reference") as view',
)
def test_sampling_from_a_stale_policy(chain: Chain) -> None:
    """huggingface/trl#3679, #2802: completions of the initial model, scored as the policy's."""
    rows = online(chain, "grpo", iterations=3).metrics("train")
    assert [row["sampler_gap"] < 1e-5 for row in rows] == [True] * 3


# The KL term


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "KL clamped at zero",
    "the KL in the reward and in the metrics is the plain log-ratio, negative ones included",
    issue="tatsu-lab/alpaca_farm#67",
)
@catches(
    "alignlab.rewards.shaping",
    "-kl_coef * (logps_old - logps_ref)",
    "-kl_coef * (logps_old - logps_ref).clamp(min=0)",
)
@catches("alignlab.stages.online", "(old - ref).sum() for", "(old - ref).clamp(min=0).sum() for")
def test_kl_clamped_at_zero(chain: Chain, earlier: Run, caught: Caught) -> None:
    """tatsu-lab/alpaca_farm#67 shows the clamp: a biased KL, several times the true one."""
    row = kl_in_the_reward(chain, earlier, caught)
    experience = caught.work.experience
    ratios = [old - ref for old, ref in zip(experience.old, experience.reference, strict=True)]
    assert row["kl"] == pytest.approx(fmean(float(r.sum()) for r in ratios), abs=1e-4)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "sign of the KL in the reward",
    "the reward falls by β times the log-ratio",
    issue="huggingface/trl#463",
)
@catches("alignlab.rewards.shaping", "rewards = -kl_coef *", "rewards = kl_coef *")
def test_sign_of_the_kl_in_the_reward(chain: Chain, earlier: Run, caught: Caught) -> None:
    """huggingface/trl#463 asks which it is; with the wrong one the policy is paid for drifting."""
    kl_in_the_reward(chain, earlier, caught)


def kl_in_the_reward(chain: Chain, earlier: Run, caught: Caught) -> dict[str, float]:
    """With γ = λ = 1 the first return is the sum of the rewards: R − β Σ (log π − log π_ref)."""
    whole = {"gamma": 1.0, "lam": 1.0, "whiten_advantages": False}
    run = online(chain, "ppo", reference=earlier, kl_coef=0.5, missing_eos_score=None, **whole)
    experience = caught.work.experience
    signs = set()
    for c, score in enumerate(experience.scores.tolist()):
        ratio = experience.old[c] - experience.reference[c]
        signs |= {bool(x > 0) for x in ratio}
        paid = float(experience.tokens["returns"][c][0])
        assert paid == pytest.approx(score - 0.5 * float(ratio.sum()), abs=1e-4)
    assert signs == {True, False}
    return run.metrics("train")[0]


def loss_of_kl_by_hand(chain: Chain, earlier: Run, collected: list[Experience]) -> None:
    """The first loss of GRPO is the KL term: at ρ = 1 the advantages of a group add up to 0."""
    collected.clear()
    row = online(chain, "grpo", reference=earlier, kl_coef=0.5).metrics("train")[0]
    [experience] = collected
    k3 = []
    for old, ref in zip(experience.old, experience.reference, strict=True):
        d = (ref - old).double()
        k3.append(float((d.exp() - 1 - d).mean()))
    assert row["loss"] == pytest.approx(0.5 * fmean(k3), abs=1e-5)
    assert row["loss"] > 0.01


@pytest.mark.conformance(
    "silent bug",
    "k3 with the ratio upside down",
    "k3 takes π_ref/π, so that it estimates KL(π ‖ π_ref) from samples of π",
    issue="walkinglabs/hands-on-modern-rl#27",
)
@catches("alignlab.objectives.divergence", "    d = reference - new\n", "    d = new - reference\n")
def test_k3_upside_down(chain: Chain, earlier: Run, collected: list[Experience]) -> None:
    """walkinglabs/hands-on-modern-rl#27: exp(log π − log π_ref) in place of its inverse."""
    loss_of_kl_by_hand(chain, earlier, collected)


@pytest.mark.conformance(
    "silent bug",
    "the KL loss is maximised",
    "the KL term is added to a loss that is minimised",
    issue="qiancheng0/ToolRL#52",
)
@catches(
    "alignlab.stages.grpo_work", "total = total + stage.kl_coef", "total = total - stage.kl_coef"
)
def test_the_kl_loss_is_maximised(chain: Chain, earlier: Run, collected: list[Experience]) -> None:
    """qiancheng0/ToolRL#52, Unakar/Logic-RL#58: verl had the sign wrong, and training collapsed."""
    loss_of_kl_by_hand(chain, earlier, collected)


@pytest.mark.conformance(
    "silent bug",
    "KL term and policy term averaged differently",
    "the KL term has the normaliser of the policy term",
    issue="allenai/open-instruct#535",
)
@catches(
    "alignlab.stages.grpo_work",
    '(kl * tokens["weights"]).sum()',
    "kl.mean() * micro.data.count",
)
def test_kl_averaged_unlike_the_policy_loss(
    chain: Chain, earlier: Run, collected: list[Experience]
) -> None:
    """allenai/open-instruct#535: the mean was taken over all tokens of the batch."""
    loss_of_kl_by_hand(chain, earlier, collected)


# Ratios


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "PPO ratio ≠ 1 at the first update",
    "before the first update every ratio is 1 to float32's precision",
    issue="huggingface/trl#454",
)
@catches(
    "alignlab.rollout.slots",
    "attention_mask=mask[:, None, None],",
    "attention_mask=torch.ones_like(mask)[:, None, None],",
)
@catches(
    "alignlab.rollout.slots", "self.position = self.position + 1", "self.position = self.position"
)
def test_ppo_ratio_at_the_first_update(chain: Chain, record_property: Any) -> None:
    """huggingface/trl#454, CarperAI/trlx#107: padding in the sampler, none in training."""
    row = online(chain, "ppo").metrics("train")[0]
    assert row["ratio"] == pytest.approx(1, abs=1e-6)
    assert row["approx_kl"] < 1e-8  # ratio − 1 − log ratio, in float32
    record_property("measured", f"mean ratio off by {abs(row['ratio'] - 1):.0e}")


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "old log-probs follow the policy",
    "later minibatches compare with the policy that sampled, so ratios leave 1 and are clipped",
    issue="PrimeIntellect-ai/verifiers#320",
)
@catches("alignlab.stages.ppo_work", 'new=new, old=tokens["old"]', "new=new, old=new.detach()")
@catches("alignlab.stages.grpo_work", 'new=new, old=tokens["old"]', "new=new, old=new.detach()")
def test_old_log_probs_follow_the_policy(chain: Chain) -> None:
    """PrimeIntellect-ai/verifiers#320, meta-pytorch/torchforge#571: the ratio was always 1."""
    rate = {"optimizer__learning_rate": 0.05}
    ppo = online(chain, "ppo", clip=0.01, **rate).metrics("train")
    assert [row["clip_fraction"] > 0 for row in ppo] == [False, True]
    grpo = online(chain, "grpo", updates=2, clip_low=0.01, clip_high=0.01, **rate).metrics("train")
    assert [row["clip_fraction"] > 0 for row in grpo] == [False, True]


# Values, rewards and advantages per token


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "value head read one token late, or at padding",
    "a token's value is read where the token is predicted, in both layouts",
    issue="jingyaogong/minimind#541",
)
@catches(
    "alignlab.models.view",
    "head, index = self.scalar_head, batch.predictor_index\n",
    "head, index = self.scalar_head, batch.predictor_index + 1\n",
)
def test_value_head_read_at_the_wrong_token(chain: Chain, caught: Caught) -> None:
    """jingyaogong/minimind#541: lengths taken for positions, in left-padded rows."""
    body = plain_model(chain.reward.model_dir, chain.lab.store.cache)
    head = PlainHead.load(chain.reward.model_dir)
    for layout in ("grouped", "padded"):
        online(chain, "ppo", backbone__layout=layout)
        experience = caught.work.experience
        with torch.no_grad():
            for group, values in zip(experience.groups, experience.tokens["values"], strict=True):
                along = head.along(body, group.prompt, group.completions[0])
                expected = along[len(group.prompt) - 1 : -1]  # before each completion token
                assert torch.allclose(values.double(), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "reward read at the wrong token",
    "a completion's score is the reward head at its last token, EOS included",
    issue="hpcaitech/ColossalAI#4475",
)
@catches(
    "alignlab.models.view",
    "head, index = self.scalar_head, batch.end_index\n",
    "head, index = self.scalar_head, batch.end_index - 1\n",
)
def test_reward_read_at_the_wrong_token(chain: Chain, caught: Caught) -> None:
    """hpcaitech/ColossalAI#4475: the mean over all positions but the last was the reward."""
    online(chain, "grpo")
    body = plain_model(chain.reward.model_dir, chain.lab.store.cache)
    head = PlainHead.load(chain.reward.model_dir)
    experience = caught.work.experience
    with torch.no_grad():
        expected = [
            float(head.along(body, group.prompt, ids)[-1])
            for group in experience.groups
            for ids in group.completions
        ]
    assert experience.scores.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "reward put on the wrong token",
    "the score is paid at the last token of a completion and nowhere else",
    issue="huggingface/trl#3750",
)
@catches(
    "alignlab.rewards.shaping",
    "last = lengths.cumsum(0) - 1",
    "last = lengths.cumsum(0).clamp(max=len(rewards) - 1)",
)
def test_reward_put_on_the_wrong_token(chain: Chain, caught: Caught) -> None:
    """huggingface/trl#3750, #1893: one token after EOS; packed, that is the next completion."""
    online(chain, "ppo", kl_coef=0.0, missing_eos_score=None, **ONE_STEP_GAE)
    experience = caught.work.experience
    for paid, score in zip(token_rewards_of(experience), experience.scores, strict=True):
        expected = [0.0] * (len(paid) - 1) + [float(score)]
        assert paid.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "the EOS trick on the wrong rows",
    "exactly the completions without an EOS of their own get the score for a missing one",
    issue="huggingface/trl#6802",
)
@catches(
    "alignlab.rewards.shaping", "torch.where(finished, scores", "torch.where(~finished, scores"
)
@catches(
    "alignlab.stages.ppo_work",
    "missing_eos(scores, experience.finished,",
    "missing_eos(scores, torch.ones_like(experience.finished),",
)
def test_the_eos_trick_on_the_wrong_rows(chain: Chain, caught: Caught) -> None:
    """huggingface/trl#6802: an EOS in the prompt counted, so the penalty never applied."""
    limit = {"sampling__max_new_tokens": 7}  # some completions end and some do not
    online(chain, "ppo", kl_coef=0.0, missing_eos_score=-7.0, **limit, **ONE_STEP_GAE)
    experience, eos = caught.work.experience, caught.backbone.tokenizer.eos_token_id
    assert 0 < int(experience.finished.sum()) < len(experience.finished)
    for c, paid in enumerate(token_rewards_of(experience)):
        ended = completions(experience.groups)[c][-1] == eos
        expected = float(experience.scores[c]) if ended else -7.0
        assert float(paid[-1]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "advantages bootstrap past the end of a completion",
    "the value after the last token is 0, never the next completion's",
    issue="MarcoMeter/recurrent-ppo-truncated-bptt#5",
)
@catches(
    "alignlab.objectives.advantage",
    "torch.where(same, x[step:], 0)",
    "x[step:]",
)
def test_gae_past_the_end(chain: Chain, caught: Caught) -> None:
    """MarcoMeter/recurrent-ppo-truncated-bptt#5: one recursion over all episodes of a buffer."""
    changes = {"gamma": 0.9, "lam": 0.8, "whiten_advantages": False, "kl_coef": 0.0}
    online(chain, "ppo", missing_eos_score=None, **changes)
    experience = caught.work.experience
    tokens = experience.tokens
    for score, values, found in zip(
        experience.scores.tolist(), tokens["values"], tokens["advantages"], strict=True
    ):
        advantage, after = 0.0, 0.0
        expected = []
        for t in reversed(range(len(values))):
            reward = score if t == len(values) - 1 else 0.0
            advantage = reward + 0.9 * after - float(values[t]) + 0.9 * 0.8 * advantage
            after = float(values[t])
            expected.insert(0, advantage)
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "value clipping around the wrong old value",
    "a value is clipped to the neighbourhood of what it was when the rollout was sampled",
    issue="tensorflow/agents#352",
)
@catches(
    "alignlab.stages.ppo_work",
    '            tokens["values"],\n',
    "            view.values(micro.data.batch).detach(),\n",
)
def test_value_clipping_around_the_wrong_value(
    chain: Chain, caught: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tensorflow/agents#352: the old value was predicted anew, so nothing was ever clipped."""
    used = []
    clipped = ppo_work.clipped_value

    def noting(values: Tensor, old: Tensor, returns: Tensor, **named: Any) -> Tensor:
        used.append((values.detach().clone(), old.clone()))
        return clipped(values, old, returns, **named)

    with monkeypatch.context() as patch:
        patch.setattr(ppo_work, "clipped_value", noting)
        online(chain, "ppo", ppo_epochs=3, minibatches=1)
    sampled = torch.cat(caught.work.experience.tokens["values"]).sort().values
    for _, old in used:
        assert torch.equal(old.sort().values, sampled)
    assert float((used[-1][0] - used[-1][1]).abs().max()) > 1e-3  # and the view has moved since


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "special tokens in the text that a reward reads",
    "a reward function sees the completion's text without EOS and the like",
    issue="verl-project/verl#715",
)
@catches("alignlab.data.template", "skip_special_tokens=True", "skip_special_tokens=False")
def test_special_tokens_in_the_rewarded_text(chain: Chain, caught: Caught) -> None:
    """verl-project/verl#715: a format reward never matched, its text ended in <|im_end|>."""
    for special in SPECIALS:
        online(chain, "grpo", reward=matches(re.escape(special)), missing_eos_score=None)
        experience = caught.work.experience
        assert experience.finished.any()
        assert experience.scores.tolist() == [0.0] * len(experience.scores)


# Evaluation


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """All scores that the reward run gave, per call."""
    kept: list[list[float]] = []
    score = Dealt.scores

    def keeping(self: Dealt, view: str, mine: Any) -> list[list[float]]:
        scores = score(self, view, mine)
        kept.append([*chain_of_scores(*scores)])
        return scores

    monkeypatch.setattr(Dealt, "scores", keeping)
    return kept


@pytest.mark.conformance(
    "silent bug",
    "best of n picks by the gold reward",
    "best of n keeps the highest proxy score and reports gold for that one",
    issue="arXiv:2210.10760",
)
@catches(
    "alignlab.stages.evaluate",
    "kept = best_indices(proxy, self.best_of)",
    "kept = best_indices(build(self.gold).score("
    "[prompt_text(g) for g in groups for _ in range(per)],"
    " [t for group in rollout.completions for t in group],"
    " [g.meta for g in groups for _ in range(per)]), self.best_of)",
)
def test_best_of_n_picks_by_gold(chain: Chain, proxies: list[list[float]]) -> None:
    """arXiv:2210.10760: optimised by proxy, judged by gold; mixing them hides over-optimisation."""
    proxies.clear()
    rows = evaluate(chain, best_of=4).samples()
    [scores] = proxies
    best = [max(scores[i : i + 4]) for i in range(0, len(scores), 4)]
    assert [row["proxy"] for row in rows] == pytest.approx(best)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "evaluation on training prompts",
    "no evaluated prompt is one that any stage trains on",
    issue="OpenRLHF/OpenRLHF#1089",
)
@catches("alignlab.stages.evaluate", "data.load(self.split)", 'data.load("preference")')
def test_evaluation_on_training_prompts(chain: Chain) -> None:
    """OpenRLHF/OpenRLHF#1089: without a data set of its own, evaluation took training rows."""
    source = build(chain.lab.stage("sft").data)
    trained = {g.id for split in ("sft", "preference") for g in source.load(split)}
    for split in ("validation", "test"):
        stage = chain.lab.stage("evaluate_sft", split=split)
        run = chain.lab.run(stage, chain.inputs("policy", "reference", "reward"))
        evaluated = {row["prompt_id"] for row in run.samples()}
        assert evaluated
        assert not evaluated & trained


@pytest.mark.conformance(
    "silent bug",
    "KL measured against the base model",
    "the reference of an adapter's evaluation is the SFT adapter, not the bare base",
    issue="hiyouga/LlamaFactory#8459",
)
@catches(
    "alignlab.stages.evaluate",
    'backbone.add("reference", source=inputs["reference"].model_dir,',
    'backbone.add("reference", source=None,',
)
def test_kl_measured_against_the_base(lora_chain: Chain) -> None:
    """hiyouga/LlamaFactory#8459: "adapter off" was taken for the reference."""
    assert {row["kl"] for row in evaluate(lora_chain).samples()} == {0.0}


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "the KL of a report made non-negative",
    "evaluation reports the plain mean log-ratio, so that its noise is visible",
    issue="huggingface/trl#1161",
)
@catches(
    "alignlab.stages.evaluate",
    "float((a.astype(float) - b.astype(float)).sum())",
    "abs(float((a.astype(float) - b.astype(float)).sum()))",
)
def test_the_reported_kl_made_positive(
    chain: Chain, earlier: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface/trl#1161: the KL that was shown was not the one that was trained on."""
    kept = []

    def keeping(*args: Any, **named: Any) -> Any:
        kept.append(sample_rollout(*args, **named))
        return kept[-1]

    with monkeypatch.context() as patch:
        patch.setattr("alignlab.rollout.rollout.sample_rollout", keeping)
        run = evaluate(chain, policy=earlier, samples=96)
    policy, sft = plain_models(chain, earlier, chain.sft)
    expected = []
    with torch.no_grad():
        for group in kept[0].groups:
            for ids in group.completions:
                new, ref = (token_logps(m, group.prompt, ids).sum() for m in (policy, sft))
                expected.append(float(new - ref))
    assert [row["kl"] for row in run.samples()] == pytest.approx(expected, abs=1e-4)
    assert run.summary()["kl"] == pytest.approx(fmean(expected), abs=1e-4)
    assert min(expected) < 0 < fmean(expected)
