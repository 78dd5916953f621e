"""Linear layers in fewer operations, for decoding: those that read the same tensor are one product.

A step of decoding is many small products, and most of its time is what each of them costs apart
from its arithmetic. Query, key and value read one tensor, and so do gate and up: their weights lie
below each other and are one product. The first factors of low-rank adapters lie below them too, so
that an adapter costs one more operation (peft's layer: ten). Only for passes without gradients
whose last bits may differ from a training pass's: sampling, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models.joint_adapters import Member, lora_layer, product_dtype

Forward = Callable[[Tensor], Tensor]


@contextmanager
def lean_layers(model: nn.Module) -> Iterator[int]:
    """Let the linear layers of ``model`` compute together what reads the same tensor.

    The first pass shows which layers do; from the second pass on they are one product. Frozen
    weights move into memory that they share and stay there, at no cost in bytes; trained ones stay
    where an optimizer knows them, and apart. Several active adapters are one of their joint rank.
    Adapters that are more than ``W x + B(A x)·s`` (DoRA, biases, merged ones, other base layers)
    are left as they are. Inside, weights must not change. Gives the number of layers watched.
    """
    layers = [layer for module in _outermost(model) if (layer := _layer(module)) is not None]
    watch = _Watch(layers)
    before = [vars(layer.module).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.module.forward = watch.forward(layer)
        yield len(layers)
    finally:
        for layer, own in zip(layers, before, strict=True):
            vars(layer.module).pop("forward", None)  # the class's own again
            if own is not None:
                layer.module.forward = own


@dataclass(frozen=True, eq=False)
class _Layer:
    """``base(x) + up(down x)``: a linear layer, and the factors of its adapter if it has one."""

    module: Any
    base: nn.Linear
    dtype: torch.dtype  # of the product
    down: Tensor | None = None  # (rank, in)
    up: Tensor | None = None  # (rank, out), times the adapter's scale

    @property
    def out(self) -> int:
        """Numbers that come out."""
        return self.base.out_features

    @property
    def rank(self) -> int:
        """Numbers between the two factors."""
        return 0 if self.down is None else len(self.down)

    def alone(self, x: Tensor) -> Tensor:
        """Compute the layer by itself: (…, in) to (…, out)."""
        out = nn.functional.linear(x, self.base.weight, self.base.bias)
        if self.down is None or self.up is None:
            return out
        inner = nn.functional.linear(x.to(self.dtype), self.down)
        out.view(-1, out.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), self.up)
        return out

    def joins(self, other: _Layer) -> bool:
        """Whether both can be rows of one product."""
        mine, theirs = self.base.weight, other.base.weight
        return (
            self.dtype == other.dtype
            and mine.device == theirs.device
            and mine.shape[1] == theirs.shape[1]
            and mine.requires_grad == theirs.requires_grad
        )


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """Every module that may be a layer; not what is inside of an adapter's layer."""
    for child in module.children():
        if hasattr(child, "base_layer") or type(child) is nn.Linear:
            yield child
        else:
            yield from _outermost(child)


def _layer(module: Any) -> _Layer | None:
    if not isinstance(vars(module).get("forward"), Member | None):
        return None  # somebody else's
    if type(module) is nn.Linear:
        return _Layer(module, module, product_dtype(module.weight))
    if (layer := lora_layer(module)) is None:
        return None
    dtype = product_dtype(layer.base.weight)
    scaled = [up.detach() * scale for _, up, scale in layer.factors]
    return _Layer(
        layer.module,
        layer.base,
        dtype,
        torch.cat([down.detach() for down, *_ in layer.factors]).to(dtype),
        torch.cat(scaled, dim=1).to(dtype).T.contiguous(),
    )


class _Watch:
    """The first pass: layers that are called one after the other with one tensor are siblings."""

    def __init__(self, layers: Sequence[_Layer]) -> None:
        self.groups: list[list[_Layer]] = []
        self.seen: set[int] = set()
        self.last: Tensor | None = None

    def forward(self, layer: _Layer) -> Forward:
        """What ``layer`` computes while it is watched."""

        def watched(x: Tensor) -> Tensor:
            if id(layer) in self.seen:  # the second pass has begun
                self._join()
                return layer.module.forward(x)
            self.seen.add(id(layer))
            if x is self.last and layer.joins(self.groups[-1][0]):
                self.groups[-1].append(layer)
            else:
                self.groups.append([layer])
            self.last = x
            return layer.alone(x)

        return watched

    def _join(self) -> None:
        self.last = None
        for group in self.groups:
            weight = _joined(group) if len(group) > 1 or group[0].rank else None
            together = None if weight is None else _Together(group, weight)
            for place, layer in enumerate(group):
                layer.module.forward = together.part(place) if together else layer.alone


