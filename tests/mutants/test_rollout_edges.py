"""Where mutants of the sampling step hid: float64 sums, exact boundaries, unlike rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignlab.rollout.choose import choose, truncate

WIDE = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))


def sample(logits, uniforms, *, temperature=1.0, top_p=1.0, top_k=0):
    u = torch.as_tensor(uniforms, dtype=torch.float64)
    return choose(logits, u, temperature=temperature, top_p=top_p, top_k=top_k)


def test_temperature_two_is_not_temperature_one():
    # p ∝ (1, 16) at T = 1 and (1, 4) at T = 2: cumulative 1/17 and 1/5
    logits = torch.tensor([1.0, 16.0]).log().expand(2, -1)
    ids, logps = sample(logits, [0.19, 0.21], temperature=2.0)
    assert ids.tolist() == [0, 1]
    torch.testing.assert_close(logps, torch.tensor([0.2, 0.8]).log(), rtol=0, atol=1e-6)


def test_top_p_reaches_the_draw():
    # only the 0.4 and the 0.3 are left at 0.65
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(3, -1)
    assert sample(logits, [0.0, 0.57, 0.99], top_p=0.65)[0].tolist() == [1, 1, 3]


def test_the_draw_is_the_inverse_of_a_float64_distribution_function():
    logits = WIDE[:1, :1000]
    probs = logits.softmax(-1)
    cdf = np.cumsum(probs[0].double().numpy())
    picked = np.arange(10, 1000, 17)
    for shift, wanted in ((1e-11, picked + 1), (-1e-11, picked)):  # just beyond, just before
        u = torch.from_numpy(cdf[picked] / cdf[-1] + shift)
        ids, _ = sample(logits.expand(len(u), -1), u)
        assert ids.tolist() == wanted.tolist()


@pytest.mark.slow
def test_a_wide_vocabulary_is_drawn_from_to_the_rounding_of_its_probabilities():
    probs = WIDE[:1].softmax(-1)  # blocks of tokens are summed in float32
    cdf = np.cumsum(probs[0].double().numpy())
    picked = np.arange(100, 4900)
    picked = picked[(probs[0, picked] > 1e-7).numpy() & (probs[0, picked + 1] > 1e-7).numpy()]
    for shift, wanted in ((3e-8, picked + 1), (-3e-8, picked)):
        u = torch.from_numpy(cdf[picked] / cdf[-1] + shift)
        ids, _ = sample(WIDE[:1].expand(len(u), -1), u)
        assert ids.tolist() == wanted.tolist()


def test_a_truncated_wide_vocabulary_is_drawn_from_as_if_it_had_the_whole_mass():
    best = WIDE[0].topk(4)
    order = best.indices.sort().values
    cdf = WIDE[0, order].softmax(-1).cumsum(-1)
    u = [*(cdf[:3] - 1e-4).tolist(), 0.9999, *(cdf[:3] + 1e-4).tolist()]
    ids, _ = sample(WIDE[:1].expand(7, -1), u, top_k=4)
    assert ids.tolist() == [*order.tolist(), *order[1:].tolist()]


@pytest.mark.parametrize("width", [1024, 1025, 2500, 4096, 5000])
def test_every_token_of_a_vocabulary_has_its_own_interval(width):
    # 512 tokens share the mass, so every sum is exact and token j owns [j/512, (j+1)/512)
    generator = torch.Generator().manual_seed(width)
    chosen = 200 + torch.randperm(width - 400, generator=generator)[:512].sort().values
    logits = torch.full((1, width), float("-inf")).index_fill(1, chosen, 0.0)
    at = torch.arange(512, dtype=torch.float64)
    for inside in (0.0, 0.5, 1 - 2**-20):
        ids, logps = sample(logits.expand(512, -1), (at + inside) / 512)
        assert torch.equal(ids, chosen)
        assert torch.equal(logps, torch.full((512,), 1 / 512).log())
    assert sample(logits, [1 - 2**-53])[0].tolist() == [int(chosen[-1])]


def test_top_p_is_decided_in_float64():
    probs = WIDE[:1].softmax(-1)
    ranked = np.sort(probs[0].double().numpy())[::-1]
    mass = ranked.cumsum()
    for k in range(100, 3000, 171):
        for shift, kept in ((1e-11, k + 2), (-1e-11, k + 1)):
            top_p = float((mass[k] + shift) / mass[-1])
            left = truncate(probs, top_p=top_p, top_k=0)
            assert int((left > 0).sum()) == int((ranked >= ranked[kept - 1]).sum())


def test_top_p_of_one_is_off():
    probs = torch.tensor([[1.0, 1e-30, 0.0]])
    assert torch.equal(truncate(probs, top_p=1.0, top_k=0), probs)


def test_a_mass_reached_exactly_needs_no_further_token():
    left = truncate(torch.tensor([[0.25, 0.5, 0.25]]), top_p=0.5, top_k=0)
    assert left.tolist() == [[0, 0.5, 0]]


def test_rows_of_unlike_width_do_not_share_a_nucleus():
    # one peaked row (nucleus of 1), one flat row (nucleus of about 360 of 400), both ways round
    peaked, flat = torch.full((400,), 1e-4), torch.full((400,), 1 / 400)
    peaked[7] = 1 - 399e-4
    flat = flat + torch.linspace(0, 1e-5, 400)
    for rows in ((peaked, flat), (flat, peaked)):
        probs = torch.stack(rows)
        probs = probs / probs.sum(-1, keepdim=True)
        ranked, order = probs.double().sort(dim=-1, descending=True)
        keep = torch.zeros_like(probs, dtype=torch.bool)
        keep.scatter_(1, order, ranked.cumsum(-1) - ranked < 0.9 * ranked.sum(-1, keepdim=True))
        assert torch.equal(truncate(probs, top_p=0.9, top_k=0) > 0, keep)


def test_top_p_just_below_one_ends_although_rounding_never_reaches_it():
    # Some rows add up to less (by 1e-15) in the order of their ranks than in the order of the
    # vocabulary, so that no nucleus holds 1 − 2⁻⁵³ of the total: all tokens are kept.
    rows = (12 * torch.randn(200, 200, generator=torch.Generator().manual_seed(0))).softmax(-1)
    total = rows.sum(-1, dtype=torch.float64)
    ranked = rows.sort(descending=True).values.cumsum(-1, dtype=torch.float64)[:, -1]
    short = rows[ranked < (1 - 2**-53) * total]
    assert len(short) > 20
    assert torch.equal(truncate(short, top_p=1 - 2**-53, top_k=0), short)


def test_a_share_of_the_mass_not_a_mass():
    # 300 tokens, wider than the first look: twice the weights hold the same share
    probs = torch.linspace(0.9, 1.1, 300)[None] / 300
    kept = truncate(probs, top_p=0.9, top_k=0) > 0
    assert 250 < kept.sum() < 270
    for factor in (2.0, 0.5):
        assert torch.equal(truncate(factor * probs, top_p=0.9, top_k=0) > 0, kept)
