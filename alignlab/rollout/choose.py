"""One sampling step: next token and its log-probability from a row of logits and a uniform."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_LOOK = 64  # candidates that top-p sorts at first; most nuclei are smaller
NARROW = 1024  # tokens up to which one cumulative sum is as fast as two
BLOCK = 128  # divides most vocabularies


def choose(
    logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """Sample one token per row by inverting the cumulative distribution function.

    token = min{i : Σ_{j≤i} q_j > u Σ_j q_j}, with p = softmax(logits / T) and q = p restricted by
    top-k, then by top-p of what top-k left (the order of transformers' ``generate``).
    The log-probability is log p of the token: of the *tempered, untruncated* distribution, which is
    what a policy gradient at temperature T needs. For T = 0 the token is the argmax, the first of
    equals, and p = softmax(logits).

    Args:
        logits: (R, V), any dtype; computed in fp32, cumulative sums in fp64.
        uniforms: (R,) float64 in [0, 1); not read when greedy.
        temperature: T ≥ 0.
        top_p: keep the fewest most probable tokens that hold at least this mass; 1 = off.
        top_k: keep the k most probable tokens; 0 = off. Both keep every token that ties with the
            last one kept.

    Returns:
        Token ids (R,) int64 and log-probabilities (R,) fp32, nats.
    """
    scaled = logits.float()
    if temperature not in (0.0, 1.0):
        scaled = scaled / temperature
    probs = scaled.softmax(-1)
    if temperature == 0:
        ids = scaled.argmax(-1)
    else:
        ids = _invert(truncate(probs, top_p=top_p, top_k=top_k), uniforms.unsqueeze(1))
    return ids, probs.gather(1, ids.unsqueeze(1)).squeeze(1).log()


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (R,) where the cumulative sum of ``weights`` (R, V) passes u times its total.

    A wide vocabulary in two looks, first for a block of tokens and then for the token in it: a
    cumulative sum in fp64 over all of it takes up to a tenth of a decoding step. Blocks are summed
    in fp32, as the probabilities themselves were: it moves an edge by about 1e-8 of the mass.
    """
    width = weights.shape[1]
    if width <= NARROW:
        cdf = weights.cumsum(-1, dtype=torch.float64)
        return _first_above(cdf, uniforms * cdf[:, -1:]).squeeze(1)
    if width % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, BLOCK - width % BLOCK))
    blocks = weights.unflatten(1, (-1, BLOCK))
    mass = blocks.sum(-1)
    cdf = mass.cumsum(-1, dtype=torch.float64)
    target = uniforms * cdf[:, -1:]
    block = _first_above(cdf, target)
    left = (target - (cdf.gather(1, block) - mass.gather(1, block))).clamp_(min=0)
    inner = blocks.take_along_dim(block.unsqueeze(2), 1).squeeze(1)
    token = _first_above(inner.cumsum(-1, dtype=torch.float64), left)
    return (block * BLOCK + token).squeeze(1)


def _first_above(cdf: Tensor, target: Tensor) -> Tensor:
    """First column (R, 1) of ``cdf`` (R, C) above ``target`` (R, 1), the last with mass at most."""
    total = cdf[:, -1:]
    # u × total may round up to the total, and would then point behind the last one with mass.
    target = torch.minimum(target, torch.nextafter(total, -total))
    return torch.searchsorted(cdf, target, right=True).clamp_(max=cdf.shape[1] - 1)


def truncate(probs: Tensor, *, top_p: float, top_k: int) -> Tensor:
    """Set the probabilities (R, V) that top-k and then top-p remove to zero; not renormalised."""
    width = probs.shape[1]
    if 0 < top_k < width:
        threshold = probs.topk(top_k, dim=-1).values[:, -1:]
        probs = probs.where(probs >= threshold, 0.0)
    if top_p < 1:
        probs = probs.where(probs >= _nucleus_edge(probs, top_p), 0.0)
    return probs


def _nucleus_edge(probs: Tensor, top_p: float) -> Tensor:
    """Probability (R, 1) of the last token of the nucleus."""
    # Sorting a whole vocabulary costs more than the rest of the step, so look at the top few first.
    total = probs.sum(-1, keepdim=True, dtype=torch.float64)
    width, look = probs.shape[1], FIRST_LOOK
    while True:
        ranked = probs.topk(min(look, width), dim=-1).values
        mass = ranked.cumsum(-1, dtype=torch.float64)
        if look >= width or bool((mass[:, -1:] >= top_p * total).all()):
            break
        look *= 4
    # The token that crosses top_p belongs to the nucleus.
    last = (mass < top_p * total).sum(-1, keepdim=True).clamp_(max=ranked.shape[1] - 1)
    return ranked.gather(1, last)
