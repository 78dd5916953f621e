from __future__ import annotations

import pytest
import torch
from model_cases import architecture, random_model

from alignlab.models.logps import (
    Head,
    head_of,
    token_logps,
    token_logps_entropy,
)

N, H, V = 7, 5, 11


def inputs(dtype=torch.float64, *, bias=True, seed=0):
    torch.manual_seed(seed)
    hidden = torch.randn(N, H, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, H, dtype=dtype, requires_grad=True)
    offset = torch.randn(V, dtype=dtype, requires_grad=True) if bias else None
    return hidden, weight, offset, torch.randint(0, V, (N,))


def plain(hidden, head, targets, temperature=1.0):
    z = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    z = head.scale * z
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    return torch.log_softmax(z / temperature, -1)


@pytest.mark.parametrize("chunk", [1, 3, 7, None])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    ("scale", "softcap", "temperature", "bias"),
    [(1.0, None, 1.0, False), (0.5, 3.0, 0.7, True), (2.0, None, 1.3, True)],
)
def test_equals_log_softmax(chunk, trained, scale, softcap, temperature, bias) -> None:
    hidden, weight, offset, targets = inputs(bias=bias)
    if not trained:
        weight = weight.detach()
        offset = None if offset is None else offset.detach()
    head = Head(weight, offset, scale, softcap)
    seed = torch.randn(N, dtype=torch.float64)
    ours = token_logps(hidden, head, targets, temperature=temperature, chunk=chunk)
    theirs = plain(hidden, head, targets, temperature).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    leaves = [x for x in (hidden, weight, offset) if x is not None and x.requires_grad]
    for mine, other in zip(
        torch.autograd.grad((ours * seed).sum(), leaves),
        torch.autograd.grad((theirs * seed).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("trained", [True, False])
def test_gradcheck(trained) -> None:
    hidden, weight, offset, targets = inputs()
    weight.requires_grad_(trained)
    offset.requires_grad_(trained)

    def run(h, w, b):
        return token_logps(h, Head(w, b, 0.7, 2.5), targets, temperature=0.8, chunk=3)

    assert torch.autograd.gradcheck(run, (hidden, weight, offset))


def test_fp32_is_exact_to_1e_6() -> None:
    hidden, weight, _, targets = inputs(torch.float32, bias=False)
    ours = token_logps(hidden, Head(weight), targets, chunk=2)
    theirs = plain(hidden, Head(weight), targets).gather(1, targets[:, None])[:, 0]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_only_the_bias_or_only_the_states_can_be_trained() -> None:
    hidden, weight, offset, targets = inputs()
    gradient = torch.autograd.grad(
        token_logps(hidden.detach(), Head(weight.detach(), offset), targets, chunk=3).sum(), offset
    )[0]
    p = plain(hidden, Head(weight, offset), targets).exp()
    expected = torch.nn.functional.one_hot(targets, V).sum(0) - p.sum(0)
    torch.testing.assert_close(gradient, expected.detach(), rtol=0, atol=1e-12)


def test_entropy_by_hand_and_without_gradient() -> None:
    # Logits (0, 0, ln 2): probabilities (1/4, 1/4, 1/2), entropy 2·¼·ln 4 + ½·ln 2 = 1.5·ln 2.
    hidden = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [0.0], [0.6931471805599453]], dtype=torch.float64)
    logps, entropy = token_logps_entropy(hidden, Head(weight), torch.tensor([2]))
    assert entropy.item() == pytest.approx(1.5 * 0.6931471805599453, abs=1e-12)
    assert logps.item() == pytest.approx(-0.6931471805599453, abs=1e-12)
    assert logps.requires_grad
    assert not entropy.requires_grad


def test_entropy_follows_the_temperature() -> None:
    hidden, weight, offset, targets = inputs()
    head = Head(weight, offset)
    _, ours = token_logps_entropy(hidden, head, targets, temperature=2.0, chunk=2)
    p = torch.distributions.Categorical(logits=head.logits(hidden) / 2.0)
    torch.testing.assert_close(ours, p.entropy(), rtol=0, atol=1e-12)


