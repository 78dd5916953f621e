"""Parts of tensors that processes keep, and the whole again, whatever number of processes reads.

A tensor of n elements is cut, flattened, into runs of ⌈n / world⌉ elements by rank; the last ones
may be shorter or empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, as torch and DeepSpeed name them

Section = dict[str, Tensor]  # name of a weight -> something of its size, or this process's share


@dataclass(frozen=True)
class Share:
    """Which elements of every tensor one of ``world`` processes keeps."""

    rank: int
    world: int

    def width(self, elements: int) -> int:
        """Elements of a share before the last ones are cut off at the end."""
        return math.ceil(elements / self.world)

    def of(self, tensor: Tensor) -> Tensor:
        """The share of a whole tensor, flat; a view of it where it is contiguous."""
        width = self.width(tensor.numel())
        return tensor.reshape(-1)[self.rank * width : (self.rank + 1) * width]

    def trimmed(self, share: Tensor, elements: int) -> Tensor:
        """``share`` without what only fills it up to the width of the others."""
        width = self.width(elements)
        return share.reshape(-1)[: max(0, min(width, elements - self.rank * width))]

    def padded(self, share: Tensor, elements: int) -> Tensor:
        """``share`` filled up with zeros to the width of the others."""
        out = share.new_zeros(self.width(elements))
        out[: share.numel()] = share.reshape(-1)
        return out


@dataclass(frozen=True)
class Reader:
    """Named tensors of a checkpoint: whole ones, or the shares of all processes that wrote it."""

    whole_ones: Mapping[str, Section]
    shares: Sequence[Mapping[str, Section]]  # by rank

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of tensors that there are."""
        return tuple(dict.fromkeys(k for part in (self.whole_ones, *self.shares[:1]) for k in part))

    def has(self, kind: str, name: str) -> bool:
        """Whether there is such a tensor."""
        return any(name in part.get(kind, {}) for part in (self.whole_ones, *self.shares[:1]))

    def names(self, kind: str) -> set[str]:
        """Names of all tensors of a kind."""
        parts = (self.whole_ones, *self.shares[:1])
        return {name for part in parts for name in part.get(kind, {})}

    def whole(self, kind: str, name: str) -> Tensor:
        """A whole tensor; flat, if it was written in shares."""
        if name in self.whole_ones.get(kind, {}):
            return self.whole_ones[kind][name]
        return torch.cat([part[kind][name].reshape(-1) for part in self.shares])
