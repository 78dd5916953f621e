"""Attention over the flat batch: every completion sees its own prompt and itself, no sibling.

Each block of the batch's `AttentionPlan` is one call of ``scaled_dot_product_attention``. Only this
operation sees padding: embeddings, linear layers, norms and the head work on the T flat tokens. The
plan travels to every layer as the forward keyword `PLAN`, so that recomputation under gradient
checkpointing sees the same one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from alignlab.models.attention_plan import AttentionPlan

NAME = "alignlab_grouped"
PLAN = "alignlab_plan"


def _gather(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else x.index_select(0, index)


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of the flat batch; without a plan it is transformers' own ``sdpa``.

    Args:
        query: ``(1, heads, T, dim)`` when a plan is given; likewise ``key`` and ``value``, whose
            number of heads may be a divisor of the queries' (grouped-query attention).
        softcap: Gemma 2's ``softcap * tanh(score / softcap)``; computed without the fused kernel.

    Returns:
        ``(1, T, heads, dim)`` and no attention weights.
    """
    plan: AttentionPlan | None = kwargs.pop(PLAN, None)
    if plan is None:
        if is_placeholder(attention_mask) and query.shape[2] > 1:
            raise RuntimeError("The layout plan was lost on the way to the attention function.")
        if softcap is not None:
            out = _attend(query, key, value, attention_mask, scaling, dropout, softcap)
            return out.transpose(1, 2), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    _check(plan, query, kwargs)
    query = _gather(query[0].transpose(0, 1), plan.query_index)
    key = _gather(key[0].transpose(0, 1), plan.key_index)
    value = _gather(value[0].transpose(0, 1), plan.key_index)
    outputs: list[Tensor] = []
    for block, q, k, v in zip(plan.blocks, *_split(plan, query, key, value), strict=True):
        out = _attend(q, k, v, block.mask, scaling, dropout, softcap)  # (rows, heads, queries, d)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _gather(joined, plan.output_index).unsqueeze(0), None


def _split(
    plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor
) -> Iterator[list[Tensor]]:
    """Blocks ``(rows, heads, length, dim)`` of the gathered queries, keys and values."""
    query_sizes = [block.rows * block.queries for block in plan.blocks]
    key_sizes = [block.rows * block.keys for block in plan.blocks]
    for x, sizes in ((query, query_sizes), (key, key_sizes), (value, key_sizes)):
        parts = x.split(sizes)
        yield [
            part.unflatten(0, (block.rows, -1)).transpose(1, 2)
            for part, block in zip(parts, plan.blocks, strict=True)
        ]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    if grouped and (softcap is not None or (mask is not None and query.is_cuda)):
        # CUDA's fused kernels take grouped-query heads without a mask only.
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        grouped = False
    if softcap is None:
        dtype = value.dtype  # rotary embeddings may have widened query and key
        inner = torch.float32 if _slow_in_reduced(value) else dtype
        query, key, value = query.to(inner), key.to(inner), value.to(inner)
        with torch.autocast(query.device.type, enabled=False):
            return scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None,
                scale=scaling, enable_gqa=grouped,
            ).to(dtype)  # fmt: skip
    if mask is None:
        rows, columns = query.shape[2], key.shape[2]
        mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
        mask = mask.tril(columns - rows)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    precision = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=precision)
    weights = torch.nn.functional.dropout(weights.to(value.dtype), dropout, training=dropout > 0)
    return weights @ value


def _slow_in_reduced(value: Tensor) -> bool:
    """Whether a reduced format loses time here: short rows on a CPU.

    torch 2.13's CPU kernel takes 2.5 to 4.8 times as long in bfloat16 as in float32 for 128 and 40
    keys, forward and backward, and breaks even at 512 (one thread, AVX512-BF16). The forward pass
    alone takes as long in either, and a pass without gradients must not differ: the reference's
    log-probabilities come from one, and the policy's start equal to them.
    """
    reduced = value.dtype in (torch.bfloat16, torch.float16)
    return reduced and value.device.type == "cpu" and value.shape[2] <= 384


def _check(plan: AttentionPlan, query: Tensor, kwargs: dict[str, Any]) -> None:
    if query.shape[0] != 1:
        raise NotImplementedError("The flat layout is one sequence; this model passes a batch.")
    window = kwargs.get("sliding_window")
    if window is not None and plan.longest > window:
        raise NotImplementedError(f"A row of {plan.longest} tokens exceeds the window {window}.")
    unknown = [k for k in ("s_aux", "position_bias", "cache") if kwargs.get(k) is not None]
    if unknown:
        raise NotImplementedError(f"The flat layout does not know the attention term {unknown}.")


def placeholder_mask(device: torch.device | str) -> Tensor:
    """Four-dimensional stand-in that keeps transformers from building a (T, T) mask of its own."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def is_placeholder(mask: Tensor | None) -> bool:
    """Whether ``mask`` is `placeholder_mask` (a real 4-D mask has more than one element)."""
    return mask is not None and mask.ndim == 4 and mask.numel() == 1


def register() -> str:
    """Make the function known to transformers (once) and return its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, grouped_attention)
    # Calls without a plan (padded rows, cached decoding) behave exactly as "sdpa", masks included.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