def test_bfloat16_states_give_fp32_log_probabilities() -> None:
    hidden, weight, _, targets = inputs(torch.float32, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        ours = token_logps(hidden, Head(weight), targets, chunk=3)
    ours.sum().backward()
    theirs = plain(hidden, Head(weight), targets).gather(1, targets[:, None])[:, 0]
    assert ours.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.1)
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize("trained", [True, False])
def test_rounding_the_logits_costs_little(trained) -> None:
    # Logits of up to ±60 have steps of 0.25 in bfloat16; relative to the target's they have not.
    torch.manual_seed(0)
    hidden = (3 * torch.randn(64, 32)).bfloat16().float().requires_grad_()
    weight = torch.randn(50, 32).bfloat16().float().requires_grad_(trained)
    bias = torch.randn(50).bfloat16().float().requires_grad_(trained)
    head = Head(weight, bias, scale=0.5)
    targets = torch.multinomial(plain(hidden, head, None).exp(), 1)[:, 0]  # likely ones
    with torch.autocast("cpu", torch.bfloat16):
        ours = token_logps(hidden, head, targets, chunk=48)
        rounded = torch.nn.functional.linear(hidden, weight, bias).float()
    theirs = plain(hidden, head, targets).gather(1, targets[:, None])[:, 0]
    naive = (0.5 * rounded).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    error = (ours - theirs).square().mean().sqrt()
    assert 0 < error < 0.25 * (naive - theirs).square().mean().sqrt()
    leaves = [hidden, weight, bias] if trained else [hidden]
    for mine, other in zip(
        torch.autograd.grad(ours.sum(), leaves),
        torch.autograd.grad(theirs.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0.02, atol=0.05)


def test_the_logits_are_never_whole() -> None:
    rows, vocabulary = 64, 5000
    hidden = torch.randn(rows, H, requires_grad=True)
    weight = torch.randn(vocabulary, H, requires_grad=True)
    targets = torch.randint(0, vocabulary, (rows,))
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest.append(out.numel())
            return out

    with Watch():
        token_logps(hidden, Head(weight), targets, chunk=8).sum().backward()
    assert max(largest) <= max(8 * vocabulary, weight.numel())
    assert max(largest) < rows * vocabulary


def test_bad_arguments_are_refused() -> None:
    hidden, weight, _, targets = inputs(bias=False)
    with pytest.raises(ValueError, match="temperature"):
        token_logps(hidden, Head(weight), targets, temperature=0.0)
    with pytest.raises(ValueError, match="7 states but 6 targets"):
        token_logps(hidden, Head(weight), targets[:6])


@pytest.mark.parametrize(
    "model_type", ["llama", "gpt2", "opt", "gemma2", "granite", "cohere", "phi", "phi3", "olmo2"]
)
def test_head_of_gives_the_model_s_own_logits(model_type) -> None:
    extra = {"granite": {"logits_scaling": 4.0}, "gemma2": {"final_logit_softcapping": 1.5}}
    model = random_model(architecture(model_type, **extra.get(model_type, {})))
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        hidden = model.base_model(ids)[0]
        torch.testing.assert_close(
            head_of(model).logits(hidden), model(ids).logits, rtol=1e-5, atol=1e-5
        )


def test_tied_embeddings_get_the_gradient_of_both_uses() -> None:
    model = random_model(architecture("llama", tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.arange(5, 17)[None]
    gradients = []
    for ours in (True, False):
        model.zero_grad()
        if ours:
            hidden = model.base_model(ids)[0][0, :-1]
            token_logps(hidden, head_of(model), ids[0, 1:], chunk=4).sum().backward()
        else:
            logps = model(ids).logits[0, :-1].log_softmax(-1)
            logps.gather(1, ids[0, 1:, None]).sum().backward()
        gradients.append(model.lm_head.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)
