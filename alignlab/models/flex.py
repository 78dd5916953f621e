"""Attention over the flat batch as one call of FlexAttention, for GPUs (``layout: flex``).

In place of blocks of rows of like length (`attention_plan`): the whole batch is one sequence, and a
block mask says which keys a token sees. Nothing is padded, no key is copied, and blocks of 128
tokens that see nothing of each other are skipped. torch calls FlexAttention a prototype, and its
CPU kernels have no backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.models.attention_plan import Lead
from alignlab.tensors import GroupSpan

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

LEADING = -1  # group of what stands before every prompt


@dataclass(frozen=True, eq=False)
class FlexPlan:
    """Which keys every token of one flat batch sees."""

    mask: BlockMask  # (1, 1, T, lead + T)
    longest: int  # tokens of the longest row, what a sliding window is compared with


def require_gpu(device: torch.device | str) -> None:
    """Refuse a device whose FlexAttention cannot train.

    Raises:
        ConfigError: the device is no GPU.
    """
    if torch.device(device).type != "cuda":
        raise ConfigError(
            "backbone.layout=flex needs a CUDA device: FlexAttention has no backward pass on "
            f"{torch.device(device).type}. Use layout=auto."
        )


def flex_plan(spans: tuple[GroupSpan, ...], device: torch.device | str, lead: Lead) -> FlexPlan:
    """Plan of a batch's layout on ``device``; kept, so every pass over the batch shares it."""
    return _flex_plan(spans, str(device), lead)


@lru_cache(maxsize=8)
def _flex_plan(spans: tuple[GroupSpan, ...], device: str, lead: Lead) -> FlexPlan:
    from torch.nn.attention.flex_attention import create_block_mask

    group, part = (torch.from_numpy(x).to(device) for x in places(spans, lead.length))
    keys = len(group)
    queries = keys if lead.tokens else keys - lead.length
    behind = keys - queries  # keys that are no queries

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query = query + behind
        own = (part[key] == 0) | (part[key] == part[query])
        return (key <= query) & ((group[key] == LEADING) | ((group[key] == group[query]) & own))

    make: Any = create_block_mask if device == "cpu" else _compiled(create_block_mask)
    mask = make(sees, None, None, queries, keys, device=device)
    rows = [span.prompt[1] - span.prompt[0] + _widest(span) for span in spans]
    return FlexPlan(mask, lead.length + max(rows))


def _widest(span: GroupSpan) -> int:
    return max((end - start for start, end in span.completions), default=0)


def places(spans: tuple[GroupSpan, ...], lead: int) -> tuple[np.ndarray, np.ndarray]:
    """Group of every key (`LEADING` before the prompts), and its part: 0 a prompt, k completion k.

    Both are ``(lead + T,)``. A token sees what leads, its prompt and its own completion, up to
    itself; all of those stand before it in the flat order.
    """
    tokens = max(end for span in spans for _, end in (span.prompt, *span.completions))
    group = np.full(lead + tokens, LEADING, dtype=np.int64)
    part = np.zeros(lead + tokens, dtype=np.int64)
    for number, span in enumerate(spans):
        for place, (start, end) in enumerate((span.prompt, *span.completions)):
            group[lead + start : lead + end] = number
            part[lead + start : lead + end] = place
    return group, part


def flex_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: FlexPlan,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Attention of ``(1, heads, T, dim)`` queries over ``(1, key heads, lead + T, dim)`` keys.

    Returns:
        ``(1, T, heads, dim)``.

    Raises:
        ConfigError: attention weights are to be dropped.
    """
    from torch.nn.attention.flex_attention import flex_attention

    if dropout:
        raise ConfigError(
            f"backbone.layout=flex cannot drop attention weights (here {dropout}). Use layout=auto."
        )

    def capped(score: Tensor, *place: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    attend: Any = flex_attention if query.device.type == "cpu" else _compiled(flex_attention)
    with torch.autocast(query.device.type, enabled=False):
        out: Tensor = attend(
            query.to(value.dtype), key.to(value.dtype), value,
            score_mod=None if softcap is None else capped, block_mask=plan.mask, scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
    return out.transpose(1, 2)


@lru_cache(maxsize=2)
def _compiled(function: Any) -> Any:
    """Fused kernels; from the second batch on for any number of tokens."""
    return torch.compile(function)
