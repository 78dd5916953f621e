"""One sampling step: next token and its log-probability from a row of logits and a uniform."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_LOOK = 64  # candidates that top-p sorts at first; most nuclei are smaller


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
        logits: (R, V), any dtype; computed in fp32, the cumulative sum in fp64.
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
        kept = truncate(probs, top_p=top_p, top_k=top_k)
        cdf = kept.cumsum(-1, dtype=torch.float64)
        total = cdf[:, -1:]
        # u × total may round up to the total, and would then point behind the last token with mass.
        target = torch.minimum(uniforms.unsqueeze(1) * total, torch.nextafter(total, -total))
        ids = torch.searchsorted(cdf, target, right=True).squeeze(1).clamp_(max=cdf.shape[1] - 1)
    return ids, probs.gather(1, ids.unsqueeze(1)).squeeze(1).log()


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
