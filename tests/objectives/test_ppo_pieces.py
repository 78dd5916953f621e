"""The pieces of PPO, each against a closed form or against arithmetic on a few tokens.

TRL 1.16 has no PPO to compare with. One whole iteration against naive loops is in
tests/stages/test_stages_ppo.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignlab.objectives.advantage import gae, mean_variance, moments, whiten
from alignlab.objectives.divergence import adapt_coefficient, k1
from alignlab.objectives.policy import clip_fraction, clipped_surrogate, clipped_value
from alignlab.rewards.shaping import missing_eos, token_rewards
from alignlab.tensors import TokenLogps


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def i(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=6)
unit = st.floats(0.0, 1.0)


def episodes(sizes: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards (N,), values (N,) and owners (N,) of ragged completions."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, sum(sizes), generator=generator, dtype=torch.float64)
    return rewards, values, torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


# ------------------------------------------------------------------------------------------- GAE
@pytest.mark.conformance(
    "closed form", "GAE", "is Σ_l (γλ)^l δ_{t+l}, the sum written out, to 1e-12"
)
@settings(deadline=None, max_examples=40)
@given(sizes=lengths, gamma=unit, lam=unit, seed=st.integers(0, 999))
def test_gae_is_the_sum_of_discounted_residuals(sizes, gamma, lam, seed):
    rewards, values, owner = episodes(sizes, seed)
    found, returns = gae(rewards, values, owner, gamma=gamma, lam=lam)
    start = 0
    for size in sizes:
        r, v = (x[start : start + size].tolist() for x in (rewards, values))
        delta = [r[s] + gamma * (v[s + 1] if s + 1 < size else 0) - v[s] for s in range(size)]
        expected = [
            sum((gamma * lam) ** (s - now) * delta[s] for s in range(now, size))
            for now in range(size)
        ]
        close(found[start : start + size], t(*expected))
        start += size
    close(returns, found + values)


@pytest.mark.conformance(
    "closed form", "GAE", "λ = 0 is the one-step residual, λ = 1 the discounted return − value"
)
@settings(deadline=None, max_examples=25)
@given(sizes=lengths, gamma=unit, seed=st.integers(0, 999))
def test_both_ends_of_lambda(sizes, gamma, seed):
    rewards, values, owner = episodes(sizes, seed)
    following = torch.cat([values[1:], t(0)]) * torch.cat([owner[1:] == owner[:-1], i(0).bool()])
    one_step, _ = gae(rewards, values, owner, gamma=gamma, lam=0.0)
    close(one_step, rewards + gamma * following - values)
    whole, returns = gae(rewards, values, owner, gamma=gamma, lam=1.0)
    expected, running = [], {}
    for reward, who in zip(rewards.tolist()[::-1], owner.tolist()[::-1], strict=True):
        running[who] = reward + gamma * running.get(who, 0.0)
        expected.append(running[who])
    close(returns, t(*expected[::-1]))
    close(whole, t(*expected[::-1]) - values)


@pytest.mark.conformance(
    "closed form", "GAE", "with the true values of a deterministic episode every advantage is 0"
)
@settings(deadline=None, max_examples=25)
@given(sizes=lengths, gamma=unit, lam=unit, seed=st.integers(0, 999))
def test_true_values_leave_no_advantage(sizes, gamma, lam, seed):
    rewards, values, owner = episodes(sizes, seed)
    _, true = gae(rewards, values, owner, gamma=gamma, lam=1.0)  # V_t = Σ_l γ^l r_{t+l}
    advantages, _ = gae(rewards, true, owner, gamma=gamma, lam=lam)
    close(advantages, torch.zeros_like(rewards), 1e-11)


@pytest.mark.conformance(
    "law", "GAE", "completions do not touch: alone, or packed in any order, to 1e-12"
)
@settings(deadline=None, max_examples=25)
@given(sizes=lengths, seed=st.integers(0, 999))
def test_gae_knows_where_a_completion_ends(sizes, seed):
    rewards, values, owner = episodes(sizes, seed)
    together, _ = gae(rewards, values, owner, gamma=0.9, lam=0.8)
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    index = torch.cat([(owner == c).nonzero()[:, 0] for c in order])
    shuffled = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)[order])
    moved, _ = gae(rewards[index], values[index], shuffled, gamma=0.9, lam=0.8)
    close(moved, together[index])
    for c in range(len(sizes)):
        own = owner == c
        alone, _ = gae(rewards[own], values[own], owner[own] * 0, gamma=0.9, lam=0.8)
        close(alone, together[own])


def test_gae_has_no_gradient():
    values = t(1, 2).requires_grad_()
    advantages, returns = gae(t(0, 1), values, i(0, 0), gamma=1.0, lam=0.95)
    assert not advantages.requires_grad
    assert not returns.requires_grad


# ------------------------------------------------------------------------------------- whitening
def whitened(x: Tensor, shift_mean: bool = True) -> Tensor:
    mean, variance = mean_variance(moments(x))
    return whiten(x, mean, variance, shift_mean=shift_mean, epsilon=1e-8)


@pytest.mark.conformance(
    "closed form", "PPO", "whitening divides by the population's standard deviation, by hand"
)
def test_whitening_by_hand():
    # mean 2, squares around it 1 + 1 + 9 + 9 = 20: population variance 20/4 = 5, sample 20/3
    x, centred = t(1, 3, 5, -1), t(-1, 1, 3, -3)
    close(whitened(x), centred / math.sqrt(5 + 1e-8))
    close(whitened(x, shift_mean=False), centred / math.sqrt(5 + 1e-8) + 2)
    sample = centred / math.sqrt(20 / 3 + 1e-8)
    assert (whitened(x) - sample).abs().max() > 0.1
    close(whitened(x) * math.sqrt(3 / 4), sample, 1e-8)


@pytest.mark.conformance(
    "law", "PPO", "whitened advantages do not depend on the reward's origin and scale, to 1e-6"
)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), shift=st.floats(-100, 100), scale=st.floats(0.5, 100))
def test_whitening_removes_origin_and_scale(seed, shift, scale):
    x = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    close(whitened(scale * x + shift), whitened(x), 1e-6)
    kept = whitened(scale * x + shift, shift_mean=False)
    assert kept.mean().item() == pytest.approx((scale * x + shift).mean().item(), abs=1e-9)


@pytest.mark.conformance(
    "closed form", "PPO", "advantages that are all equal whiten to 0, not to 0/0"
)
def test_equal_advantages_whiten_to_zero():
    assert whitened(torch.full((7,), 0.3)).abs().max() < 1e-3
    assert torch.isfinite(whitened(torch.full((7,), 1e4))).all()


# -------------------------------------------------------------------------------------- clipping
def surrogate(log_ratio: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Loss per token and its derivative in log π."""
    new = log_ratio.clone().requires_grad_()
    logps = TokenLogps(new=new, old=torch.zeros_like(new))
    loss = clipped_surrogate(logps, advantages, clip_low=clip, clip_high=clip)
    return loss.detach(), torch.autograd.grad(loss.sum(), new)[0]


