"""Low-rank adapters in three operations per layer, for decoding.

peft's layer widens its input to float32, casts both factors at every call, scales and adds: ten
operations. Only for passes without gradients whose last bits may differ from a training pass's:
sampling, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def lean_adapters(model: nn.Module) -> Iterator[int]:
    """Let the plain LoRA layers of ``model`` compute ``W x + B(A x)·s`` with what is prepared here.

    Layers that do more (DoRA, biases, several adapters, merged ones, other base layers) are left
    as they are. Inside, the adapters must not change. Gives the number of layers.
    """
    changed = []
    try:
        for module in model.modules():
            forward = _lean_forward(module)
            if forward is not None:
                module.forward = forward
                changed.append(module)
        yield len(changed)
    finally:
        for module in changed:
            del module.forward  # the class's own again


def _lean_forward(module: nn.Module) -> Callable[..., Tensor] | None:
    if not hasattr(module, "lora_A"):
        return None
    from peft.tuners.lora import Linear

    layer: Any = module
    if type(layer) is not Linear or layer.merged or layer.disable_adapters:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant:
        return None
    down, up = layer.lora_A[active[0]], layer.lora_B[active[0]]
    base = layer.base_layer
    if type(base) is not nn.Linear or up.bias is not None or "forward" in vars(layer):
        return None
    kind = base.weight.device.type
    dtype = base.weight.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    first = down.weight.detach().to(dtype)
    second = (up.weight.detach() * layer.scaling[active[0]]).to(dtype).T.contiguous()

    def forward(x: Tensor) -> Tensor:
        out = base(x)
        inner = nn.functional.linear(x.to(dtype), first)
        out.view(-1, out.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), second)
        return out

    return forward
