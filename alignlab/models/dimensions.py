"""The sizes of a decoder that decide what a pass over it costs; read from its tensors' shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from alignlab.models.encoders import is_encoder

Shapes = Mapping[str, tuple[int, ...]]

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.(.+)$")
_EMBEDDINGS = ("embed", "lm_head", "wte", "wpe")  # no linear layers of a block
_UP = re.compile(
    r"(?:up_proj|c_fc|dense_h_to_4h|fc1|gate_up_proj|intermediate\.dense|lin1|Wi)\.weight$"
)
_HEAD = 64  # width of an attention head where the configuration is not at hand


@dataclass(frozen=True)
class Dimensions:
    """A decoder's widths and parameters; attention widths are heads times head size."""

    layers: int
    hidden: int  # H, of the residual stream
    inner: int  # I, of the feed-forward part
    queries: int  # A
    keys: int  # K, of the keys, and of the values
    heads: int  # query heads
    vocabulary: int
    gated: bool  # a feed-forward part of two products up, as in Llama
    tied: bool  # the head is the embedding
    total: int  # parameters
    matrices: int  # parameters of the linear layers inside the blocks
    largest: int  # parameters of the largest block, or of embedding or head
    linear_widths: int = 0  # inputs + outputs of all linear layers in blocks: an adapter of rank 1
    linear_count: int = 0  # linear layers of a block
    headless: bool = False  # an encoder: no language-model head

    @classmethod
    def of(cls, shapes: Shapes, config: Mapping[str, object] | None = None) -> Dimensions:
        """Read from tensor shapes; ``config`` tells the heads, else they are taken as 64 wide."""
        blocks: dict[int, dict[str, tuple[int, ...]]] = {}
        for name, shape in shapes.items():
            if found := _LAYER.search(name):
                blocks.setdefault(int(found[1]), {})[found[2]] = shape
        first = blocks[min(blocks)]
        outside = {n: s for n, s in shapes.items() if not _LAYER.search(n)}
        tables = [
            s
            for n, s in outside.items()
            if len(s) == 2 and any(e in n for e in _EMBEDDINGS) and "position" not in n
        ]
        vocabulary, hidden = max(tables, key=lambda s: s[0])
        queries = _rows(first, "q_proj", hidden)
        heads = _heads(config, queries)
        sizes = {name: sum(map(math.prod, block.values())) for name, block in blocks.items()}
        linear = [s for block in blocks.values() for s in block.values() if len(s) == 2]
        return cls(
            layers=len(blocks),
            hidden=hidden,
            inner=_inner(first, hidden),
            queries=queries,
            keys=_rows(first, "k_proj", hidden),
            heads=heads,
            vocabulary=vocabulary,
            gated=any("gate" in name or name.endswith("Wi.weight") for name in first),
            tied=sum(s == (vocabulary, hidden) for s in tables) < 2,
            total=sum(map(math.prod, shapes.values())),
            matrices=sum(map(math.prod, linear)),
            largest=max(*sizes.values(), vocabulary * hidden),
            linear_widths=sum(map(sum, linear)),
            linear_count=len(linear) // len(blocks),
            headless=is_encoder(config or {}),
        )


def _rows(block: Shapes, name: str, default: int) -> int:
    found = [s[0] for n, s in block.items() if n.endswith(f"{name}.weight")]
    return found[0] if found else default  # fused products of gpt2, GPT-NeoX: all as wide as H


def _inner(block: Shapes, hidden: int) -> int:
    for name, shape in block.items():
        if _UP.search(name):
            wide = max(shape) if max(shape) != hidden else min(shape)
            return wide // 2 if "gate_up" in name or name.endswith("Wi.weight") else wide
    return 4 * hidden


def _heads(config: Mapping[str, object] | None, queries: int) -> int:
    for name in ("num_attention_heads", "n_head"):
        value = (config or {}).get(name)
        if isinstance(value, int):
            return value
    return max(1, queries // _HEAD)