@pytest.mark.conformance(
    "closed form", "PPO", "the clipped surrogate and its slope in all six regions, by hand"
)
def test_the_six_regions_of_the_clipped_surrogate():
    # ε = 0.2; ρ = 0.5, 1.1, 1.5 with A = 2, then with A = −2
    ratio, advantages = t(0.5, 1.1, 1.5, 0.5, 1.1, 1.5), t(2, 2, 2, -2, -2, -2)
    loss, slope = surrogate(ratio.log(), advantages, 0.2)
    # max(−Aρ, −A·clip ρ): −min(1, 1.6), −2.2, −min(3, 2.4); max(1, 1.6), 2.2, max(3, 2.4)
    close(loss, t(-1.0, -2.2, -2.4, 1.6, 2.2, 3.0))
    # −Aρ where the plain branch is the larger, 0 where the clipped one is
    close(slope, t(-1.0, -2.2, 0, 0, 2.2, 3.0))


@pytest.mark.conformance(
    "law", "PPO", "the clipped surrogate is never below the plain one, and equal to it inside ±ε"
)
@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.tuples(st.floats(-3, 3), st.floats(-5, 5)), min_size=1, max_size=8),
    clip=st.floats(0.01, 0.9),
)
def test_clipping_is_pessimistic(rows, clip):
    log_ratio, advantages = (t(*column) for column in zip(*rows, strict=True))
    loss, slope = surrogate(log_ratio, advantages, clip)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    assert (loss >= plain - 1e-12).all()
    inside = (ratio > 1 - clip) & (ratio < 1 + clip)
    close(loss[inside], plain[inside])
    logps = TokenLogps(new=log_ratio, old=torch.zeros_like(log_ratio))
    clipped = clip_fraction(logps, advantages, clip_low=clip, clip_high=clip).bool()
    close(slope, plain.where(~clipped, torch.zeros(())))


