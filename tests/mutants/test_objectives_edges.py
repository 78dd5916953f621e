"""Where mutants of the objectives hid: gradients that must not flow, dtypes, names, rounding."""

from __future__ import annotations

import math

import pytest
import torch
from objective_cases import ADVANTAGE, LENGTHS, LOGPS, OWNER, PI, REF, SINGLE, SINGLE_REF, i, t

from alignlab.objectives import advantage, divergence, pairwise, policy, stable, unpaired
from alignlab.tensors import PairLogps, SingleLogps, TokenLogps


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_()


def exactly(found: torch.Tensor, wanted: torch.Tensor, rtol: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=0)


def test_safe_exp_continues_at_the_limit_without_a_step():
    # e²⁰ at 20 and 3·e²⁰ at 22, to twelve digits
    exactly(stable.safe_exp(t(20, 22)), math.exp(20) * t(1, 3), rtol=1e-12)
    exactly(stable.safe_expm1(t(20, 22)), math.exp(20) * t(1, 3) - 1, rtol=1e-12)


def test_log1mexp_is_accurate_to_the_last_bit_of_float32_on_both_branches():
    x = -torch.linspace(0.3, 3, 4001)
    true = torch.log1p(-torch.exp(x.double()))
    # 2⁻²³ = 1.19e-7; the wrong branch loses up to 1.7e-7 just beyond log 2 and more further on
    assert ((stable.log1mexp(x).double() - true) / true).abs().max() < 1.5e-7


def test_k3_of_small_differences_is_right_to_the_sixth_order():
    # Lagrange: |eᵈ − Σ_{n ≤ 5} dⁿ/n!| ≤ e^|d|·d⁶/720
    d = t(0.049, 0.04, -0.04, -0.049)
    error = divergence.k3(t(0, 0, 0, 0), d) - (torch.expm1(d) - d)
    assert (error.abs() <= d.abs().exp() * d**6 / 720 + 1e-16).all()


def test_k3_of_absurd_differences_has_a_gradient():
    # e²⁰·(1 + 2) − 1 − 22 at d = 22; and d = ±1e20, whose powers float32 cannot hold
    exactly(divergence.k3(t(0), t(22)), t(3 * math.exp(20) - 23), rtol=1e-12)
    new = torch.tensor([0.0, 0.0], requires_grad=True)
    divergence.k3(new, torch.tensor([1e20, -1e20])).sum().backward()
    assert new.grad.isfinite().all()


def test_metrics_carry_no_gradient_and_the_names_the_reports_read():
    mine = PairLogps(leaf(PI.chosen), leaf(PI.rejected), PI.chosen_length, PI.rejected_length)
    metrics = pairwise.pair_metrics(mine, REF)
    assert set(metrics) == {
        *("chosen_logp", "rejected_logp", "chosen_length", "rejected_length"),
        *("chosen_log_ratio", "rejected_log_ratio", "margin", "accuracy"),
    }
    assert metrics["chosen_logp"].tolist() == [-10, -6, -20]
    assert metrics["rejected_logp"].tolist() == [-12, -9, -8]
    assert metrics["chosen_length"].tolist() == [4, 2, 5]
    assert metrics["rejected_log_ratio"].tolist() == [-2, -1, 2]
    assert {x.dtype for x in metrics.values()} == {torch.float64}
    assert not any(x.requires_grad for x in metrics.values())


def test_metrics_of_thumbs_carry_no_gradient():
    mine = SingleLogps(leaf(SINGLE.completion), SINGLE.length, SINGLE.desirable)
    metrics = unpaired.single_metrics(mine, SINGLE_REF)
    assert set(metrics) == {"logp", "length", "log_ratio", "accuracy"}
    assert metrics["logp"].tolist() == [-9, -12, -5.5, -4, -7]
    assert metrics["length"].tolist() == [3, 4, 2, 6, 1]
    assert {x.dtype for x in metrics.values()} == {torch.float64}
    assert not any(x.requires_grad for x in metrics.values())


def test_no_gradient_flows_into_advantages():
    a, per_completion = leaf(ADVANTAGE), leaf(t(1, -2, -1))
    logps = TokenLogps(new=leaf(LOGPS.new), old=LOGPS.old)
    bounds = {"clip_low": 0.2, "clip_high": 0.1}
    loss = policy.clipped_surrogate(logps, a, **bounds).sum()
    loss = (
        loss
        + policy.sequence_surrogate(
            logps, per_completion, OWNER, LENGTHS, **bounds, ratio="product"
        ).sum()
    )
    loss = loss + policy.clipped_weight_surrogate(logps, a, **bounds).sum()
    loss.backward()
    assert a.grad is None
    assert per_completion.grad is None
    assert logps.new.grad.abs().sum() > 0
    for fraction in (
        policy.clip_fraction(logps, ADVANTAGE, **bounds),
        policy.weight_clip_fraction(logps, **bounds),
    ):
        assert fraction.dtype == torch.float64
        assert not fraction.requires_grad


def test_no_gradient_flows_into_old_values_and_returns():
    values, old, returns = leaf(t(1, 2, 0, 1.5)), leaf(t(0.5, 1.9, 1, 1)), leaf(t(1, 1, -1, 1.25))
    policy.clipped_value(values, old, returns, clip=0.2).sum().backward()
    # only where the plain error is the larger one: V − G = [0, 1, 1, 0.25] at 1 (equal) and 3
    torch.testing.assert_close(values.grad, t(0, 1, 0, 0.25))
    assert old.grad is None
    assert returns.grad is None


def test_advantages_are_constants():
    rewards, values = leaf(t(1, 0, 2)), leaf(t(0.5, 1, -1))
    owner = i(0, 0, 1)
    for found in (
        *advantage.gae(rewards, values, owner, gamma=0.5, lam=0.25),
        advantage.moments(rewards),
        advantage.equal_groups(rewards, owner, 2),
        advantage.group_advantages(rewards, owner, 2, kind="group_mean", epsilon=0.0),
    ):
        assert isinstance(found, torch.Tensor)
        assert not found.requires_grad


def test_no_tokens_have_no_advantages():
    advantages, returns = advantage.gae(t(), t(), i(), gamma=1.0, lam=1.0)
    assert advantages.shape == returns.shape == (0,)


def test_moments_are_exact_beyond_float32():
    # 2²⁴ + 1 is not a float32, nor is the square of 4097
    found = advantage.moments(torch.tensor([2.0**24, 1.0, 4097.0]))
    assert found.dtype == torch.float64
    assert found.tolist() == [3, 2**24 + 4098, 2**48 + 1 + 4097**2]


def test_whitening_keeps_the_dtype():
    x = torch.tensor([1.0, 2.0, 4.0])
    mean, variance = t(2)[0], t(3.9)[0]
    for shift in (True, False):
        found = advantage.whiten(x, mean, variance, shift_mean=shift, epsilon=0.1)
        assert found.dtype == torch.float32


@pytest.mark.parametrize("kind", ["group_std", "group_mean", "leave_one_out"])
def test_equal_rewards_teach_exactly_nothing(kind):
    # the mean of three equal float32 rewards may differ from them in the last bit
    for reward in torch.linspace(0.1, 0.9, 33).tolist():
        found = advantage.group_advantages(
            torch.tensor([reward] * 3), i(0, 0, 0), 1, kind=kind, epsilon=1e-8
        )
        assert found.tolist() == [0, 0, 0]


def test_an_unknown_normalizer_is_refused_even_with_a_limit():
    with pytest.raises(ValueError, match="sequence, token or constant"):
        advantage.token_weights(i(1), normalizer="mean", max_length=4)
