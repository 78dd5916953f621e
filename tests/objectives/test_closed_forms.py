"""Objectives on bandits whose optimum is known, and estimators against their definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from closed_forms import minimise, one_pair
from torch import Tensor

from alignlab.objectives import advantage, divergence, pairwise, policy, ranking, unpaired
from alignlab.objectives.stable import segment_sum
from alignlab.rewards.shaping import token_rewards
from alignlab.tensors import GroupScores, SingleLogps, TokenLogps

UNIFORM = torch.full((2,), 0.5, dtype=torch.float64).log()


@pytest.mark.conformance(
    "closed form", "IPO", "two arms, one certain preference: π = σ(1/(2τ)) to 1e-9"
)
@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_ipo_on_two_arms_stops_at_sigmoid_of_half_inverse_tau(tau):
    # (log π₀/π₁ − 1/(2τ))² = 0 ⇔ π₀ = σ(1/(2τ)): 0.993, 0.731, 0.622 (IPO §5)
    def loss(logps):
        return pairwise.ipo(one_pair(logps), one_pair(UNIFORM), tau=tau, normalize="sum").sum()

    best = minimise(loss, torch.zeros(2))
    assert best[0].exp().item() == pytest.approx(1 / (1 + math.exp(-1 / (2 * tau))), abs=1e-9)


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form", "DPO", "two arms, one certain preference: π → 1 for every β"
)
@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_dpo_on_a_deterministic_preference_becomes_deterministic(beta):
    def loss(logps):
        return pairwise.dpo(
            one_pair(logps), one_pair(UNIFORM), beta=beta, label_smoothing=0.0
        ).sum()

    assert minimise(loss, torch.zeros(2))[0].exp().item() > 0.999


@pytest.mark.conformance(
    "closed form", "cDPO", "the implicit preference stops at σ(βh) = 1 − ε, to 1e-6"
)
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_cdpo_stops_where_the_implicit_preference_is_one_minus_epsilon(beta):
    # minimum of −(1 − ε)·log σ(z) − ε·log σ(−z) at σ(z) = 1 − ε, z = β·log(π₀/π₁)
    def loss(logps):
        return pairwise.dpo(
            one_pair(logps), one_pair(UNIFORM), beta=beta, label_smoothing=0.2
        ).sum()

    best = minimise(loss, torch.zeros(2))
    assert beta * (best[0] - best[1]).item() == pytest.approx(math.log(0.8 / 0.2), abs=1e-6)


@pytest.mark.conformance(
    "closed form", "rDPO", "its expectation under label flips is DPO's loss on clean labels"
)
def test_rdpo_is_unbiased_under_label_flips():
    # E over a flip with probability ε of rDPO(observed) = DPO(clean), for any gap
    logps = torch.tensor([-0.2, -1.7], dtype=torch.float64)
    options = {"beta": 0.7, "label_smoothing": 0.3}
    clean = pairwise.robust_dpo(one_pair(logps), one_pair(UNIFORM), **options)
    flipped = pairwise.robust_dpo(one_pair(logps, 1, 0), one_pair(UNIFORM, 1, 0), **options)
    expected = pairwise.dpo(one_pair(logps), one_pair(UNIFORM), beta=0.7, label_smoothing=0.0)
    torch.testing.assert_close(0.7 * clean + 0.3 * flipped, expected)


@pytest.mark.conformance(
    "closed form", "DPO", "on Bradley–Terry preferences: π_ref·e^{r/β}/Z to 1e-6"
)
def test_dpo_on_bradley_terry_preferences_reaches_the_kl_regularised_optimum():
    # π* ∝ π_ref·exp(r/β): DPO with every ordered pair weighted by its Bradley–Terry probability
    reward = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    reference = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    beta = 0.6

    def loss(logps):
        total = 0.0
        for a in range(3):
            for b in range(3):
                if a != b:
                    weight = torch.sigmoid(reward[a] - reward[b])
                    pair = pairwise.dpo(
                        one_pair(logps, a, b),
                        one_pair(reference, a, b),
                        beta=beta,
                        label_smoothing=0,
                    )
                    total = total + weight * pair.sum()
        return total

    best = minimise(loss, torch.zeros(3))
    torch.testing.assert_close(best, (reference + reward / beta).log_softmax(-1), atol=1e-6, rtol=0)


@pytest.mark.conformance(
    "closed form", "KTO", "probability moves to the arm with a thumb up, alike from the others"
)
def test_kto_moves_probability_to_thumbs_up():
    reference = torch.full((3,), 1 / 3, dtype=torch.float64).log()
    thumbs = torch.tensor([True, False, False])

    def loss(logps):
        ones = torch.ones(3)
        return unpaired.kto(
            SingleLogps(logps, ones, thumbs),
            SingleLogps(reference, ones, thumbs),
            unpaired.kl_point(torch.zeros(1)),
            beta=0.5,
            desirable_weight=1.0,
            undesirable_weight=1.0,
        ).sum()

    best = minimise(loss, torch.zeros(3)).exp()
    assert best[0] > 0.9
    torch.testing.assert_close(best[1], best[2])


@pytest.mark.conformance(
    "closed form",
    "reward model",
    "Bradley–Terry finds log odds of a known preference, centred, to 1e-6",
)
def test_bradley_terry_recovers_rewards_of_a_known_preference():
    # arms preferred 3:1 have r_w − r_l = log 3; centering puts them at ±½·log 3
    reward = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [reward], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15
    )
    better, worse = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 1, 0])

    def closure():
        optimizer.zero_grad()
        start = reward + 0.3  # off centre, so that the centering term has work to do
        scores = GroupScores(start, better, worse, torch.zeros(4, dtype=torch.int64), 1)
        loss = ranking.bradley_terry(scores, centering=0.1).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = (reward + 0.3).detach()
    assert (found[0] - found[1]).item() == pytest.approx(math.log(3), abs=1e-6)
    assert found.sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.conformance(
    "closed form",
    "reward model",
    "Plackett–Luce sums to 1 over all rankings; two items are Bradley–Terry",
)
@pytest.mark.parametrize("size", [2, 3, 6])
def test_plackett_luce_is_a_distribution_over_rankings(size):
    # Σ over all K! rankings of exp(−loss) = 1; and K = 2 is Bradley–Terry
    reward = torch.linspace(-1, 2, size, dtype=torch.float64)
    total = 0.0
    for order in itertools.permutations(range(size)):
        pairs = list(itertools.combinations(order, 2))
        better, worse = torch.tensor(pairs).T
        group = torch.zeros(len(pairs), dtype=torch.int64)
        scores = GroupScores(reward, better, worse, group, 1)
        total += ranking.plackett_luce(scores).neg().exp().item()
        if size == 2:
            other = ranking.bradley_terry(scores, centering=0.0)
            torch.testing.assert_close(ranking.plackett_luce(scores), other)
            torch.testing.assert_close(ranking.top_one(scores), other)
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.conformance(
    "closed form", "reward model", "the gradient of top-one is softmax − one-hot"
)
def test_top_one_gradient_is_softmax_minus_one_hot():
    reward = torch.tensor([0.3, 1.0, -2.0, 0.0], dtype=torch.float64, requires_grad=True)
    better, worse = torch.tensor([2, 2, 2, 0, 0, 1]), torch.tensor([0, 1, 3, 1, 3, 3])
    scores = GroupScores(reward, better, worse, torch.zeros(6, dtype=torch.int64), 1)
    ranking.top_one(scores).sum().backward()
    expected = reward.detach().softmax(0) - torch.tensor([0, 0, 1, 0])
    torch.testing.assert_close(reward.grad, expected)


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form", "PPO", "two epochs per rollout, KL in reward or loss: π_ref·e^{r/β}/Z to 1e-4"
)
@pytest.mark.parametrize("place", ["reward", "loss"])
def test_clipped_surrogate_with_kl_reaches_the_regularised_optimum(place):
    # max E[r] − β·KL(π ‖ π_ref) over 4 arms ⇒ π* ∝ π_ref·exp(r/β). Each arm is one token, weighted
    # by the probability with which the old policy samples it (an exact expectation).
    reward = torch.tensor([1.0, 0.2, -0.4, 0.7], dtype=torch.float64)
    reference = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log()
    beta, logits = 0.5, torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(250):
        old = logits.detach().log_softmax(0)
        shaped = reward - beta * divergence.k1(old, reference) if place == "reward" else reward
        gain = shaped - (old.exp() * shaped).sum()
        for _ in range(2):  # two epochs on the same rollout: the ratio moves off 1
            new = logits.log_softmax(0)
            token = TokenLogps(new=new, old=old, reference=reference)
            loss = policy.clipped_surrogate(token, gain, clip_low=0.2, clip_high=0.2)
            if place == "loss":
                kl = divergence.token_kl(new, reference, estimator="k2")
                loss = loss + beta * kl * policy.importance_ratio(token).detach()
            optimizer.zero_grad()
            (old.exp() * loss).sum().backward()
            optimizer.step()
    best = (reference + reward / beta).log_softmax(0).exp()
    torch.testing.assert_close(logits.detach().softmax(0), best, atol=1e-4, rtol=0)


@pytest.mark.conformance(
    "closed form", "policy gradient", "at ρ = 1 the gradient of every surrogate is −A, exactly"
)
def test_surrogate_at_the_sampling_policy_is_the_policy_gradient():
    new = torch.tensor([-1.0, -2.0, -0.3], requires_grad=True)
    gain = torch.tensor([0.5, -1.0, 2.0])
    token = TokenLogps(new=new, old=new.detach())
    policy.clipped_surrogate(token, gain, clip_low=0.2, clip_high=0.2).sum().backward()
    assert torch.equal(new.grad, -gain)
    one = torch.tensor([0, 1, 1])
    for ratio, scale in (("product", 1.0), ("geometric_mean", 0.5)):
        new.grad = None
        options = {"clip_low": 0.2, "clip_high": 0.2, "ratio": ratio}
        loss = policy.sequence_surrogate(token, gain[:2], one, torch.tensor([1, 2]), **options)
        loss.sum().backward()
        assert torch.equal(new.grad, -gain[:2][one] * torch.tensor([1.0, scale, scale]))


@pytest.mark.conformance(
    "closed form", "PPO", "clipping removes the gradient only where the step would help"
)
def test_clipping_removes_the_gradient_only_where_the_step_would_help():
    old = torch.zeros(4)
    new = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)
    gain = torch.tensor([1.0, -1.0, 1.0, -1.0])
    token = TokenLogps(new=new, old=old)
    policy.clipped_surrogate(token, gain, clip_low=0.2, clip_high=0.2).sum().backward()
    clipped = policy.clip_fraction(token, gain, clip_low=0.2, clip_high=0.2)
    assert torch.equal(new.grad == 0, clipped.bool())
    assert clipped.tolist() == [1, 0, 0, 1]


@pytest.mark.conformance(
    "closed form", "PPO", "a ratio of e^200 is finite in float32 and pulls back"
)
def test_far_ratios_stay_finite_and_pull_back():
    new = torch.tensor([200.0, -200.0], requires_grad=True)
    token = TokenLogps(new=new, old=torch.zeros(2))
    gain = torch.tensor([-1.0, 1.0])
    loss = policy.clipped_surrogate(token, gain, clip_low=0.2, clip_high=0.2)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert new.grad[0] > 0  # a negative advantage lowers the log-prob, however far the ratio is
    assert torch.isfinite(new.grad).all()


def naive_gae(rewards, values, gamma, lam):
    advantages, last = [0.0] * len(rewards), 0.0
    for step in reversed(range(len(rewards))):
        following = values[step + 1] if step + 1 < len(rewards) else 0.0
        last = rewards[step] + gamma * following - values[step] + gamma * lam * last
        advantages[step] = last
    return advantages


@pytest.mark.conformance(
    "closed form", "GAE", "equals the backward loop for ragged completions to 1e-12"
)
@pytest.mark.parametrize("lengths", [[1], [5], [1, 1, 1], [7, 1, 12, 3], [64, 33, 65, 2, 1]])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_equals_the_loop(lengths, gamma, lam):
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    rewards, values = torch.randn(2, total, generator=generator, dtype=torch.float64)
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    advantages, returns = advantage.gae(rewards, values, owner, gamma=gamma, lam=lam)
    expected = []
    for part in range(len(lengths)):
        mine = owner == part
        expected += naive_gae(rewards[mine].tolist(), values[mine].tolist(), gamma, lam)
    torch.testing.assert_close(
        advantages, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(returns, advantages + values, rtol=0, atol=0)


def test_gae_of_nothing_is_nothing():
    empty = torch.zeros(0)
    advantages, returns = advantage.gae(empty, empty, empty.long(), gamma=1.0, lam=0.95)
    assert advantages.shape == returns.shape == (0,)


@pytest.mark.conformance("closed form", "GAE", "λ = 1, γ = 1: return − value")
def test_gae_with_lambda_one_is_return_minus_value():
    rewards, values = torch.randn(2, 9, dtype=torch.float64)
    owner = torch.zeros(9, dtype=torch.int64)
    advantages, returns = advantage.gae(rewards, values, owner, gamma=1.0, lam=1.0)
    to_go = rewards.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)


@pytest.mark.conformance(
    "closed form", "PPO", "whitening from summed moments is whitening of the whole step"
)
def test_whitening_with_summed_moments_is_whitening_of_the_whole():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 3 + 7
    total = sum(advantage.moments(part) for part in x.split([1, 499, 500]))
    mean, variance = advantage.mean_variance(total)
    white = advantage.whiten(x, mean, variance, shift_mean=True, epsilon=1e-8)
    assert white.dtype == x.dtype
    assert white.mean().item() == pytest.approx(0, abs=1e-5)
    assert white.var(correction=0).item() == pytest.approx(1, abs=1e-5)
    kept = advantage.whiten(x, mean, variance, shift_mean=False, epsilon=1e-8)
    assert kept.mean().item() == pytest.approx(x.mean().item(), abs=1e-4)


@pytest.mark.conformance(
    "closed form", "RLOO", "the leave-one-out advantage is n/(n − 1) times the centred reward"
)
def test_leave_one_out_is_the_scaled_group_mean():
    # R − mean of the others = G/(G − 1)·(R − mean), and both sum to 0 within a group
    rewards = torch.randn(15, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    group = torch.arange(5).repeat(3)  # three completions each, not next to each other
    options = {"epsilon": 0.0}
    loo = advantage.group_advantages(rewards, group, 5, kind="leave_one_out", **options)
    mean = advantage.group_advantages(rewards, group, 5, kind="group_mean", **options)
    torch.testing.assert_close(loo, 1.5 * mean)
    direct = [
        rewards[c] - rewards[(group == group[c]) & (torch.arange(15) != c)].mean()
        for c in range(15)
    ]
    torch.testing.assert_close(loo, torch.stack(direct))


@pytest.mark.conformance(
    "closed form", "GRPO", "one success in four: 1.5, −0.5, −0.5, −0.5; equal rewards: exact zeros"
)
def test_group_std_is_torch_std_and_equal_rewards_give_exact_zeros():
    rewards = torch.tensor([1.0, 0, 0, 0, 0.1, 0.1, 0.1])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    found = advantage.group_advantages(rewards, group, 2, kind="group_std", epsilon=0.0)
    torch.testing.assert_close(found[:4], torch.tensor([1.5, -0.5, -0.5, -0.5]))
    assert found[4:].tolist() == [0, 0, 0]
    assert advantage.equal_groups(rewards, group, 2).tolist() == [False, True]


@pytest.mark.conformance(
    "closed form", "GRPO", "the three normalisers by hand, however the batch is split"
)
@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        # per-token losses [1, 2, 3 | 4, 5 | 6], lengths 3, 2, 1, L_max 4
        ("sequence", (2 + 4.5 + 6) / 3),
        ("token", 21 / 6),
        ("constant", 21 / (3 * 4)),
    ],
)
@pytest.mark.parametrize("parts", [[[0, 1, 2]], [[0], [1, 2]], [[2], [0], [1]]])
def test_token_weights_give_the_three_normalisers_however_the_batch_is_split(
    normalizer, expected, parts
):
    losses = [torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5]), torch.tensor([6.0])]
    numerator, denominator = 0.0, 0.0
    for part in parts:
        lengths = torch.tensor([len(losses[c]) for c in part])
        weight, count = advantage.token_weights(lengths, normalizer=normalizer, max_length=4)
        owner = torch.arange(len(part)).repeat_interleave(lengths)
        numerator += (weight[owner] * torch.cat([losses[c] for c in part])).sum()
        denominator += count
    assert (numerator / denominator).item() == pytest.approx(expected, rel=1e-6)


def categorical() -> tuple[Tensor, Tensor]:
    logits = torch.tensor([0.3, -0.8, 1.1, 0.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    return logits, reference


@pytest.mark.conformance("closed form", "KL estimators", "k1 and k3 are unbiased")
@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(name):
    logits, reference = categorical()
    new = logits.detach().log_softmax(0)
    exact = (new.exp() * (new - reference)).sum()
    estimate = (new.exp() * divergence.token_kl(new, reference, estimator=name)).sum()
    torch.testing.assert_close(estimate, exact)


@pytest.mark.conformance(
    "closed form",
    "KL estimators",
    "on-policy gradients: k2 of KL(π‖π_ref), k3 of KL(π_ref‖π), k1 none",
)
def test_whose_gradient_is_the_gradient_of_the_kl():
    # On-policy samples, gradient through log π of the sampled token only (as in a loss):
    # k2 gives ∇KL(π ‖ π_ref), k3 gives ∇KL(π_ref ‖ π), k1 gives nothing.
    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    logits, reference = categorical()
    new = logits.log_softmax(0)
    weight = new.detach().exp()
    forward = gradient((new.exp() * (new - reference)).sum())
    reverse = gradient((reference.exp() * (reference - new)).sum())
    loss = {
        name: gradient((weight * divergence.token_kl(new, reference, estimator=name)).sum())
        for name in ("k1", "k2", "k3", "k3_gradient_k2")
    }
    torch.testing.assert_close(loss["k2"], forward)
    torch.testing.assert_close(loss["k3_gradient_k2"], forward)
    torch.testing.assert_close(loss["k3"], reverse)
    torch.testing.assert_close(loss["k1"], torch.zeros(4, dtype=torch.float64))
    assert (forward - reverse).abs().max() > 0.01


@pytest.mark.conformance(
    "closed form",
    "KL estimators",
    "k3 in float32: 1e-5 relative from d = 1e-6 to 16, finite at 500",
)
def test_k3_in_float32_near_and_far():
    d = torch.logspace(-6, 1.2, 60, dtype=torch.float64)
    for sign in (1, -1):
        near = divergence.k3(torch.zeros(60), (sign * d).float())
        exact = torch.expm1(sign * d.float().double()) - sign * d.float().double()
        series = d.float().double().square() / 2  # where float64 cancels too
        exact = torch.where(d < 1e-4, series * (1 + sign * d / 3), exact)
        torch.testing.assert_close(near.double(), exact, rtol=1e-5, atol=0)
        here = torch.zeros(60, requires_grad=True)
        divergence.k3(here, (sign * d).float()).sum().backward()
        slope = -torch.expm1((sign * d).float().double())
        torch.testing.assert_close(here.grad.double(), slope, rtol=1e-4, atol=0)
    new = torch.tensor([-500.0, 0.0], requires_grad=True)
    far = divergence.k3(new, torch.tensor([0.0, -500.0]))
    far.sum().backward()
    assert torch.isfinite(far).all()
    assert new.grad[0] < 0 < new.grad[1]  # both are pulled towards the reference


@pytest.mark.conformance(
    "closed form", "best of n", "KL = log n − (n − 1)/n: the paper's table and a direct sum"
)
def test_best_of_n_kl_matches_the_paper_and_a_direct_sum():
    found = [round(divergence.best_of_n_kl(n), 2) for n in (1, 2, 4, 16, 64)]
    assert found == [0.0, 0.19, 0.64, 1.84, 3.17]
    # many equally likely outcomes with distinct rewards: p_i = (i/M)ⁿ − ((i − 1)/M)ⁿ
    grid = torch.arange(20_001, dtype=torch.float64) / 20_000
    chance = (grid**4).diff()
    direct = (chance * (chance * 20_000).clamp(min=1e-300).log()).sum().item()
    assert direct == pytest.approx(divergence.best_of_n_kl(4), abs=1e-3)


@pytest.mark.conformance(
    "closed form", "PPO", "the adaptive KL coefficient finds the β that holds the target"
)
def test_adaptive_coefficient_holds_a_kl_that_falls_with_it():
    # A policy whose KL is 1.2/β: the controller finds β = 0.2 for a target of 6 nats.
    coefficient = 0.05
    for _ in range(400):
        coefficient = divergence.adapt_coefficient(
            coefficient, 1.2 / coefficient, 512, target=6.0, horizon=10_000.0
        )
    assert coefficient == pytest.approx(0.2, rel=1e-3)


@pytest.mark.conformance(
    "closed form", "best of n", "beats a single sample with probability n/(n + 1), by a direct sum"
)
@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_best_of_n_wins_n_of_n_plus_one(n):
    # 20,000 equally likely outcomes; an equal one counts half, which is the integral's midpoint
    grid = torch.arange(20_001, dtype=torch.float64) / 20_000
    chance = (grid**n).diff()
    won = (chance * (grid[:-1] + grid[1:]) / 2).sum().item()
    assert won == pytest.approx(n / (n + 1), abs=1e-6)
    kl = (chance * (chance * 20_000).clamp(min=1e-300).log()).sum().item()
    assert kl == pytest.approx(divergence.best_of_n_kl(n), abs=1e-2)
    assert kl <= divergence.best_of_n_kl(n) + 1e-12  # ties can only lose


# -------------------------------------------------- where the KL term stands, and what it estimates
ARM_REWARD = torch.tensor([1.0, 0.2, -0.4, 0.7], dtype=torch.float64)
ARM_REFERENCE = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log()
GROUP = 3


def expected_advantage(kind: str, chance: Tensor) -> Tensor:
    """E[advantage | arm] over the other members of a group of three, in plain loops."""
    found = []
    for arm in range(4):
        total = 0.0
        for others in itertools.product(range(4), repeat=GROUP - 1):
            rewards = [ARM_REWARD[a].item() for a in (arm, *others)]
            mean = sum(rewards) / GROUP
            value = rewards[0] - mean
            if kind == "leave_one_out":
                value = rewards[0] - sum(rewards[1:]) / (GROUP - 1)
            if kind == "group_std":
                std = (sum((r - mean) ** 2 for r in rewards) / (GROUP - 1)) ** 0.5
                value /= std + 1e-4
            total += value * math.prod(chance[a].item() for a in others)
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def settle_in_groups(kind: str, place: str, estimator: str, beta: float) -> Tensor:
    """Probabilities (4,) where gradient descent on the exact expectation over all groups ends."""
    members = torch.tensor(list(itertools.product(range(4), repeat=GROUP)))
    owner = torch.arange(len(members)).repeat_interleave(GROUP)
    flat = members.flatten()
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for step in range(1200):
        new = logits.log_softmax(0)
        old = new.detach()
        scores = ARM_REWARD[flat]
        if place == "reward":
            scores = scores - beta * divergence.k1(old, ARM_REFERENCE)[flat]
        gain = advantage.group_advantages(scores, owner, len(members), kind=kind, epsilon=1e-4)
        token = TokenLogps(new=new[flat], old=old[flat])
        loss = policy.clipped_surrogate(token, gain, clip_low=0.2, clip_high=0.2)
        if place == "loss":
            reference = ARM_REFERENCE[flat]
            kl = divergence.token_kl(token.new, reference, estimator=estimator)
            loss = loss + beta * kl
        chance = old[members].sum(1).exp()
        total = (chance[owner] * loss).sum() / GROUP
        # Standardised advantages do not shrink near the optimum of the penalised reward, so that
        # only smaller steps come nearer to it.
        rate = 2.0 * 0.985**step if (kind, place) == ("group_std", "reward") else 2.0
        with torch.no_grad():
            logits -= rate * torch.autograd.grad(total, logits)[0]
    return logits.detach().softmax(0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["leave_one_out", "group_mean", "group_std"])
@pytest.mark.parametrize(
    ("place", "estimator"),
    [
        pytest.param(
            "loss",
            "k2",
            marks=pytest.mark.conformance(
                "closed form",
                "GRPO (k2)",
                "KL in the loss: π_ref·e^{A/β}/Z to 1e-6, A the expected advantage of the arm:"
                " r − E[r], (n − 1)/n of it, or standardised",
            ),
        ),
        pytest.param(
            "loss",
            "k3_gradient_k2",
            marks=pytest.mark.conformance(
                "closed form", "GRPO (k3_gradient_k2)", "KL in the loss: as k2, to 1e-6"
            ),
        ),
        pytest.param(
            "loss",
            "k3",
            marks=pytest.mark.conformance(
                "closed form",
                "GRPO (k3)",
                "KL in the loss: β·π_ref/(λ − A) to 1e-6, not π_ref·e^{A/β}/Z",
            ),
        ),
        pytest.param(
            "reward",
            "k1",
            marks=pytest.mark.conformance(
                "closed form",
                "RLOO and relatives",
                "KL in the reward: π_ref·e^{r/β}/Z to 1e-6, whatever the advantage's scale",
            ),
        ),
    ],
)
def test_what_a_kl_term_converges_to(kind, place, estimator):
    beta = 0.5
    found = settle_in_groups(kind, place, estimator, beta)
    gain = ARM_REWARD if place == "reward" else expected_advantage(kind, found)
    tilted = (ARM_REFERENCE + gain / beta).softmax(0)
    if estimator == "k3":
        # ∂/∂logit: π·A − β(π − π_ref) = 0, and Σ π·A = 0 makes λ = β
        best = beta * ARM_REFERENCE.exp() / (beta - gain)
        assert (found - tilted).abs().max() > 0.02
    else:
        best = tilted
    torch.testing.assert_close(found, best, atol=1e-6, rtol=0)
    # Only an advantage on the scale of the reward leaves β its meaning.
    same = torch.allclose(gain - gain.mean(), ARM_REWARD - ARM_REWARD.mean(), atol=1e-9)
    assert same == (place == "reward" or kind == "leave_one_out")


class Sentences:
    """Policies over two tokens of three each, all nine sentences known: exact expectations."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        options = {"generator": generator, "dtype": torch.float64}
        self.reference = (torch.randn(3, **options), torch.randn(3, 3, **options))
        self.reward = torch.tensor([[0.6, 0.6, 0.6], [1.2, -0.4, -0.4], [-0.4, -0.4, 1.2]]).double()
        self.completion = torch.arange(9).repeat_interleave(2)
        self.lengths = torch.full((9,), 2)

    def logps(self, first: Tensor, second: Tensor) -> Tensor:
        """Log-probabilities (18,) of the tokens of all nine sentences."""
        one = first.log_softmax(0)[:, None].expand(3, 3)
        return torch.stack([one, second.log_softmax(1)], -1).flatten()

    def settle(self, loss) -> Tensor:
        """Probabilities (3, 3) after descent on ``loss(new, old, reference, chance) -> ()``."""
        leaves = [x.clone().requires_grad_() for x in self.reference]
        reference = self.logps(*self.reference)
        for _ in range(1500):
            new = self.logps(*leaves)
            old = new.detach()
            chance = segment_sum(old, self.completion, 9).exp()
            total = loss(new, old, reference, chance)
            gradients = torch.autograd.grad(total, leaves)
            with torch.no_grad():
                for leaf, gradient in zip(leaves, gradients, strict=True):
                    leaf -= 4.0 * gradient
        return segment_sum(self.logps(*leaves).detach(), self.completion, 9).exp().view(3, 3)

    def tilted(self, beta: float) -> Tensor:
        whole = segment_sum(self.logps(*self.reference), self.completion, 9).view(3, 3)
        return (whole + self.reward / beta).flatten().softmax(0).view(3, 3)


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "PPO, RLOO and REINFORCE++",
    "sentences of two tokens, KL in the reward: π_ref(y)·e^{r(y)/β}/Z to 1e-6",
)
@pytest.mark.parametrize("method", ["ppo", "rloo", "reinforce_pp"])
def test_over_sentences_a_kl_in_the_reward_gives_the_tilted_reference(method):
    world, beta = Sentences(), 0.6

    def ppo(new, old, reference, chance):
        rewards = token_rewards(world.reward.flatten(), old, reference, beta, world.lengths)
        values = torch.zeros_like(rewards)  # a baseline changes the noise, not the expectation
        gain, _ = advantage.gae(rewards, values, world.completion, gamma=1.0, lam=1.0)
        token = TokenLogps(new=new, old=old)
        losses = policy.clipped_surrogate(token, gain, clip_low=0.2, clip_high=0.2)
        return (chance[world.completion] * losses).sum()

    def rloo(new, old, reference, chance):
        kl = segment_sum(old - reference, world.completion, 9)
        gain = world.reward.flatten() - beta * kl
        token = TokenLogps(new=new, old=old)
        bounds = {"clip_low": 0.2, "clip_high": 0.2, "ratio": "product"}
        losses = policy.sequence_surrogate(token, gain, world.completion, world.lengths, **bounds)
        return (chance * losses).sum()

    def reinforce_pp(new, old, reference, chance):
        rewards = token_rewards(world.reward.flatten(), old, reference, beta, world.lengths)
        nothing = torch.zeros_like(rewards)
        gain, _ = advantage.gae(rewards, nothing, world.completion, gamma=1.0, lam=1.0)
        mean, variance = advantage.mean_variance(advantage.moments(gain))
        gain = advantage.whiten(gain, mean, variance, shift_mean=True, epsilon=1e-8)
        token = TokenLogps(new=new, old=old)
        losses = policy.clipped_surrogate(token, gain, clip_low=0.2, clip_high=0.2)
        # Smaller steps: near the optimum little is left of the spread that it is divided by.
        return 0.1 * (chance[world.completion] * losses).sum()

    found = world.settle({"ppo": ppo, "rloo": rloo, "reinforce_pp": reinforce_pp}[method])
    torch.testing.assert_close(found, world.tilted(beta), atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "GRPO (k2)",
    "sentences, KL in the loss: each token is tilted by its expected reward alone; the KL that it"
    " causes later is not counted, so it is not π_ref(y)·e^{r(y)/β}/Z",
)
def test_over_sentences_a_kl_in_the_loss_is_short_sighted():
    world, beta = Sentences(), 0.6

    def grpo(new, old, reference, chance):
        token = TokenLogps(new=new, old=old)
        gain = (world.reward.flatten() - chance @ world.reward.flatten())[world.completion]
        losses = policy.clipped_surrogate(token, gain, clip_low=0.2, clip_high=0.2)
        losses = losses + beta * divergence.token_kl(new, reference, estimator="k2")
        return (chance[world.completion] * losses).sum()

    found = world.settle(grpo)
    first, second = found.sum(1), found / found.sum(1, keepdim=True)
    last = (world.reference[1].log_softmax(1) + world.reward / beta).softmax(1)
    torch.testing.assert_close(second, last, atol=1e-6, rtol=0)
    expected = (last * world.reward).sum(1)  # the soft value would be less: − β KL of what follows
    ahead = (world.reference[0].log_softmax(0) + expected / beta).softmax(0)
    torch.testing.assert_close(first, ahead, atol=1e-6, rtol=0)
    assert (found - world.tilted(beta)).abs().sum() / 2 > 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.conformance(
    "oracle",
    "GRPO (KL term)",
    "on-policy TRL's default KL gradient is our k2's, without its correction our k3's, to 1e-5",
)
def test_trl_corrects_k3_into_the_gradient_of_k2(tmp_path):
    from test_against_trl import group_trainer, llama, rollout

    trained = llama(0)
    batch, logps, _, lengths = rollout(trained)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    keep = batch["completion_mask"].bool()
    theirs = {}
    for corrected in (True, False):
        trainer = group_trainer(
            tmp_path, trained, name="GRPO", beta=1.0, use_bias_correction_kl=corrected
        )
        trainer.model.zero_grad(set_to_none=True)
        on_policy = {k: v for k, v in batch.items() if k != "old_per_token_logps"}
        trainer.compute_loss(trainer.model, on_policy | {"advantages": torch.zeros(4)}).backward()
        theirs[corrected] = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    ours = {}
    for estimator in ("k2", "k3", "k3_gradient_k2"):
        logits = trained(input_ids=ids, attention_mask=attention).logits[:, 2:-1]
        every = logits.log_softmax(-1).gather(2, batch["completion_ids"][..., None])[..., 0]
        new = every[keep]
        kl = divergence.token_kl(new, logps.reference, estimator=estimator)
        gradients = torch.autograd.grad(kl.sum() / lengths.sum(), list(trained.parameters()))
        ours[estimator] = torch.cat([g.flatten() for g in gradients])
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ours["k2"], theirs[True], **close)
    torch.testing.assert_close(ours["k3_gradient_k2"], theirs[True], **close)
    torch.testing.assert_close(ours["k3"], theirs[False], **close)
    assert (theirs[True] - theirs[False]).abs().max() > 1e-2