# ------------------------------------------------------------------------------------ value loss
@pytest.mark.conformance(
    "closed form", "PPO", "the clipped value loss and its slope in every region, by hand"
)
def test_the_regions_of_the_clipped_value_loss():
    # V_old = 1, ε = 0.5 → V_clip in [0.5, 1.5]
    values = t(1.2, 2.0, 2.0, 0.0, 0.0).requires_grad_()
    returns = t(3.0, 3.0, 1.2, 3.0, -1.0)
    old = torch.ones(5, dtype=torch.float64)
    loss = clipped_value(values, old, returns, clip=0.5)
    # V inside: ½·1.8²
    # V = 2, G = 3: clipped 1.5 is further off: ½·1.5²  (the step was already long: no slope)
    # V = 2, G = 1.2: plain error 0.8 against 0.3: ½·0.8² (too far: slope 0.8 back)
    # V = 0, G = 3: plain 3 against 2.5: ½·3²; V = 0, G = −1: clipped 0.5 → 1.5 against 1: ½·1.5²
    close(loss, t(1.62, 1.125, 0.32, 4.5, 1.125))
    close(torch.autograd.grad(loss.sum(), values)[0], t(-1.8, 0.0, 0.8, -3.0, 0.0))


@pytest.mark.conformance(
    "law", "PPO", "the clipped value loss is never below ½(V − G)², and equal to it without a clip"
)
@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.tuples(*[st.floats(-5, 5)] * 3), min_size=1, max_size=8),
    clip=st.floats(0.0, 3.0),
)
def test_value_clipping_is_pessimistic(rows, clip):
    values, old, returns = (t(*column) for column in zip(*rows, strict=True))
    plain = 0.5 * (values - returns).square()
    assert (clipped_value(values, old, returns, clip=clip) >= plain - 1e-12).all()
    close(clipped_value(values, old, returns, clip=math.inf), plain)
    close(clipped_value(old, old, returns, clip=clip), 0.5 * (old - returns).square())


# ----------------------------------------------------------------------------------- KL penalty
@pytest.mark.conformance(
    "closed form", "PPO", "reward per token: −β·log-ratio, and the score on the last one, by hand"
)
def test_rewards_per_token_by_hand():
    # β = 0.5; completions of 3 and 2 tokens with scores 1 and −2
    old, reference = t(-1, -2, -0.5, -3, -1), t(-2, -1, -0.5, -1, -1.5)
    # log-ratios [1, −1, 0 | −2, 0.5] → [−0.5, 0.5, 0 + 1 | 1, −0.25 − 2]
    found = token_rewards(t(1, -2), old, reference, 0.5, i(3, 2))
    close(found, t(-0.5, 0.5, 1.0, 1.0, -2.25))


