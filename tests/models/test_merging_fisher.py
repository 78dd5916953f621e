"""Fisher-weighted averages by hand, and adapters of different ranks."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from alignlab.models.merge import factored
from alignlab.models.merging import linear
from alignlab.models.merging_fisher import fisher


@pytest.mark.conformance(
    "law", "Fisher-weighted merge", "Σ w F θ / Σ w F of every element, by hand; floor: the average"
)
def test_the_weighted_average_by_hand() -> None:
    models = [tensor([4.0, 4.0, 4.0]), tensor([8.0, 8.0, 8.0])]
    # (3·4 + 1·8)/4 = 5; (0·4 + 2·8)/2 = 8; no F: the mean, 6
    known = [tensor([3.0, 0.0, 0.0]), tensor([1.0, 2.0, 0.0])]
    merged = fisher(models, torch.ones(2), known, floor=1e-9)
    assert merged.tolist() == pytest.approx([5.0, 8.0, 6.0], abs=1e-6)
    # with weights 1 : 3 the first is (3·4 + 3·8)/6 = 6
    merged = fisher(models, tensor([1.0, 3.0]), known, floor=1e-9)
    assert merged.tolist() == pytest.approx([6.0, 8.0, 7.0], abs=1e-6)


def test_equal_information_is_the_average_and_a_model_with_itself_is_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(20, 10, generator=generator) for _ in range(2))
    even, weights = torch.full((20, 10), 0.3), tensor([1.0, 2.0])
    found = fisher([one, two], weights, [even, even], floor=1e-9)
    assert torch.allclose(found, linear([one, two], weights / 3), atol=1e-6)
    assert torch.equal(fisher([one, one], weights, [even, even * 7], floor=1e-9), one)


def test_adapters_of_ranks_1_and_2_have_a_mean_of_rank_3() -> None:
    """½ (B₁A₁ + B₂A₂): exact at the sum of the ranks, the leading singular values below."""
    one = (tensor([[1.0, 0.0, 0.0]]), tensor([[4.0], [0.0], [0.0]]))  # 4 e₁e₁ᵀ
    two = (tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
    mean = linear([one[1] @ one[0], two[1] @ two[0]], tensor([0.5, 0.5]))  # diag(2, 1, ½)
    assert mean.tolist() == [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5]]
    down, up = factored(mean, 3, [one, two])
    assert torch.allclose(up @ down, mean, atol=1e-6)
    down, up = factored(mean, 2, [one, two])
    assert torch.allclose(up @ down, torch.diag(tensor([2.0, 1.0, 0.0])), atol=1e-6)
