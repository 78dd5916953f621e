"""Truncated importance weights by hand."""

from __future__ import annotations

import math

import pytest
import torch

from alignlab.errors import TrainingError
from alignlab.rollout.correction import truncated_importance
from alignlab.rollout.vllm import require_close

# Two completions of three and one tokens; log π − log μ = (0.1, −0.2, 1.0) and (0.5)
TRAINER = [torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5])]
SAMPLER = [torch.tensor([-1.1, -1.8, -1.5]), torch.tensor([-2.0])]


def test_weights_per_token_are_cut_at_the_cap() -> None:
    found = truncated_importance(TRAINER, SAMPLER, cap=2.0)
    expected = [[math.exp(0.1), math.exp(-0.2), 2.0], [math.exp(0.5)]]  # e^1 = 2.72 is above 2
    for weights, wanted in zip(found.weights, expected, strict=True):
        assert weights.tolist() == pytest.approx(wanted)
    assert found.gap_mean == pytest.approx((0.1 + 0.2 + 1.0 + 0.5) / 4)
    assert found.gap_max == pytest.approx(1.0)
    assert found.capped == pytest.approx(1 / 4)


def test_a_weight_of_the_whole_completion() -> None:
    found = truncated_importance(TRAINER, SAMPLER, cap=2.0, whole=True)
    # 0.1 − 0.2 + 1.0 = 0.9: e^0.9 = 2.46 is cut, on all three tokens; e^0.5 = 1.65 is not
    assert found.weights[0].tolist() == pytest.approx([2.0] * 3)
    assert found.weights[1].tolist() == pytest.approx([math.exp(0.5)])
    assert found.capped == pytest.approx(3 / 4)
    assert found.gap_max == pytest.approx(1.0)  # gaps are of tokens all the same


def test_the_same_policy_has_weights_of_one() -> None:
    found = truncated_importance(TRAINER, TRAINER, cap=1.0)
    assert [w.tolist() for w in found.weights] == [[1.0, 1.0, 1.0], [1.0]]
    assert (found.gap_mean, found.gap_max, found.capped) == (0.0, 0.0, 0.0)
    nothing = truncated_importance([], [], cap=2.0)
    assert (nothing.weights, nothing.gap_mean) == ([], 0.0)


def test_untruncated_weights_turn_a_mean_under_the_sampler_into_one_under_the_trainer() -> None:
    # E_π[f] = E_μ[π/μ f] over three outcomes: 0.2·1 + 0.5·2 + 0.3·3 = 2.1
    pi, mu = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.4, 0.35, 0.25])
    values = torch.tensor([1.0, 2.0, 3.0])
    found = truncated_importance([pi.log()], [mu.log()], cap=10.0)
    assert float((mu * found.weights[0] * values).sum()) == pytest.approx(2.1)


def test_beyond_rounding_it_stops() -> None:
    require_close(0.1, 0.1)
    for gap in (0.11, float("nan")):
        with pytest.raises(TrainingError, match="the weights did not arrive"):
            require_close(gap, 0.1)
