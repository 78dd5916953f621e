"""The mean log-probability of the vocabulary beside the target's, for label smoothing.

``mean_v log p_v = mean_v z_v − logsumexp(z)``, and the log-sum-exp of the logits ``z`` is there
already: it is ``z_y − log p_y``. So what is left is a mean of logits, and without a soft cap that
is the logit of the head's mean row: one product of N rows instead of N·V logits. `predict` chooses
among this and what `logps` gives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignlab.models.logps import CHUNK_ELEMENTS, Head, token_logps, token_logps_entropy


def token_logps_mean(
    hidden: Tensor, head: Head, target_ids: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """`token_logps`, and the mean of ``log softmax(logits(h_n))`` over the vocabulary; both (N,).

    Both are differentiable in states, head weight and bias. Under reduced precision the products
    here are fp32.

    Args:
        hidden: ``(N, H)`` predictor states.
        target_ids: ``(N,)`` tokens to predict.
        chunk: rows of logits held at a time; None chooses by vocabulary size.
    """
    logps = token_logps(hidden, head, target_ids, chunk=chunk)
    with torch.autocast(hidden.device.type, enabled=False):
        states = hidden.to(logps.dtype)
        if head.softcap is None:
            gap = _linear_gap(states, head, target_ids)
        else:
            rows = chunk or max(16, CHUNK_ELEMENTS // head.weight.shape[0])
            parts = zip(states.split(rows), target_ids.split(rows), strict=True)
            gaps = [checkpoint(_capped_gap, *part, head, use_reentrant=False) for part in parts]
            gap = torch.cat(gaps) if gaps else logps
    return logps, logps + gap


def predict(
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    temperature: float,
    entropy: bool,
    mean: bool = False,
) -> tuple[Tensor, ...]:
    """`token_logps`, and the entropies or the ``mean`` over the vocabulary if asked for."""
    if mean:  # at a temperature of 1
        return token_logps_mean(hidden, head, target_ids)
    if entropy:
        return token_logps_entropy(hidden, head, target_ids, temperature=temperature)
    return (token_logps(hidden, head, target_ids, temperature=temperature),)


def _linear_gap(states: Tensor, head: Head, target_ids: Tensor) -> Tensor:
    """``mean_v z_v − z_y`` (N,) where logits are linear in the states."""
    mean = head.weight.mean(0, dtype=states.dtype)
    gap = states @ mean - (states * head.weight.index_select(0, target_ids)).sum(1)
    if head.bias is not None:
        gap = gap + head.bias.mean() - head.bias[target_ids]
    return head.scale * gap


def _capped_gap(states: Tensor, target_ids: Tensor, head: Head) -> Tensor:
    """The same of capped logits, which are made again in the backward pass."""
    z = head.logits(states)
    return z.mean(1) - z.gather(1, target_ids[:, None]).squeeze(1)
