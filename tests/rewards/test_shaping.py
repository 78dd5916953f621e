from __future__ import annotations

import pytest
import torch

from alignlab.rewards.shaping import clip, missing_eos, token_rewards

SCORES = torch.tensor([0.5, -3.0, 2.0])


def test_missing_eos_replaces_or_subtracts():
    finished = torch.tensor([True, False, False])
    assert missing_eos(SCORES, finished, replace=-1.0).tolist() == [0.5, -1.0, -1.0]
    assert missing_eos(SCORES, finished, penalty=0.25).tolist() == [0.5, -3.25, 1.75]
    assert missing_eos(SCORES, finished).tolist() == SCORES.tolist()


def test_clip():
    assert clip(SCORES, 1.0).tolist() == [0.5, -1.0, 1.0]


def test_token_rewards_by_hand():
    # Two completions of 2 and 3 tokens, β = 0.1; differences old − ref: 1, −2 | 0.5, 0, 3.
    old = torch.tensor([-1.0, -4.0, -0.5, -2.0, -1.0])
    ref = torch.tensor([-2.0, -2.0, -1.0, -2.0, -4.0])
    lengths = torch.tensor([2, 3])
    got = token_rewards(torch.tensor([5.0, -1.0]), old, ref, 0.1, lengths)
    want = torch.tensor([-0.1, 0.2 + 5.0, -0.05, 0.0, -0.3 - 1.0])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_token_rewards_sum_to_the_penalised_score():
    torch.manual_seed(0)
    lengths = torch.tensor([3, 1, 4])
    old, ref, scores = torch.randn(8), torch.randn(8), torch.randn(3)
    got = token_rewards(scores, old, ref, 0.3, lengths).split([3, 1, 4])
    kl = [d.sum() for d in (old - ref).split([3, 1, 4])]
    for part, score, value in zip(got, scores, kl, strict=True):
        torch.testing.assert_close(part.sum(), score - 0.3 * value)


def test_token_rewards_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        token_rewards(torch.ones(2), torch.ones(4), torch.ones(4), 0.1, torch.tensor([2, 3]))
    with pytest.raises(ValueError, match="without tokens"):
        token_rewards(torch.ones(2), torch.ones(4), torch.ones(4), 0.1, torch.tensor([4, 0]))
