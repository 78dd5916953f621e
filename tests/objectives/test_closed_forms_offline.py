"""The later offline objectives on bandits whose optimum is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from closed_forms import minimise, one_pair
from torch import Tensor

from alignlab.objectives import anchored, groupwise, links, pairwise, penalized, unpaired
from alignlab.tensors import GroupLogps, PairLogps, SingleLogps

REWARD = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
REFERENCE = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
LENGTHS = torch.tensor([2, 7, 4])
Pairwise = Callable[[PairLogps, PairLogps], Tensor]


def on_bradley_terry(objective: Pairwise) -> Tensor:
    """Optimal log-probs of three arms, every ordered pair weighted by its probability."""

    def pair(logps: Tensor, a: int, b: int) -> PairLogps:
        found = one_pair(logps, a, b)
        return PairLogps(found.chosen, found.rejected, LENGTHS[a : a + 1], LENGTHS[b : b + 1])

    def loss(logps: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for a in range(3):
            for b in range(3):
                if a != b:
                    weight = torch.sigmoid(REWARD[a] - REWARD[b])
                    total = (
                        total + weight * objective(pair(logps, a, b), pair(REFERENCE, a, b)).sum()
                    )
        return total

    return minimise(loss, torch.zeros(3))


def centred(x: Tensor) -> Tensor:
    return x - x.mean()


@pytest.mark.conformance(
    "closed form", "R-DPO", "on Bradley–Terry preferences: π_ref·e^{(r − α|y|)/β}/Z to 1e-6"
)
def test_r_dpo_reaches_the_optimum_of_a_reward_that_pays_for_tokens():
    best = on_bradley_terry(lambda p, r: penalized.dpo_length(p, r, beta=0.6, alpha=0.1))
    expected = (REFERENCE + (REWARD - 0.1 * LENGTHS) / 0.6).log_softmax(-1)
    torch.testing.assert_close(best, expected, atol=1e-6, rtol=0)


@pytest.mark.conformance(
    "closed form", "χPO", "on Bradley–Terry preferences: β(z + log z) = r − const to 1e-6"
)
def test_chi_po_reaches_its_link():
    best = on_bradley_terry(lambda p, r: links.chi_po(p, r, beta=0.6, reward_bound=5.0))
    ratio = best - REFERENCE
    torch.testing.assert_close(
        centred(0.6 * (ratio.exp() + ratio)), centred(REWARD), atol=1e-6, rtol=0
    )
    # nearer to the reference than DPO at the same β, whose only penalty is the KL
    dpo = on_bradley_terry(lambda p, r: pairwise.dpo(p, r, beta=0.6, label_smoothing=0.0))
    assert ratio.abs().max() < (dpo - REFERENCE).abs().max()


@pytest.mark.conformance(
    "closed form", "f-DPO", "on Bradley–Terry preferences: β·f′(z) = r − const to 1e-6"
)
@pytest.mark.parametrize("divergence", ["forward_kl", "jensen_shannon"])
def test_f_dpo_reaches_its_link(divergence):
    best = on_bradley_terry(lambda p, r: links.f_dpo(p, r, beta=2.0, divergence=divergence))
    z = (best - REFERENCE).exp()
    slope = -1 / z if divergence == "forward_kl" else (2 * z / (1 + z)).log()
    torch.testing.assert_close(centred(2.0 * slope), centred(REWARD), atol=1e-6, rtol=0)


@pytest.mark.conformance(
    "closed form", "EXO (pairs)", "stops at σ(βh) = 1 − ε, to 1e-6, with no divergence left"
)
def test_exo_stops_where_the_policy_s_choice_is_the_annotator_s():
    uniform = torch.full((2,), 0.5, dtype=torch.float64).log()

    def loss(logps):
        found = links.exo_pair(one_pair(logps), one_pair(uniform), beta=0.5, label_smoothing=0.1)
        return found.sum()

    best = minimise(loss, torch.zeros(2))
    assert torch.sigmoid(0.5 * (best[0] - best[1])).item() == pytest.approx(0.9, abs=1e-6)
    assert loss(best).item() == pytest.approx(0, abs=1e-10)


def free(loss: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Log-ratios at the minimum of a loss that no sum of probabilities holds together."""
    ratio = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [ratio],
        max_iter=300,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(ratio)
        value.backward()
        return value

    optimizer.step(closure)
    return ratio.detach()


@pytest.mark.conformance(
    "closed form", "SPPO", "the log-ratios of winner and loser go to ±1/(2β), to 1e-6"
)
def test_sppo_sends_both_answers_where_the_equation_says():
    zero = one_pair(torch.zeros(2, dtype=torch.float64))
    found = free(lambda x: anchored.sppo(one_pair(x), zero, beta=0.25).sum(), 2)
    torch.testing.assert_close(found, torch.tensor([2.0, -2.0], dtype=torch.float64))


