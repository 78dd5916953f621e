"""Low-rank adapters in three operations per layer or fewer, for decoding.

peft's layer widens its input to float32, casts both factors at every call, scales and adds: ten
operations. Only for passes without gradients whose last bits may differ from a training pass's:
sampling, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def lean_adapters(model: nn.Module) -> Iterator[int]:
    """Let the plain LoRA layers of ``model`` compute ``W x + B(A x)·s`` with what is prepared here.

    Layers that do more (DoRA, biases, several adapters, merged ones, other base layers) are left
    as they are. Inside, the adapters must not change. Gives the number of layers.
    """
    changed: list[nn.Module] = []
    try:
        for parent in model.modules():
            children = [child for child in parent.children() if _is_plain(child)]
            for width in {child.in_features for child in children}:
                layers = [child for child in children if child.in_features == width]
                for layer, forward in zip(layers, _lean_forwards(layers), strict=True):
                    layer.forward = forward
                    changed.append(layer)
        yield len(changed)
    finally:
        for module in changed:
            del module.forward  # the class's own again


def _is_plain(layer: Any) -> bool:
    if not hasattr(layer, "lora_A"):
        return False
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or layer.merged or layer.disable_adapters:
        return False
    active = _active(layer)
    if len(active) != 1 or active[0] in layer.lora_variant:
        return False
    up = layer.lora_B[active[0]]
    return type(layer.base_layer) is nn.Linear and up.bias is None and "forward" not in vars(layer)


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


@dataclass
class _Inner:
    """``A x`` of layers that may read the same ``x``, such as the query, key and value layers.

    Their first factors are one product; the layers after the first only take their part of it.
    """

    first: Tensor  # (sum of ranks, in)
    x: Tensor | None = None  # what the product was made of
    product: Tensor | None = None
    given: set[int] = field(default_factory=set)  # the layers that took their part of it

    def of(self, x: Tensor, part: slice) -> Tensor:
        """``A x`` (rows, rank) of one layer; asking again means that ``x`` may have changed."""
        if self.product is None or x is not self.x or part.start in self.given:
            rows = x.reshape(-1, x.shape[-1]).to(self.first.dtype)
            self.x, self.product = x, nn.functional.linear(rows, self.first)
            self.given.clear()
        self.given.add(part.start)
        return self.product[:, part]


def _lean_forwards(layers: Sequence[Any]) -> list[Callable[[Tensor], Tensor]]:
    """Forward functions of plain layers with one parent and one width of the input."""
    firsts, seconds = zip(*map(_factors, layers), strict=True)
    inner = _Inner(torch.cat(firsts))
    ends = torch.tensor([len(first) for first in firsts]).cumsum(0).tolist()
    parts = [slice(end - len(first), end) for first, end in zip(firsts, ends, strict=True)]

    def forward_of(base: nn.Module, part: slice, second: Tensor) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            out: Tensor = base(x)
            out.view(-1, out.shape[-1]).addmm_(inner.of(x, part), second)
            return out

        return forward

    return [
        forward_of(layer.base_layer, part, second)
        for layer, part, second in zip(layers, parts, seconds, strict=True)
    ]


def _factors(layer: Any) -> tuple[Tensor, Tensor]:
    """``A`` (rank, in) and ``s·B`` transposed (rank, out), in the format of the computation."""
    name = _active(layer)[0]
    dtype = layer.base_layer.weight.dtype
    kind = layer.base_layer.weight.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    first = layer.lora_A[name].weight.detach().to(dtype)
    second = layer.lora_B[name].weight.detach() * layer.scaling[name]
    return first, second.to(dtype).T.contiguous()
