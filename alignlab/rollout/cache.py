"""Key-value memory for decoding: preallocated where the architecture allows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """A full-attention layer that writes into memory allocated once.

    ``DynamicLayer`` copies all keys and values at every token; ``StaticLayer`` does not, but makes
    attention read its whole empty capacity. This one returns a view of the part that is filled.
    Shapes: keys and values (R, heads, filled, head_dim).
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.filled = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for as many rows and heads as the first states have."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key_memory = self._allocate(key_states, len(key_states))
        self._value_memory = self._allocate(value_states, len(value_states))
        self.is_initialized = True
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the states (R, heads, new, head_dim) and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.filled = self.filled, self.filled + key_states.shape[-2]
        self._key_memory[:, :, start : self.filled] = key_states
        self._value_memory[:, :, start : self.filled] = value_states
        return self._show()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times, side by side."""
        rows = torch.arange(len(self._key_memory), device=self.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices`` (R',), in that order; a row may be taken more than once."""
        for name in ("_key_memory", "_value_memory"):
            old = getattr(self, name)
            new = self._allocate(old, len(indices))
            new[:, :, : self.filled] = old[indices, :, : self.filled]
            setattr(self, name, new)
        self._show()

    def _allocate(self, like: Tensor, rows: int) -> Tensor:
        return like.new_empty(rows, like.shape[1], self.capacity, like.shape[3])

    def _show(self) -> tuple[Tensor, Tensor]:
        keys = self._key_memory[:, :, : self.filled]
        values = self._value_memory[:, :, : self.filled]
        self.keys, self.values = keys, values
        return keys, values


def new_cache(config: PreTrainedConfig, capacity: int) -> Cache:
    """Return an empty cache for ``capacity`` tokens.

    Architectures with other than full-attention layers (sliding window, linear attention, hybrid)
    get transformers' own ``DynamicCache``.
    """
    dynamic = DynamicCache(config=config)
    if dynamic.layers and all(type(layer) is DynamicLayer for layer in dynamic.layers):
        return Cache(layers=[PreallocatedLayer(capacity) for _ in dynamic.layers])
    return dynamic
