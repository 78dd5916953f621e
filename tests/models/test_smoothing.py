"""The mean log-probability of the vocabulary beside the target's, against whole log-softmaxes."""

from __future__ import annotations

import math

import pytest
import torch

from alignlab.models.logps import Head
from alignlab.models.smoothing import predict, token_logps_mean

N, H, V = 7, 5, 11


def inputs(dtype=torch.float64, *, bias=True):
    torch.manual_seed(0)
    hidden = torch.randn(N, H, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, H, dtype=dtype, requires_grad=True)
    offset = torch.randn(V, dtype=dtype, requires_grad=True) if bias else None
    return hidden, weight, offset, torch.randint(0, V, (N,))


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_by_hand():
    # Logits (0, 0, ln 2): p = (¼, ¼, ½); log p = (−2 ln 2, −2 ln 2, −ln 2), mean −5/3 ln 2.
    hidden = torch.tensor([[1.0]], dtype=torch.float64)
    weight = torch.tensor([[0.0], [0.0], [math.log(2)]], dtype=torch.float64)
    logps, mean = token_logps_mean(hidden, Head(weight), torch.tensor([2]))
    close(logps, torch.tensor([-math.log(2)], dtype=torch.float64))
    close(mean, torch.tensor([-5 / 3 * math.log(2)], dtype=torch.float64))


@pytest.mark.parametrize("chunk", [None, 1, 3])
@pytest.mark.parametrize(
    ("scale", "softcap", "bias"),
    [(1.0, None, False), (2.0, None, True), (0.5, 3.0, True), (1.0, 2.0, False)],
)
def test_equals_the_log_softmax_in_value_and_gradient(chunk, scale, softcap, bias):
    hidden, weight, offset, targets = inputs(bias=bias)
    head = Head(weight, offset, scale, softcap)
    whole = head.logits(hidden).log_softmax(-1)
    expected = whole[torch.arange(N), targets], whole.mean(-1)
    found = token_logps_mean(hidden, head, targets, chunk=chunk)
    seeds = torch.randn(2, N, dtype=torch.float64)
    leaves = [x for x in (hidden, weight, offset) if x is not None]

    def gradients(parts):
        return torch.autograd.grad(
            sum((p * s).sum() for p, s in zip(parts, seeds, strict=True)), leaves
        )

    for mine, other in zip(
        (*found, *gradients(found)), (*expected, *gradients(expected)), strict=True
    ):
        close(mine, other)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_torch_smooths_alike(softcap):
    hidden, weight, offset, targets = inputs()
    head = Head(weight, offset, 1.0, softcap)
    logps, mean = token_logps_mean(hidden, head, targets, chunk=2)
    expected = torch.nn.functional.cross_entropy(
        head.logits(hidden), targets, label_smoothing=0.3, reduction="none"
    )
    close(-0.7 * logps - 0.3 * mean, expected)


def test_a_head_that_is_asked_for_the_mean():
    hidden, weight, offset, targets = inputs()
    found = predict(hidden, Head(weight, offset), targets, 1.0, False, True)
    for mine, other in zip(
        found, token_logps_mean(hidden, Head(weight, offset), targets), strict=True
    ):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_reduced_precision_gives_fp32_near_the_exact_mean(softcap):
    hidden, weight, offset, targets = inputs(torch.float32)
    head = Head(weight, offset, 1.0, softcap)
    exact = head.logits(hidden).log_softmax(-1).mean(-1)
    with torch.autocast("cpu", torch.bfloat16):
        _, mean = token_logps_mean(hidden, head, targets)
    mean.sum().backward()
    assert mean.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    close(mean, exact, 0.05)
    reduced = Head(weight.detach().bfloat16(), None)  # as frozen weights may be stored
    with torch.autocast("cpu", torch.bfloat16):
        _, mean = token_logps_mean(hidden, reduced, targets)
    close(mean, (hidden @ weight.T).log_softmax(-1).mean(-1), 0.05)


def test_no_targets():
    hidden, weight, offset, _ = inputs()
    for softcap in (None, 3.0):
        head = Head(weight, offset, 1.0, softcap)
        logps, mean = token_logps_mean(hidden[:0], head, torch.zeros(0, dtype=torch.int64))
        assert logps.shape == mean.shape == (0,)