class _Together:
    """Several layers as one product, computed when the first of them is called."""

    def __init__(self, group: Sequence[_Layer], weight: Tensor) -> None:
        self.weight, self.dtype = weight, group[0].dtype
        self.ends = torch.tensor([layer.out for layer in group]).cumsum(0).tolist()
        self.starts = [0, *self.ends[:-1]]
        total, rank = self.ends[-1], sum(layer.rank for layer in group)
        self.up = weight.new_zeros(rank, total) if rank else None
        self.bias = None
        if any(layer.base.bias is not None for layer in group):
            self.bias = weight.new_zeros(total + rank)
        row = 0
        for layer, start, end in zip(group, self.starts, self.ends, strict=True):
            if layer.base.bias is not None and self.bias is not None:
                self.bias[start:end] = layer.base.bias.detach()
            if layer.up is not None and self.up is not None:
                self.up[row : row + layer.rank, start:end] = layer.up
            row += layer.rank
        self.asked: Tensor | None = None
        self.answer: Tensor | None = None
        self.taken: set[int] = set()

    def part(self, place: int) -> Forward:
        """What the layer at ``place`` computes: its columns of the common product."""
        start, end = self.starts[place], self.ends[place]

        def forward(x: Tensor) -> Tensor:
            if x is not self.asked or self.answer is None or place in self.taken:
                self.asked, self.answer, self.taken = x, self._product(x), set()
            out = self.answer[..., start:end]
            self.taken.add(place)
            if len(self.taken) == len(self.ends):  # nothing is kept from one token to the next
                self.asked = self.answer = None
            return out

        return forward

    def _product(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(self.dtype)
        out = nn.functional.linear(flat, self.weight, self.bias)
        if self.up is not None:
            total = self.ends[-1]
            out = out[:, :total].addmm_(out[:, total:], self.up)
        return out.view(*x.shape[:-1], out.shape[-1])


def _joined(group: Sequence[_Layer]) -> Tensor | None:
    """The weights of ``group`` and below them the first factors of adapters; None: left apart."""
    first = group[0].base.weight
    if first.requires_grad or first.dtype != group[0].dtype:
        return None  # a copy for the time of a rollout costs memory, and gained nothing measurable
    total, rank = sum(layer.out for layer in group), sum(layer.rank for layer in group)
    memory = _shared(group, total, rank)
    if memory is None:
        return None
    row = total
    for layer in group:
        if layer.down is not None:
            memory[row : row + layer.rank] = layer.down
            row += layer.rank
    return memory


def _shared(group: Sequence[_Layer], total: int, rank: int) -> Tensor | None:
    """One tensor (total + rank, in) whose first rows are the very weights of ``group``.

    Weights that lie so already, from an earlier rollout, stay where they are; others move there.
    None for weights that somebody else keeps in larger memory of their own (DeepSpeed's shares).
    """
    weights = [layer.base.weight for layer in group]
    if any(hasattr(weight, "ds_id") for weight in weights):
        return None  # DeepSpeed puts these where it wants them
    wide = weights[0].shape[1]
    size = (total + rank) * wide
    storage = weights[0].untyped_storage()
    with torch.inference_mode(False), torch.no_grad():
        offsets = torch.tensor([0, *(w.numel() for w in weights[:-1])]).cumsum(0).tolist()
        together = all(
            w.untyped_storage().data_ptr() == storage.data_ptr() and w.storage_offset() == offset
            for w, offset in zip(weights, offsets, strict=True)
        )
        if together and storage.nbytes() == size * weights[0].element_size():
            return weights[0].detach().as_strided((total + rank, wide), (wide, 1), 0)
        if any(w.untyped_storage().nbytes() != w.nbytes for w in weights) and not together:
            return None
        memory = weights[0].detach().new_empty(total + rank, wide)
        for weight, offset in zip(weights, offsets, strict=True):
            place = memory.view(-1)[offset : offset + weight.numel()].view_as(weight)
            place.copy_(weight)
            weight.data = place
        return memory