def arms(logps: Tensor) -> GroupLogps:
    """One prompt with three completions, whose scores are the rewards."""
    order = torch.tensor([[0, 2], [0, 1], [2, 1]])
    one = torch.zeros(3, dtype=torch.int64)
    return GroupLogps(logps, LENGTHS, REWARD, one, order[:, 0], order[:, 1], one, 1)


@pytest.mark.conformance(
    "closed form",
    "NCA, InfoNCA, EXO (scores)",
    "β·lr = log(K·softmax(u/α)) for NCA, softmax(β·lr) = softmax(u/α) for the others, to 1e-6",
)
def test_objectives_of_scores_reach_the_softmax_of_the_scores():
    zero = arms(torch.zeros(3, dtype=torch.float64))
    wanted = (REWARD / 0.7).log_softmax(0)
    absolute = free(lambda x: groupwise.nca(arms(x), zero, beta=0.5, alpha=0.7).sum(), 3)
    torch.testing.assert_close(0.5 * absolute, wanted + math.log(3), atol=1e-6, rtol=0)
    for objective in (groupwise.info_nca, groupwise.exo):
        found = free(lambda x: objective(arms(x), zero, beta=0.5, alpha=0.7).sum(), 3)  # noqa: B023
        torch.testing.assert_close((0.5 * found).log_softmax(0), wanted, atol=1e-6, rtol=0)


@pytest.mark.conformance(
    "closed form", "DPO-PL, InfoNCA", "two completions: DPO's loss, to 1e-12 (InfoNCA at α → 0)"
)
def test_two_completions_are_dpo():
    logps, before = torch.tensor([-1.0, -2.5]).double(), torch.tensor([-1.5, -2.0]).double()

    def two(values: Tensor) -> GroupLogps:
        first, second, one = (torch.tensor([n]) for n in (0, 1, 0))
        utility = torch.tensor([1.0, 0.0]).double()
        return GroupLogps(values, LENGTHS[:2], utility, torch.tensor([0, 0]), first, second, one, 1)

    dpo = pairwise.dpo(one_pair(logps), one_pair(before), beta=0.3, label_smoothing=0.0)
    ranked = groupwise.dpo_ranking(two(logps), two(before), beta=0.3)
    noise = groupwise.info_nca(two(logps), two(before), beta=0.3, alpha=1e-3)
    torch.testing.assert_close(ranked, dpo, atol=1e-12, rtol=0)
    torch.testing.assert_close(noise, dpo, atol=1e-12, rtol=0)


