"""Low-rank adapters in one autograd node for all layers that read the same tensor.

peft computes ``W x + s·B(A x)`` layer by layer: it widens x to the adapter's format and narrows it
again, keeps a copy of it for every layer, and scales and adds the update in passes of their own.
Here query, key and value, or gate and up, make one copy of x, which the backward pass reads for all
of them; their A are one product, the update is added inside of B's, and x's gradient is summed in
the products that make it. Same numbers up to the rounding of the format; fewer and larger
operations, less memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Layers of one module that read one tensor, as the architectures of transformers name them. A name
# that is missing here costs speed alone, and so does one whose layers are given other tensors.
SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("query", "key", "value"),
)


@contextmanager
def joint_adapters(model: nn.Module) -> Iterator[int]:
    """Let layers with LoRA compute together; gives the number of layers that do.

    To stay through the backward pass, which may compute a layer again. What is more than
    ``W x + s·B(A x)`` with a frozen, unquantised W (DoRA, dropout, biases of B, merged adapters)
    is left to peft.
    """
    groups = list(_groups(model))
    layers = [layer for group in groups for layer in group]
    for group in groups:
        together = _Together(group)
        for place, layer in enumerate(group):
            layer.module.forward = Member(together, place)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            vars(layer.module).pop("forward", None)  # the class's own again


@dataclass(frozen=True, eq=False)
class LoRALayer:
    """``W x + b + Σ_a s_a B_a (A_a x)``: a linear layer and the adapters that are active on it."""

    module: Any
    base: nn.Linear
    factors: Sequence[tuple[Tensor, Tensor, float]]  # A (rank, in), B (out, rank), s


def lora_layer(module: Any) -> LoRALayer | None:
    """The layer, if ``module`` is peft's LoRA on a linear layer and computes nothing else."""
    if not hasattr(module, "base_layer"):
        return None
    from peft.tuners.lora import Linear

    if type(module) is not Linear or module.merged or module.disable_adapters:
        return None
    layer: Any = module  # peft's annotations say Tensor of what is a mapping or a method
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if not active or type(layer.base_layer) is not nn.Linear:
        return None
    for name in active:
        dropped = layer.training and not isinstance(layer.lora_dropout[name], nn.Identity)
        if dropped or name in layer.lora_variant or layer.lora_B[name].bias is not None:
            return None
    factors = [(layer.lora_A[n].weight, layer.lora_B[n].weight, layer.scaling[n]) for n in active]
    return LoRALayer(layer, layer.base_layer, factors)


def product_dtype(weight: Tensor) -> torch.dtype:
    """Number format of a product with ``weight`` here: autocast's, if it is on."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _groups(module: nn.Module) -> Iterator[list[LoRALayer]]:
    """Layers by what they read: siblings of the table, every other one by itself."""
    children = dict(module.named_children())
    found = {name: layer for name, child in children.items() if (layer := _joins(child))}
    for names in SIBLINGS:
        if together := [found.pop(name) for name in names if name in found]:
            yield together
    for layer in found.values():
        yield [layer]
    for child in children.values():
        yield from _groups(child)


def _joins(module: nn.Module) -> LoRALayer | None:
    """The layer, if its weights are frozen and here: DeepSpeed brings those it shards by module."""
    layer = None if "forward" in vars(module) else lora_layer(module)
    sharded = layer is not None and hasattr(layer.base.weight, "ds_id")
    return None if layer is None or sharded or layer.base.weight.requires_grad else layer


class _Together:
    """Layers that are expected to be called one after the other with one tensor."""

    def __init__(self, layers: Sequence[LoRALayer]) -> None:
        self.layers = layers
        self.asked: Tensor | None = None
        self.answers: dict[int, Tensor] = {}

    def __call__(self, place: int, x: Tensor) -> Tensor:
        """What the layer at ``place`` makes of ``x``; nothing is kept once all have asked."""
        if x is not self.asked or place not in self.answers:
            self.asked, self.answers = x, dict(enumerate(_computed(x, self.layers)))
        answer = self.answers.pop(place)
        if not self.answers:
            self.asked = None
        return answer


class Member:
    """The forward function of one of several layers that compute together."""

    def __init__(self, together: _Together, place: int) -> None:
        self._together, self._place = together, place

    def __call__(self, x: Tensor) -> Tensor:
        """``(…, in)`` to ``(…, out)``."""
        return self._together(self._place, x)


def _computed(x: Tensor, layers: Sequence[LoRALayer]) -> tuple[Tensor, ...]:
    dtype = product_dtype(layers[0].base.weight)
    bases = [(layer.base.weight, layer.base.bias) for layer in layers]
    adapters = [[(len(down), scale) for down, _, scale in layer.factors] for layer in layers]
    downs = [down for layer in layers for down, _, _ in layer.factors]
    ups = [up for layer in layers for _, up, _ in layer.factors]
    return _Adapted.apply(x, dtype, bases, adapters, *downs, *ups)


class _Adapted(torch.autograd.Function):
    """``y_l = W_l x + b_l + Σ_a s_a B_a (A_a x)`` of several layers l, each with its adapters a.

    ``bases`` are the pairs (W, b), ``adapters`` rank and s of each adapter of each layer, and
    ``factors`` first all A, then all B. Gradients for x, A and B; the base is frozen.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dtype: torch.dtype,
        bases: Sequence[tuple[Tensor, Tensor | None]],
        adapters: Sequence[Sequence[tuple[int, float]]],
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        downs, ups = factors[: len(factors) // 2], iter(factors[len(factors) // 2 :])
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        ctx.adapters, ctx.shape, ctx.format = adapters, x.shape, factors[0].dtype
        down = torch.cat(downs).to(dtype)  # (R, in), all adapters of all layers
        inner = flat @ down.t()  # (T, R)
        scaled = [torch.cat([next(ups) * s for _, s in own], 1).to(dtype) for own in adapters]
        weights = [weight.to(dtype) for weight, _ in bases]
        outputs: list[Tensor] = []
        parts = inner.split([up.shape[1] for up in scaled], 1)
        for weight, (_, bias), up, part in zip(weights, bases, scaled, parts, strict=True):
            out = nn.functional.linear(flat, weight, bias)
            outputs.append(out.addmm_(part, up.t()).view(*x.shape[:-1], len(weight)))
        ctx.save_for_backward(flat, inner, down, *scaled, *weights)
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        flat, inner, down, *rest = ctx.saved_tensors
        ups, weights = rest[: len(grads)], rest[len(grads) :]
        d_x: Tensor | None = None
        d_parts: list[Tensor] = []
        d_ups: list[Tensor] = []
        parts = inner.split([up.shape[1] for up in ups], 1)
        layers = zip(grads, ups, weights, parts, ctx.adapters, strict=True)
        for grad, up, weight, part, own in layers:
            d_out = grad.reshape(-1, len(weight))
            d_parts.append(d_out @ up)
            d_up = (d_out.t() @ part).split([rank for rank, _ in own], 1)
            d_ups += [d.to(ctx.format).mul_(s) for d, (_, s) in zip(d_up, own, strict=True)]
            if ctx.needs_input_grad[0]:
                d_x = d_out @ weight if d_x is None else d_x.addmm_(d_out, weight)
        d_inner = torch.cat(d_parts, 1)
        ranks = [rank for own in ctx.adapters for rank, _ in own]
        d_downs = (d_inner.t() @ flat).split(ranks)
        if d_x is not None:
            d_x = d_x.addmm_(d_inner, down).view(ctx.shape)
        return (d_x, None, None, None, *d_downs, *d_ups)
