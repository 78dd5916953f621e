"""Keys and values of rows that come and go: one memory, in which all rows end at one column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

BLOCK = 32  # columns by which the memory grows


@dataclass
class Columns:
    """Columns of the memory: those that are there, and those before the next one to write."""

    width: int = 0
    filled: int = 0

    def widen(self) -> int:
        """Make room for one more column, and give the new width: a multiple of `BLOCK`."""
        self.width = (self.filled // BLOCK + 1) * BLOCK
        return self.width


class PromptLayer(DynamicLayer):
    """Keys and values (1, heads, T, dim) of a flat sequence of prompts, as attention got them."""

    def __init__(self) -> None:
        super().__init__()
        self.flat: tuple[Tensor, Tensor]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the states and give them back: prompts see themselves only."""
        self.flat = key_states, value_states
        return self.flat

    def put_before(self, keys: Tensor, values: Tensor) -> None:
        """Put keys and values (1, heads, v, dim) before those of the prompts."""
        joined = (
            torch.cat([own.to(kept.dtype), kept], 2)
            for own, kept in zip((keys, values), self.flat, strict=True)
        )
        self.flat = next(joined), next(joined)

    def get_seq_length(self) -> int:
        """Return 0: the prompts are the beginning."""
        return 0


class SlotLayer(DynamicLayer):
    """Keys and values (slots, heads, width, dim) of one layer; a step writes one column.

    Attention gets the whole memory and masks what is not of a row: a part of the columns is not
    contiguous, and the matrix product of torch's CPU backend copies such an argument at every call.
    """

    def __init__(self, like: PromptLayer, slots: int, columns: Columns) -> None:
        super().__init__()
        _, heads, _, size = like.flat[1].shape
        # Zeros, because what is masked has weight 0, and 0 times the NaN of raw memory is NaN.
        self.memory = [like.flat[1].new_zeros(slots, heads, columns.width, size) for _ in range(2)]
        self.columns = columns

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the states (slots, heads, 1, dim) of one token; return all columns."""
        for memory, states in zip(self.memory, (key_states, value_states), strict=True):
            memory[:, :, self.columns.filled] = states[:, :, 0].to(memory.dtype)
        keys, values = self.memory
        return keys, values

    def get_seq_length(self) -> int:
        """Columns before the new token."""
        return self.columns.filled

    def place(self, given: PromptLayer, slots: Tensor, columns: Tensor, tokens: Tensor) -> None:
        """Copy ``tokens`` of a flat sequence to the slots and columns named; all three are (N,)."""
        for memory, flat in zip(self.memory, given.flat, strict=True):
            memory[slots, :, columns] = flat[0].transpose(0, 1)[tokens].to(memory.dtype)

    def move(self, first: int, end: int) -> None:
        """Keep the columns ``first`` to ``end``, as the first of a memory of the present width."""
        for i, memory in enumerate(self.memory):
            slots, heads, _, size = memory.shape
            moved = memory.new_zeros(slots, heads, self.columns.width, size)
            moved[:, :, : end - first] = memory[:, :, first:end]
            self.memory[i] = moved

    def select(self, slots: Tensor) -> None:
        """Keep the slots named."""
        self.memory = [memory[slots] for memory in self.memory]
