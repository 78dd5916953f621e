"""Terms against forgetting: divergences of two distributions, penalties on changed weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alignlab.objectives import forgetting
from alignlab.objectives.forgetting import forward_kl, jensen_shannon, reverse_kl, weight_change

P = [0.5, 0.25, 0.25]  # the start
Q = [0.25, 0.25, 0.5]  # the policy


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def drawn(count: int = 6, size: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    pair = torch.randn(2, count, size, generator=generator, dtype=torch.float64)
    one, other = torch.log_softmax(2 * pair, -1)
    return one, other


@pytest.mark.conformance("law", "forward KL", "Σ p log(p/q), by hand")
def test_forward_kl_by_hand() -> None:
    # row 1: ½ log 2 + 0 − ¼ log 2 = ¼ log 2; row 2: p = (1, 0, 0)-like is tested by the gradient
    found = forgetting.forward_kl(logs(Q, P), logs(P, P))
    assert torch.allclose(found, torch.tensor([0.25 * math.log(2), 0.0], dtype=torch.float64))
    # p = (½, ¼, ¼), q = (⅛, ⅛, ¾): ½ log 4 + ¼ log 2 + ¼ log ⅓
    value = math.log(4) / 2 + math.log(2) / 4 - math.log(3) / 4
    assert float(forgetting.forward_kl(logs([0.125, 0.125, 0.75]), logs(P))) == pytest.approx(value)


@pytest.mark.conformance("law", "reverse KL", "Σ q log(q/p), by hand")
def test_reverse_kl_by_hand() -> None:
    alone = torch.tensor([0.125, 0.125, 0.75]).log()  # a single distribution, (V,)
    assert forgetting.reverse_kl(alone, torch.tensor(P).log()).ndim == 0
    assert forgetting.forward_kl(alone, torch.tensor(P).log()).ndim == 0
    # q = (⅛, ⅛, ¾), p = (½, ¼, ¼): ⅛ log ¼ + ⅛ log ½ + ¾ log 3
    value = -math.log(4) / 8 - math.log(2) / 8 + 0.75 * math.log(3)
    assert float(forgetting.reverse_kl(logs([0.125, 0.125, 0.75]), logs(P))) == pytest.approx(value)


@pytest.mark.conformance("law", "JS", "β KL(p‖m) + (1−β) KL(q‖m), by hand at β = ½ and ¼")
def test_jensen_shannon_by_hand() -> None:
    # β = ½: m = (⅜, ¼, ⅜). KL(p‖m) = ½ log(4/3) + ¼ log(2/3) = KL(q‖m) by symmetry
    value = math.log(4 / 3) / 2 + math.log(2 / 3) / 4
    assert float(forgetting.jensen_shannon(logs(Q), logs(P), share=0.5)) == pytest.approx(value)
    # β = ¼: m = ¼ p + ¾ q = (5/16, 4/16, 7/16). KL(p‖m) = ½ log(8/5) + ¼ log(4/7);
    # KL(q‖m) = ¼ log(4/5) + ½ log(8/7)
    one = math.log(8 / 5) / 2 + math.log(4 / 7) / 4
    two = math.log(4 / 5) / 4 + math.log(8 / 7) / 2
    found = float(forgetting.jensen_shannon(logs(Q), logs(P), share=0.25))
    assert found == pytest.approx(0.25 * one + 0.75 * two)


@pytest.mark.conformance("law", "EWC, L2-SP", "½ Σ F d², by hand")
def test_weight_change_by_hand() -> None:
    change = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    # ½ (1 + 4 + 9) = 7;  ½ (2·1 + ½·4 + 5·0 + 1·9) = 6.5
    assert float(forgetting.weight_change(change, None)) == 7.0
    fisher = torch.tensor([[2.0, 0.5], [5.0, 1.0]])
    assert float(forgetting.weight_change(change, fisher)) == 6.5
    assert forgetting.weight_change(change.to(torch.bfloat16), None).dtype == torch.float32


@pytest.mark.conformance(
    "law", "distillation", "zero with zero gradient where policy and start agree"
)
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "js"])
def test_divergences_vanish_at_the_start_and_only_there(name: str) -> None:
    functions = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "js": lambda q, p: jensen_shannon(q, p, share=0.3),
    }
    one, other = drawn()
    assert float(functions[name](one, one).abs().max()) < 1e-12
    assert float(functions[name](one, other).min()) > 1e-3
    logits = one.clone().requires_grad_()
    functions[name](torch.log_softmax(logits, -1), one).sum().backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-12


@pytest.mark.conformance("law", "forward KL", "its gradient in the logits is q − p")
def test_the_gradient_of_the_forward_kl() -> None:
    one, other = drawn()
    logits = one.clone().requires_grad_()
    forward_kl(torch.log_softmax(logits, -1), other).sum().backward()
    assert logits.grad is not None
    assert torch.allclose(logits.grad, one.exp() - other.exp())


@pytest.mark.conformance(
    "law", "JS", "at most log 2 at β = ½, symmetric there, and β → 0 is the forward KL"
)
def test_jensen_shannon_lies_between() -> None:
    one, other = drawn()
    half = jensen_shannon(one, other, share=0.5)
    assert torch.allclose(half, jensen_shannon(other, one, share=0.5))
    assert float(half.max()) < math.log(2)
    far = jensen_shannon(logs([1 - 1e-9, 1e-9]), logs([1e-9, 1 - 1e-9]), share=0.5)
    assert float(far) == pytest.approx(math.log(2), abs=1e-6)
    small = jensen_shannon(one, other, share=1e-6) / 1e-6
    assert torch.allclose(small, forward_kl(one, other), rtol=1e-3)
    large = jensen_shannon(one, other, share=1 - 1e-6) / 1e-6
    assert torch.allclose(large, reverse_kl(one, other), rtol=1e-3)


@pytest.mark.conformance("oracle", "JS", "equal to the loss of TRL's GKDTrainer")
def test_against_the_loss_of_gkd() -> None:
    trl = pytest.importorskip("trl.experimental.gkd", reason="TRL keeps GKD elsewhere")
    one, other = drawn()
    for share in (0.1, 0.5, 0.9):
        theirs = trl.GKDTrainer.generalized_jsd_loss(
            one[None].float(), other[None].float(), beta=share, reduction="sum"
        )
        ours = jensen_shannon(one, other, share=share).sum()
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.conformance(
    "law", "EWC, L2-SP", "its gradient is F d: what is far is pulled back most"
)
def test_the_gradient_of_the_penalty() -> None:
    change = torch.randn(4, 3, requires_grad=True)
    fisher = torch.rand(4, 3)
    weight_change(change, fisher).backward()
    assert change.grad is not None
    assert torch.allclose(change.grad, fisher * change.detach())
