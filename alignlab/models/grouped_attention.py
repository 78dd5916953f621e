"""Attention over the flat batch: every completion sees its own prompt and itself, no sibling.

Each block of the batch's `AttentionPlan` is one call of ``scaled_dot_product_attention``. Only this
operation sees padding: embeddings, linear layers, norms and the head work on the T flat tokens. The
plan travels to every layer as the forward keyword `PLAN`, so that recomputation under gradient
checkpointing sees the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from alignlab.models.attention_plan import AttentionPlan
from alignlab.models.flex import FlexPlan, flex_attend

NAME = "alignlab_grouped"
PLAN = "alignlab_plan"
LEAD = "alignlab_lead"  # keys and values before those of the sequence, (1, heads, v, dim) per layer
KEEP = "alignlab_keep"  # where the keys and values of every layer are put, without gradient

Lead = Sequence[tuple[Tensor, Tensor]] | Mapping[int, tuple[Tensor, Tensor]]  # by layer


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
    plan: AttentionPlan | FlexPlan | None = kwargs.pop(PLAN, None)
    lead: Lead | None = kwargs.pop(LEAD, None)
    keep: MutableMapping[int, tuple[Tensor, Tensor]] | None = kwargs.pop(KEEP, None)
    if plan is None:
        if is_placeholder(attention_mask) and query.shape[2] > 1:
            raise RuntimeError("The layout plan was lost on the way to the attention function.")
        if softcap is not None:
            out = _attend(query, key, value, attention_mask, scaling, dropout, softcap)
            return out.transpose(1, 2), None
        own_heads = query.shape[1] == key.shape[1]
        if query.shape[2] == 1 and not (own_heads and attention_mask is None):
            return _one_query(query, key, value, attention_mask, scaling), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    _check(plan, query, kwargs)
    if keep is not None:
        keep[int(module.layer_idx)] = key.detach(), value.detach()  # type: ignore[arg-type]
    if lead is not None:
        key, value = (
            torch.cat([own.to(x.dtype), x], 2)
            for own, x in zip(lead[int(module.layer_idx)], (key, value), strict=True)  # type: ignore[arg-type]
        )
    if isinstance(plan, FlexPlan):
        return flex_attend(query, key, value, plan, scaling, dropout, softcap), None
    query = _gather(query[0].transpose(0, 1), plan.query_index)
    key = _gather(key[0].transpose(0, 1), plan.key_index)
    value = _gather(value[0].transpose(0, 1), plan.key_index)
    outputs: list[Tensor] = []
    for block, q, k, v in zip(plan.blocks, *_split(plan, query, key, value), strict=True):
        out = _attend(q, k, v, block.mask, scaling, dropout, softcap)  # (rows, heads, queries, d)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _gather(joined, plan.output_index).unsqueeze(0), None


def _one_query(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """One new token per row: the query heads that share a key head are the queries of one call.

    Repeating the keys for every query head instead, as ``sdpa`` does with a mask, copies the whole
    memory at every token. ``mask`` is ``(rows, 1, 1, keys)``, booleans or what is added to the
    scores; returns ``(rows, 1, heads, dim)``.
    """
    rows, heads, _, size = query.shape
    if mask is None:  # else a few queries over many keys would be taken for the end of a sequence
        mask = torch.zeros(1, 1, 1, key.shape[2], device=query.device)
    folded = query.reshape(rows, key.shape[1], -1, size)
    return _attend(folded, key, value, mask, scaling, 0.0, None).reshape(rows, 1, heads, size)


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
    if softcap is not None or _slow_in_reduced(value):
        return _products(query, key, value, mask, scaling, dropout, softcap)
    dtype = value.dtype  # rotary embeddings may have widened query and key
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)  # as CUDA's kernels demand
    grouped = query.shape[1] != key.shape[1]
    if grouped and not _takes_grouped_heads(query.device.type, mask):
        key, value = (_repeat_heads(x, query.shape[1]) for x in (key, value))
        grouped = False
    with torch.autocast(query.device.type, enabled=False):
        return scaled_dot_product_attention(
            query.to(dtype), key.to(dtype), value, attn_mask=mask, dropout_p=dropout,
            is_causal=mask is None, scale=scaling, enable_gqa=grouped,
        )  # fmt: skip


def _takes_grouped_heads(device: str, mask: Tensor | None) -> bool:
    """Whether the fused kernel takes fewer key heads than query heads; CUDA's: without a mask."""
    return mask is None or device != "cuda"


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    """``(rows, heads, length, dim)`` with each head as often as query heads share it."""
    return x.repeat_interleave(heads // x.shape[1], 1)


def _products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Attention as two matrix products with the softmax between them in float32 at least.

    The queries of all heads that share a key head are one product. Widening, scale and mask are one
    pass over the scores, and one in the backward pass: attention over 180 tokens takes two thirds
    of the time that it takes with a pass for each.
    """
    rows, heads, length, size = query.shape
    shared, keys = key.shape[1:3]
    wide = torch.promote_types(value.dtype, torch.float32)
    if mask is None:
        mask = torch.ones(length, keys, dtype=torch.bool, device=query.device)
        mask = mask.tril(keys - length)
    if mask.dtype == torch.bool:
        # Not −∞: the padding of a left-padded prompt sees nothing, and NaN would spread from it.
        mask = torch.zeros_like(mask, dtype=wide).masked_fill_(~mask, torch.finfo(wide).min)
    scale = size**-0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        folded = query.to(value.dtype).reshape(rows, shared, -1, size)
        scores = (folded @ key.to(value.dtype).transpose(2, 3)).view(rows, heads, length, keys)
        if softcap is not None:
            scores, scale = softcap * torch.tanh(scores.to(wide) * scale / softcap), 1.0
        weights = torch.add(mask, scores, alpha=scale).softmax(-1)
        weights = weights.to(value.dtype).view(rows, shared, -1, keys)
        weights = torch.nn.functional.dropout(weights, dropout)
        return (weights @ value).view(rows, heads, length, size)


def _slow_in_reduced(value: Tensor) -> bool:
    """Whether the fused kernel loses time here: short rows in a reduced format on a CPU.

    torch 2.13's CPU kernel takes 2.5 to 4.8 times as long in bfloat16 as in float32 for 128 and 40
    keys, forward and backward, and breaks even at 512 (one thread, AVX512-BF16); plain products in
    bfloat16 take about half of the float32 kernel's time up to 384 keys. The forward pass alone is
    no slower fused, but a pass without gradients must not differ: the reference's log-probabilities
    come from one, and the policy's start equal to them.
    """
    reduced = value.dtype in (torch.bfloat16, torch.float16)
    return reduced and value.device.type == "cpu" and value.shape[2] <= 384


def _check(plan: AttentionPlan | FlexPlan, query: Tensor, kwargs: dict[str, Any]) -> None:
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
