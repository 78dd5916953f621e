from __future__ import annotations

import math

import pytest
import torch

from alignlab.rollout.choose import choose, truncate

# p = (0.1, 0.4, 0.2, 0.3), cumulative 0.1, 0.5, 0.7, 1.0
P = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


def draw(probs, uniforms, *, temperature=1.0, top_p=1.0, top_k=0):
    logits = probs.log().expand(len(uniforms), -1)
    u = torch.tensor(uniforms, dtype=torch.float64)
    ids, logps = choose(logits, u, temperature=temperature, top_p=top_p, top_k=top_k)
    return ids.tolist(), logps


@pytest.mark.conformance("closed form", "sampling", "inverse CDF at every boundary, by hand")
def test_inverse_cdf_at_every_boundary():
    uniforms = [0.0, 0.099, 0.101, 0.499, 0.501, 0.699, 0.701, 0.999999]
    ids, logps = draw(P, uniforms)
    assert ids == [0, 0, 1, 1, 2, 2, 3, 3]
    torch.testing.assert_close(logps, P[0, ids].log(), rtol=0, atol=1e-6)


def test_the_largest_uniform_gives_a_token_that_has_mass():
    # After top_k=1 only token 1 has mass; 1 − 2⁻⁵³ times the total rounds up to the total itself.
    ids, _ = draw(P, [1 - 2**-53, 0.0], top_k=1)
    assert ids == [1, 1]


@pytest.mark.conformance("closed form", "sampling", "temperature, by hand")
def test_temperature_by_hand():
    # T = 1/2 squares p: (0.01, 0.16, 0.04, 0.09) / 0.30 = (1, 16, 4, 9) / 30,
    # cumulative (1, 17, 21, 30) / 30.
    ids, logps = draw(P, [0.032, 0.035, 0.565, 0.568, 0.699, 0.701], temperature=0.5)
    assert ids == [0, 1, 1, 2, 2, 3]
    want = torch.tensor([1, 16, 16, 4, 4, 9]) / 30
    torch.testing.assert_close(logps, want.log(), rtol=0, atol=1e-6)


@pytest.mark.conformance(
    "closed form", "sampling", "top-k, by hand; the log-prob kept is that of the whole distribution"
)
def test_top_k_by_hand_keeps_the_log_probability_of_the_whole_distribution():
    # top 2 = tokens 1 (0.4) and 3 (0.3): sampled with 4/7 and 3/7, 4/7 = 0.5714.
    ids, logps = draw(P, [0.0, 0.571, 0.572, 0.999], top_k=2)
    assert ids == [1, 1, 3, 3]
    torch.testing.assert_close(logps.exp(), torch.tensor([0.4, 0.4, 0.3, 0.3]))


@pytest.mark.conformance(
    "closed form", "sampling", "top-p includes the token that crosses, by hand"
)
def test_top_p_by_hand_includes_the_token_that_crosses():
    # Sorted 0.4, 0.3, 0.2, 0.1: 0.4 < 0.65 ≤ 0.7, so {1, 3}. At 0.75, 0.2 crosses: {1, 2, 3}.
    for top_p, kept in ((0.65, {1, 3}), (0.75, {1, 2, 3}), (0.01, {1})):
        assert set(truncate(P, top_p=top_p, top_k=0)[0].nonzero().flatten().tolist()) == kept


def test_top_p_counts_the_mass_that_top_k_left():
    # top_k=2 leaves 0.7; 0.55 of that is 0.385 < 0.4: token 1 alone; of the whole, {1, 3}.
    kept = truncate(P, top_p=0.55, top_k=2) > 0
    assert kept.tolist() == [[False, True, False, False]]


def test_ties_with_the_last_token_kept_are_kept():
    tied = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    assert (truncate(tied, top_p=1.0, top_k=2) > 0).sum() == 4
    assert (truncate(tied, top_p=0.5, top_k=0) > 0).sum() == 4


@pytest.mark.conformance("equivalence", "sampling", "top-p by partial sorting equals a full sort")
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_on_a_wide_flat_vocabulary_equals_a_full_sort(top_p):
    # 700 tokens, nearly flat: the nucleus is wider than the first look of 64.
    probs = torch.softmax(torch.randn(5, 700, generator=torch.Generator().manual_seed(0)) * 0.3, -1)
    ranked, index = probs.sort(dim=-1, descending=True)
    before = ranked.double().cumsum(-1) - ranked
    keep = torch.zeros_like(probs, dtype=torch.bool).scatter(1, index, before < top_p)
    assert torch.equal(truncate(probs, top_p=top_p, top_k=0) > 0, keep)


def test_greedy_takes_the_first_maximum_and_reports_temperature_one():
    logits = torch.tensor([[0.0, 2.0, 2.0, -1.0]])
    ids, logps = choose(logits, torch.tensor([0.9]), temperature=0.0, top_p=1.0, top_k=0)
    assert ids.tolist() == [1]
    assert logps.item() == pytest.approx(2 - math.log(1 + 2 * math.e**2 + math.exp(-1)), abs=1e-6)


def test_low_precision_logits_are_computed_in_fp32():
    logits = torch.tensor([[0.5, 1.5, -2.0]], dtype=torch.bfloat16)
    _, logps = choose(logits, torch.tensor([0.3]), temperature=0.7, top_p=1.0, top_k=0)
    assert logps.dtype == torch.float32
