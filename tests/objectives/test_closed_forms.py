"""Objectives on bandits whose optimum is known, and estimators against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alignlab.objectives import advantage, divergence, pairwise, policy, ranking, unpaired
from alignlab.tensors import GroupScores, PairLogps, SingleLogps, TokenLogps


def minimise(loss, logits: Tensor, steps: int = 300) -> Tensor:
    """Log-probabilities of the arms at the minimum of ``loss(log_probs)``, by L-BFGS in float64."""
    logits = logits.clone().double().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        value = loss(logits.log_softmax(-1))
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().log_softmax(-1)


def one_pair(logps: Tensor, chosen: int = 0, rejected: int = 1) -> PairLogps:
    one = torch.ones(1)
    return PairLogps(logps[chosen].reshape(1), logps[rejected].reshape(1), one, one)


UNIFORM = torch.full((2,), 0.5, dtype=torch.float64).log()


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_ipo_on_two_arms_stops_at_sigmoid_of_half_inverse_tau(tau):
    # (log π₀/π₁ − 1/(2τ))² = 0 ⇔ π₀ = σ(1/(2τ)): 0.993, 0.731, 0.622 (IPO §5)
    def loss(logps):
        return pairwise.ipo(one_pair(logps), one_pair(UNIFORM), tau=tau, normalize="sum").sum()

    best = minimise(loss, torch.zeros(2))
    assert best[0].exp().item() == pytest.approx(1 / (1 + math.exp(-1 / (2 * tau))), abs=1e-9)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_dpo_on_a_deterministic_preference_becomes_deterministic(beta):
    def loss(logps):
        return pairwise.dpo(
            one_pair(logps), one_pair(UNIFORM), beta=beta, label_smoothing=0.0
        ).sum()

    assert minimise(loss, torch.zeros(2))[0].exp().item() > 0.999


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_cdpo_stops_where_the_implicit_preference_is_one_minus_epsilon(beta):
    # minimum of −(1 − ε)·log σ(z) − ε·log σ(−z) at σ(z) = 1 − ε, z = β·log(π₀/π₁)
    def loss(logps):
        return pairwise.dpo(
            one_pair(logps), one_pair(UNIFORM), beta=beta, label_smoothing=0.2
        ).sum()

    best = minimise(loss, torch.zeros(2))
    assert beta * (best[0] - best[1]).item() == pytest.approx(math.log(0.8 / 0.2), abs=1e-6)


def test_rdpo_is_unbiased_under_label_flips():
    # E over a flip with probability ε of rDPO(observed) = DPO(clean), for any gap
    logps = torch.tensor([-0.2, -1.7], dtype=torch.float64)
    options = {"beta": 0.7, "label_smoothing": 0.3}
    clean = pairwise.robust_dpo(one_pair(logps), one_pair(UNIFORM), **options)
    flipped = pairwise.robust_dpo(one_pair(logps, 1, 0), one_pair(UNIFORM, 1, 0), **options)
    expected = pairwise.dpo(one_pair(logps), one_pair(UNIFORM), beta=0.7, label_smoothing=0.0)
    torch.testing.assert_close(0.7 * clean + 0.3 * flipped, expected)


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


@pytest.mark.parametrize("size", [2, 3, 6])
def test_plackett_luce_is_a_distribution_over_rankings(size):
    # Σ over all K! rankings of exp(−loss) = 1; and K = 2 is Bradley–Terry
    import itertools

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


def test_top_one_gradient_is_softmax_minus_one_hot():
    reward = torch.tensor([0.3, 1.0, -2.0, 0.0], dtype=torch.float64, requires_grad=True)
    better, worse = torch.tensor([2, 2, 2, 0, 0, 1]), torch.tensor([0, 1, 3, 1, 3, 3])
    scores = GroupScores(reward, better, worse, torch.zeros(6, dtype=torch.int64), 1)
    ranking.top_one(scores).sum().backward()
    expected = reward.detach().softmax(0) - torch.tensor([0, 0, 1, 0])
    torch.testing.assert_close(reward.grad, expected)


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


def test_clipping_removes_the_gradient_only_where_the_step_would_help():
    old = torch.zeros(4)
    new = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)
    gain = torch.tensor([1.0, -1.0, 1.0, -1.0])
    token = TokenLogps(new=new, old=old)
    policy.clipped_surrogate(token, gain, clip_low=0.2, clip_high=0.2).sum().backward()
    clipped = policy.clip_fraction(token, gain, clip_low=0.2, clip_high=0.2)
    assert torch.equal(new.grad == 0, clipped.bool())
    assert clipped.tolist() == [1, 0, 0, 1]


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


def test_gae_with_lambda_one_is_return_minus_value():
    rewards, values = torch.randn(2, 9, dtype=torch.float64)
    owner = torch.zeros(9, dtype=torch.int64)
    advantages, returns = advantage.gae(rewards, values, owner, gamma=1.0, lam=1.0)
    to_go = rewards.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)


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


def test_group_std_is_torch_std_and_equal_rewards_give_exact_zeros():
    rewards = torch.tensor([1.0, 0, 0, 0, 0.1, 0.1, 0.1])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    found = advantage.group_advantages(rewards, group, 2, kind="group_std", epsilon=0.0)
    torch.testing.assert_close(found[:4], torch.tensor([1.5, -0.5, -0.5, -0.5]))
    assert found[4:].tolist() == [0, 0, 0]
    assert advantage.equal_groups(rewards, group, 2).tolist() == [False, True]


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


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(name):
    logits, reference = categorical()
    new = logits.detach().log_softmax(0)
    exact = (new.exp() * (new - reference)).sum()
    estimate = (new.exp() * divergence.token_kl(new, reference, estimator=name)).sum()
    torch.testing.assert_close(estimate, exact)


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


def test_best_of_n_kl_matches_the_paper_and_a_direct_sum():
    found = [round(divergence.best_of_n_kl(n), 2) for n in (1, 2, 4, 16, 64)]
    assert found == [0.0, 0.19, 0.64, 1.84, 3.17]
    # many equally likely outcomes with distinct rewards: p_i = (i/M)ⁿ − ((i − 1)/M)ⁿ
    grid = torch.arange(20_001, dtype=torch.float64) / 20_000
    chance = (grid**4).diff()
    direct = (chance * (chance * 20_000).clamp(min=1e-300).log()).sum().item()
    assert direct == pytest.approx(divergence.best_of_n_kl(4), abs=1e-3)


def test_adaptive_coefficient_holds_a_kl_that_falls_with_it():
    # A policy whose KL is 1.2/β: the controller finds β = 0.2 for a target of 6 nats.
    coefficient = 0.05
    for _ in range(400):
        coefficient = divergence.adapt_coefficient(
            coefficient, 1.2 / coefficient, 512, target=6.0, horizon=10_000.0
        )
    assert coefficient == pytest.approx(0.2, rel=1e-3)
