"""The layout of attention over a flat batch, worked out once per batch on the host.

A group ``prompt c₁ c₂ … c_k`` becomes k *rows* of plain causal attention:

* row kind 1, ``prompt + c₁``: contiguous tokens, queries = keys, causal;
* row kind 2, ``prompt + c_i`` for i ≥ 2: only the tokens of ``c_i`` are queries, the keys are the
  prompt's (computed once, in row 1) and its own.

Rows of like size share one padded block and one attention call. What stands before every prompt
(`Lead`: virtual tokens, or a prefix of keys and values) is there once, and all rows see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from alignlab.tensors import GroupSpan

# A row joins a block while the padded query-key pairs of the block stay below this share of the
# useful ones, or below the fixed number that costs about as much as another call (~0.1 ms).
WASTE_SHARE = 0.25
WASTE_PAIRS = 8192


@dataclass(frozen=True)
class Lead:
    """What every row of a flat batch sees before its prompt: ``length`` keys.

    As ``tokens`` they are the first of the flat sequence, computed like others and once for all
    rows; otherwise they are keys and values that are put before those of the sequence.
    """

    length: int = 0
    tokens: bool = False


NO_LEAD = Lead()


@dataclass(frozen=True)
class _Row:
    """One row: half-open token ranges of what comes before the queries, and of the queries.

    Tokens are counted from the first prompt's first one; what leads is before it, at −length … −1.
    """

    prefix: tuple[int, int]  # keys that are not queries (the prompt in kind 2, empty in kind 1)
    own: tuple[int, int]  # queries, and keys too
    lead: int = 0  # keys before all of them

    @property
    def queries(self) -> int:
        return self.own[1] - self.own[0]

    @property
    def prefix_length(self) -> int:
        return self.lead + self.prefix[1] - self.prefix[0]

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
    mask: Tensor | None  # (rows or 1, 1, queries or 1, keys) bool, None = causal


@dataclass(frozen=True)
class AttentionPlan:
    """Where the attention of one flat batch gathers its queries and keys, and puts its output."""

    blocks: tuple[Block, ...]
    query_index: Tensor | None  # (Σ rows·queries,) index into T; None = the flat order itself
    key_index: Tensor | None  # (Σ rows·keys,) index into lead and T; None = the flat order itself
    output_index: Tensor | None  # (T,) slot of each token among the padded queries; None = same
    longest: int  # tokens of the longest row, what a sliding window is compared with


def attention_plan(
    spans: tuple[GroupSpan, ...], device: torch.device | str, lead: Lead = NO_LEAD
) -> AttentionPlan:
    """Plan of a batch's layout on ``device``; kept, so every pass over the batch shares it."""
    return _attention_plan(spans, str(device), lead)


@lru_cache(maxsize=32)
def _attention_plan(spans: tuple[GroupSpan, ...], device: str, lead: Lead) -> AttentionPlan:
    rows = list(_rows(spans, lead.length))
    ahead = lead.length if lead.tokens else 0  # queries before the first prompt
    if ahead:
        rows.append(_Row(prefix=(-ahead, -ahead), own=(-ahead, 0)))
    return _planned(rows, lead.length, ahead, device, _block)


def plan_behind(
    prompts: tuple[GroupSpan, ...], tokens: int, spans: tuple[GroupSpan, ...], device: str
) -> AttentionPlan:
    """Plan of the completions of ``spans`` alone, behind the prompts of another flat batch.

    The sequence is ``c₁₁ c₁₂ … c₂₁ …``; its lead are the keys of all ``tokens`` of the other batch,
    in which the same prompts lie at ``prompts``.
    """
    rows: list[_Row] = []
    end = 0
    for other, span in zip(prompts, spans, strict=True):
        for completion in span.completions:
            start, end = end, end + completion[1] - completion[0]
            rows.append(_Row((other.prompt[0] - tokens, other.prompt[1] - tokens), (start, end)))
    return _planned(rows, tokens, 0, device, _block)


@lru_cache(maxsize=32)
def own_rows(lengths: tuple[int, ...], device: str) -> AttentionPlan:
    """Plan of rows that stand one after another, each token seeing all of its own row (encoders).

    Rows of like length share one padded block, as those of `attention_plan` do.
    """
    ends = np.cumsum(lengths).tolist()
    rows = [_Row((end, end), (end - n, end)) for n, end in zip(lengths, ends, strict=True)]
    return _planned(rows, 0, 0, device, _two_sided)


def _planned(
    rows: list[_Row],
    lead: int,
    ahead: int,
    device: str,
    block_of: Callable[[list[_Row], str], Block],
) -> AttentionPlan:
    """Blocks of like rows behind ``lead`` keys, of which ``ahead`` are tokens of the sequence."""
    tokens = ahead + max(row.own[1] for row in rows)
    output_index = np.empty(tokens, dtype=np.int64)
    blocks: list[Block] = []
    query_parts: list[np.ndarray] = []
    key_parts: list[np.ndarray] = []
    slots = 0
    for members in _bins(rows):
        block = block_of(members, device)
        query_index, key_index, real = _indices(members, block.queries, block.keys)
        query_index += ahead
        output_index[query_index[real]] = slots + np.flatnonzero(real)
        slots += len(query_index)
        blocks.append(block)
        query_parts.append(query_index)
        key_parts.append(key_index + lead)
    identity = np.arange(tokens)

    def on_device(index: np.ndarray) -> Tensor | None:
        # Padding at the very end leaves the order as it is but not the number of slots.
        same = slots == tokens and np.array_equal(index, identity)
        return None if same else torch.from_numpy(index).to(device)

    return AttentionPlan(
        blocks=tuple(blocks),
        query_index=on_device(np.concatenate(query_parts)),
        key_index=on_device(np.concatenate(key_parts)),
        output_index=on_device(output_index),
        longest=max(row.keys for row in rows),
    )


def _rows(spans: tuple[GroupSpan, ...], lead: int) -> Iterator[_Row]:
    for span in spans:
        first = span.completions[0][1] if span.completions else span.prompt[1]
        yield _Row((span.prompt[0], span.prompt[0]), (span.prompt[0], first), lead)
        for completion in span.completions[1:]:
            yield _Row(span.prompt, completion, lead)


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
            if members and padded - useful - area > max(WASTE_SHARE * (useful + area), WASTE_PAIRS):
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


def _two_sided(rows: list[_Row], device: str) -> Block:
    """A block in which every query sees all keys of its row."""
    lengths = np.array([row.queries for row in rows])
    longest = int(lengths.max())
    visible = np.arange(longest) < lengths[:, None, None, None]
    return Block(len(rows), longest, longest, mask=torch.from_numpy(visible).to(device))


def _indices(
    rows: list[_Row], queries: int, keys: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token of every padded query and key slot of a block, and which query slots are real.

    All rows of a block have the same lead.

    Padding repeats the last token of its row: a real query never sees it (it lies in the future),
    and its own output is never read, so it adds neither value nor gradient.
    """
    start = np.array([row.own[0] for row in rows])[:, None]
    length = np.array([row.queries for row in rows])[:, None]
    prefix_start = np.array([row.prefix[0] for row in rows])[:, None]
    prefix_length = np.array([row.prefix_length for row in rows])[:, None]
    column = np.arange(queries)[None, :]
    query_index = start + np.minimum(column, length - 1)
    slot = np.arange(keys)[None, :]
    own = slot - prefix_length
    before = slot - rows[0].lead + np.where(slot < rows[0].lead, 0, prefix_start)
    key_index = np.where(own < 0, before, start + np.minimum(own, length - 1))
    return query_index.ravel(), key_index.ravel(), (column < length).ravel()