@pytest.mark.conformance(
    "closed form",
    "PPO",
    "the return of the first token is R − β·(log π(y) − log π_ref(y)), its mean E[R] − β·KL",
)
def test_the_return_is_the_penalised_reward():
    # All nine sentences of two tokens over three words, weighted by their probability.
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    first, second = (torch.randn(2, *shape, **options).log_softmax(-1) for shape in ((3,), (3, 3)))
    logps = [torch.stack([first[p][:, None].expand(3, 3), second[p]], -1).flatten() for p in (0, 1)]
    score, owner = torch.randn(9, **options), torch.arange(9).repeat_interleave(2)
    rewards = token_rewards(score, *logps, 0.3, torch.full((9,), 2))
    _, returns = gae(rewards, torch.zeros(18).double(), owner, gamma=1.0, lam=1.0)
    whole = [x.view(9, 2).sum(1) for x in logps]
    close(returns.view(9, 2)[:, 0], score - 0.3 * (whole[0] - whole[1]))
    chance = whole[0].exp()
    kl = (chance * (whole[0] - whole[1])).sum()
    close((chance * returns.view(9, 2)[:, 0]).sum(), (chance * score).sum() - 0.3 * kl)


@pytest.mark.conformance(
    "closed form", "PPO", "the penalty's mean is the KL; clamped at 0 per token it is not"
)
def test_clamping_the_penalty_would_bias_it():
    # π = (0.5, 0.3, 0.2), π_ref = (0.4, 0.3, 0.3): KL = 0.5·log(5/4) + 0.2·log(2/3) = 0.030479
    policy, reference = t(0.5, 0.3, 0.2), t(0.4, 0.3, 0.3)
    penalty = k1(policy.log(), reference.log())
    assert (policy @ penalty).item() == pytest.approx(0.030479, abs=1e-6)
    # only 0.5·log(5/4) = 0.111572 is left: almost four times the KL
    assert (policy @ penalty.clamp(min=0)).item() == pytest.approx(0.111572, abs=1e-6)
    rewards = token_rewards(t(0, 0, 0), policy.log(), reference.log(), 1.0, i(1, 1, 1))
    assert (policy @ rewards).item() == pytest.approx(-0.030479, abs=1e-6)


def test_no_score_is_lost_on_an_empty_completion():
    with pytest.raises(ValueError, match="without tokens"):
        token_rewards(t(1, 1), t(-1), t(-1), 0.1, i(1, 0))


# ------------------------------------------------------------------------------------- EOS trick
@pytest.mark.conformance(
    "closed form", "PPO", "EOS trick: a completion without EOS scores −1 whatever its reward"
)
def test_the_eos_trick_by_hand():
    scores, finished = t(3, 2, -4, 0.5), torch.tensor([True, False, False, True])
    close(missing_eos(scores, finished, replace=-1.0), t(3, -1, -1, 0.5))
    close(missing_eos(scores, finished, penalty=0.5), t(3, 1.5, -4.5, 0.5))
    close(missing_eos(scores, finished), scores)
    # and lands on the last sampled token: lengths 1, 2, 1, 1
    placed = token_rewards(
        missing_eos(scores, finished, replace=-1.0), t(0, 0, 0, 0, 0), t(0, 0, 0, 0, 0), 0.1,
        i(1, 2, 1, 1),
    )  # fmt: skip
    close(placed, t(3, 0, -1, -1, 0.5))


# ----------------------------------------------------------------------------------- adaptive KL
@pytest.mark.conformance(
    "closed form", "PPO", "adaptive KL: unmoved on target, ±20 % over one horizon when saturated"
)
def test_the_adaptive_coefficient():
    still = {"target": 6.0, "horizon": 10_000.0}
    assert adapt_coefficient(0.1, 6.0, 512, **still) == 0.1
    # beyond ±20 % of the target the error is cut off: one update of `horizon` episodes is ±20 %
    for kl in (7.2, 60.0, math.inf):
        assert adapt_coefficient(0.1, kl, 10_000, **still) == pytest.approx(0.12, rel=1e-12)
    for kl in (4.8, 0.0, -3.0):  # an estimate may be negative; the coefficient may not
        assert adapt_coefficient(0.1, kl, 10_000, **still) == pytest.approx(0.08, rel=1e-12)
    # in small updates it compounds: (1 + 0.2/n)^n → e^0.2
    coefficient = 0.1
    for _ in range(1000):
        coefficient = adapt_coefficient(coefficient, 60.0, 10, **still)
    assert coefficient == pytest.approx(0.1 * math.exp(0.2), rel=1e-4)
