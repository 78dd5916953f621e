"""Attention over the flat batch: every completion sees its own prompt and itself, no sibling.

A group ``prompt c₁ c₂ … c_k`` becomes k *rows* of plain causal attention:

* row kind 1, ``prompt + c₁``: contiguous tokens, queries = keys, causal;
* row kind 2, ``prompt + c_i`` for i ≥ 2: only the tokens of ``c_i`` are queries, the keys are the
  prompt's (computed once, in row 1) and its own.

Rows of like size share one padded block and one call of ``scaled_dot_product_attention``. Only this
operation sees padding: embeddings, linear layers, norms and the head work on the T flat tokens. The
layout is computed once per batch on the host (`AttentionPlan`) and travels to every layer as the
forward keyword `PLAN`, so that recomputation under gradient checkpointing sees the same one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from alignlab.tensors import GroupSpan

NAME = "alignlab_grouped"
PLAN = "alignlab_plan"

# A row joins a block while the padded query-key pairs of the block stay below this share of the
# useful ones, or below the fixed number that costs about as much as another call (~0.1 ms).
WASTE_SHARE = 0.25
WASTE_PAIRS = 8192


@dataclass(frozen=True)
class _Row:
    """One row: half-open token ranges of what comes before the queries, and of the queries."""

    prefix: tuple[int, int]  # keys that are not queries (the prompt in kind 2, empty in kind 1)
    own: tuple[int, int]  # queries, and keys too

    @property
    def queries(self) -> int:
        return self.own[1] - self.own[0]

    @property
    def prefix_length(self) -> int:
        return self.prefix[1] - self.prefix[0]

    @property
    def keys(self) -> int:
        return self.prefix_length + self.queries

    @property
    def causal(self) -> bool:
        return self.prefix_length == 0


@dataclass(frozen=True)
class Block:
    """A padded block of rows of like size: one attention call."""

    rows: int
    queries: int  # padded query length
    keys: int  # padded key length
    mask: Tensor | None  # (rows or 1, 1, queries, keys) bool, None = causal


@dataclass(frozen=True)
class AttentionPlan:
    """Where the attention of one flat batch gathers its queries and keys, and puts its output."""

    blocks: tuple[Block, ...]
    query_index: Tensor | None  # (Σ rows·queries,) index into T; None = the flat order itself
    key_index: Tensor | None  # (Σ rows·keys,) index into T; None = the flat order itself
    output_index: Tensor | None  # (T,) slot of each token among the padded queries; None = same
    longest: int  # tokens of the longest row, what a sliding window is compared with


def attention_plan(spans: tuple[GroupSpan, ...], device: torch.device | str) -> AttentionPlan:
    """Plan of a batch's layout on ``device``; kept, so every pass over the batch shares it."""
    return _attention_plan(spans, str(device))


@lru_cache(maxsize=32)
def _attention_plan(spans: tuple[GroupSpan, ...], device: str) -> AttentionPlan:
    rows = list(_rows(spans))
    tokens = max(row.own[1] for row in rows)
    output_index = np.empty(tokens, dtype=np.int64)
    blocks: list[Block] = []
    query_parts: list[np.ndarray] = []
    key_parts: list[np.ndarray] = []
    slots = 0
    for members in _bins(rows):
        block = _block(members, device)
        query_index, key_index, real = _indices(members, block.queries, block.keys)
        output_index[query_index[real]] = slots + np.flatnonzero(real)
        slots += len(query_index)
        blocks.append(block)
        query_parts.append(query_index)
        key_parts.append(key_index)
    identity = np.arange(tokens)

    def on_device(index: np.ndarray) -> Tensor | None:
        return None if np.array_equal(index, identity) else torch.from_numpy(index).to(device)

    return AttentionPlan(
        blocks=tuple(blocks),
        query_index=on_device(np.concatenate(query_parts)),
        key_index=on_device(np.concatenate(key_parts)),
        output_index=on_device(output_index),
        longest=max(row.keys for row in rows),
    )


def _rows(spans: tuple[GroupSpan, ...]) -> Iterator[_Row]:
    for span in spans:
        first = span.completions[0][1] if span.completions else span.prompt[1]
        yield _Row(prefix=(span.prompt[0], span.prompt[0]), own=(span.prompt[0], first))
        for completion in span.completions[1:]:
            yield _Row(prefix=span.prompt, own=completion)


def _bins(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Rows of one kind and like size, longest first; see `WASTE_SHARE` for what "like" means."""
    for causal in (True, False):
        kind = [row for row in rows if row.causal == causal]
        kind.sort(key=lambda row: (-row.keys, -row.queries))
        members: list[_Row] = []
        useful = widest = 0
        for row in kind:
            area = row.queries * row.keys
            queries = max(widest, row.queries)
            padded = (len(members) + 1) * queries * (members or [row])[0].keys
            if members and padded - useful - area > max(
                WASTE_SHARE * (useful + area), WASTE_PAIRS
            ):
                yield members
                members, useful, queries = [], 0, row.queries
            members.append(row)
            useful, widest = useful + area, queries
        if members:
            yield members


def _block(rows: list[_Row], device: str) -> Block:
    queries, keys = max(row.queries for row in rows), max(row.keys for row in rows)
    if rows[0].causal:
        return Block(len(rows), queries, keys, mask=None)
    prefix = sorted({row.prefix_length for row in rows})
    lengths = prefix if len(prefix) == 1 else [row.prefix_length for row in rows]
    visible = np.array(lengths)[:, None, None] + np.arange(queries)[None, :, None]
    mask = np.arange(keys)[None, None, :] <= visible  # query i sees its prefix and own[:i + 1]
    return Block(len(rows), queries, keys, mask=torch.from_numpy(mask[:, None]).to(device))


def _indices(
    rows: list[_Row], queries: int, keys: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token of every padded query and key slot of a block, and which query slots are real.

    Padding repeats the last token of its row: a real query never sees it (it lies in the future),
    and its own output is never read, so it adds neither value nor gradient.
    """
    start = np.array([row.own[0] for row in rows])[:, None]
    length = np.array([row.queries for row in rows])[:, None]
    prefix_start = np.array([row.prefix[0] for row in rows])[:, None]
    prefix_length = np.array([row.prefix_length for row in rows])[:, None]
    column = np.arange(queries)[None, :]
    query_index = start + np.minimum(column, length - 1)
    own = np.arange(keys)[None, :] - prefix_length
    key_index = np.where(own < 0, prefix_start + own + prefix_length,
                         start + np.minimum(own, length - 1))  # fmt: skip
    return query_index.ravel(), key_index.ravel(), (column < length).ravel()


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
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None,
            scale=scaling, enable_gqa=grouped,
        )  # fmt: skip
    if mask is None:
        rows, columns = query.shape[2], key.shape[2]
        mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
        mask = mask.tril(columns - rows)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32)
    weights = torch.nn.functional.dropout(weights.to(value.dtype), dropout, training=dropout > 0)
    return weights @ value


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