@pytest.mark.conformance(
    "closed form",
    "BCO",
    "one answer with thumbs up 3 : 1: β(lr − s) = log 3, and it bounds DPO's loss for every shift",
)
def test_bco_is_a_classifier_that_bounds_dpo():
    thumbs, count = torch.tensor([True, True, True, False]), torch.ones(4)
    before = SingleLogps(torch.zeros(4, dtype=torch.float64), count, thumbs)
    shift = torch.tensor(0.4, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return unpaired.bco(SingleLogps(x.expand(4), count, thumbs), before, shift, beta=0.5).sum()

    found = 0.5 * (free(loss, 1) - shift)
    assert found.item() == pytest.approx(math.log(3), abs=1e-6)
    # the two losses of a pair together are above DPO's loss of the pair
    both, two = torch.tensor([True, False]), torch.ones(2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        x = 4 * torch.randn(2, generator=generator, dtype=torch.float64)
        zero = SingleLogps(torch.zeros_like(x), two, both)
        dpo = pairwise.dpo(one_pair(x), one_pair(zero.completion), beta=0.5, label_smoothing=0.0)
        for s in (-1.0, 0.0, 2.0):
            bound = unpaired.bco(SingleLogps(x, two, both), zero, torch.tensor(s), beta=0.5).sum()
            assert bound > dpo.sum()


@pytest.mark.conformance(
    "closed form",
    "CPO, DPO+NLL, DPOP",
    "at λ = 0 they are DPO (CPO: with a uniform reference), bit for bit",
)
def test_without_their_penalty_they_are_dpo():
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    policy = PairLogps(x[0], x[1], torch.arange(1, 6), torch.arange(2, 7))
    before = PairLogps(x[2], x[3], policy.chosen_length, policy.rejected_length)
    dpo = pairwise.dpo(policy, before, beta=0.3, label_smoothing=0.0)
    assert torch.equal(penalized.dpo_likelihood(policy, before, beta=0.3, weight=0.0), dpo)
    assert torch.equal(penalized.dpo_positive(policy, before, beta=0.3, weight=0.0), dpo)
    assert torch.equal(penalized.dpo_length(policy, before, beta=0.3, alpha=0.0), dpo)
    zero = torch.zeros_like(policy.chosen)
    flat = PairLogps(zero, zero, policy.chosen_length, policy.rejected_length)
    plain = pairwise.dpo(policy, flat, beta=0.3, label_smoothing=0.0)
    assert torch.equal(penalized.cpo(policy, beta=0.3, weight=0.0, normalize="sum"), plain)


@pytest.mark.conformance(
    "closed form",
    "Cal-DPO",
    "the log-ratios go to ±x with x = 1/(2β) + σ(−2x)/2, beyond SPPO's by what DPO adds, to 1e-6",
)
def test_cal_dpo_sends_both_answers_a_little_further_than_sppo():
    # by symmetry a minimum of log(1 + e^−2x) + 2(x − 1/(2β))²
    zero = one_pair(torch.zeros(2, dtype=torch.float64))
    found = free(lambda x: anchored.cal_dpo(one_pair(x), zero, beta=0.5).sum(), 2)
    x = found[0].item()
    assert found[1].item() == pytest.approx(-x, abs=1e-6)
    assert x == pytest.approx(1 + 1 / (1 + math.exp(2 * x)) / 2, abs=1e-6)
    assert x > 1.04


@pytest.mark.conformance(
    "closed form",
    "DPO-Shift",
    "f = 1 is DPO bit for bit; below it the rejected answer's slope is f times the chosen one's",
)
def test_dpo_shift_counts_the_rejected_answer_in_part():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    length = torch.ones(6)
    before = PairLogps(x[2], x[3], length, length)
    chosen, rejected = x[0].requires_grad_(), x[1].requires_grad_()
    policy = PairLogps(chosen, rejected, length, length)
    dpo = pairwise.dpo(policy, before, beta=0.3, label_smoothing=0.0)
    assert torch.equal(anchored.dpo_shift(policy, before, beta=0.3, rejected_share=1.0), dpo)
    loss = anchored.dpo_shift(policy, before, beta=0.3, rejected_share=0.75).sum()
    up, down = torch.autograd.grad(loss, [chosen, rejected])
    torch.testing.assert_close(down, -0.75 * up, rtol=1e-12, atol=0)


@pytest.mark.conformance(
    "closed form",
    "AlphaPO",
    "α = 0 is SimPO bit for bit, and the limit from both sides; r′(p) = e^(−αp) to 1e-12",
)
def test_alpha_po_bends_simpo():
    x = -4 * torch.rand(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    policy = PairLogps(x[0], x[1], torch.arange(1, 6), torch.arange(2, 7))
    simpo = pairwise.simpo(policy, beta=2.0, gamma_beta_ratio=0.3)
    rest = {"beta": 2.0, "gamma_beta_ratio": 0.3}
    assert torch.equal(links.alpha_po(policy, alpha=0.0, **rest), simpo)
    for alpha in (-1e-7, 1e-7):
        near = links.alpha_po(policy, alpha=alpha, **rest)
        torch.testing.assert_close(near, simpo, atol=1e-5, rtol=0)
        assert not torch.equal(near, simpo)
    # both answers have the same loss slope, so their own slopes are as those of their rewards
    one = torch.ones(5)
    chosen, rejected = x[0].clone().requires_grad_(), x[1].clone().requires_grad_()
    loss = links.alpha_po(PairLogps(chosen, rejected, one, one), alpha=0.7, **rest).sum()
    up, down = torch.autograd.grad(loss, [chosen, rejected])
    torch.testing.assert_close(-up / down, (0.7 * (x[1] - x[0])).exp(), rtol=1e-12, atol=0)


@pytest.mark.conformance(
    "closed form",
    "SimPER",
    "the mean of 1/perplexity(y_l) − 1/perplexity(y_w); an impossible answer has no slope left",
)
def test_simper_compares_inverse_perplexities():
    # perplexities 2 and 4: ¼ − ½; then a rejected answer of 2000 nats, which teaches nothing more
    logps = torch.tensor([3 * math.log(0.5), 5 * math.log(0.25)], dtype=torch.float64)
    length = (torch.tensor([3]), torch.tensor([5]))
    found = links.simper(PairLogps(logps[:1], logps[1:], *length))
    torch.testing.assert_close(found, torch.tensor([-0.25], dtype=torch.float64))
    far = torch.tensor([-2000.0]).requires_grad_()
    links.simper(PairLogps(torch.tensor([-1.0]), far, *length)).sum().backward()
    assert far.grad.item() == 0
