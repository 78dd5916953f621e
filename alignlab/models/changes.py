"""What training changes of the weights that a view computes with, differentiable, by tensor.

For a trained parameter that is ``θ − θ_start``. For a low-rank adapter it is the change of the
whole matrix, ``s (B A − B_start A_start)``, and not of A and B: those matter only by their product
(EWC-LoRA, 2602.17559).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignlab.errors import ConfigError
from alignlab.models.sharding import is_share

if TYPE_CHECKING:
    from alignlab.models.backbone import Backbone
    from alignlab.models.view import View


@dataclass(frozen=True)
class Change:
    """The change of one weight tensor; ``compute`` takes ``inputs``, which are trained."""

    name: str
    weight: nn.Parameter  # whose gradient is that of the tensor: the base's, for an adapter
    inputs: tuple[nn.Parameter, ...]
    compute: Callable[..., Tensor]

    def through(self, read: Callable[[Tensor], Tensor]) -> Tensor:
        """``read(change)``; the change is computed again for the gradient, and not kept."""
        result: Tensor = checkpoint(
            lambda *inputs: read(self.compute(*inputs)), *self.inputs, use_reentrant=False
        )
        return result


def changes_of(backbone: Backbone, view: str) -> tuple[Change, ...]:
    """Changes of all that ``view`` trains, from what it is now on.

    Raises:
        ConfigError: weights in shares (ZeRO 3), or adapters that are more than a product.
    """
    with backbone.view(view) as active:
        trained = backbone.trainable_parameters(view)
        if any(is_share(p) for p in trained.values()):
            raise ConfigError(
                "anchor: under ZeRO 3 no process has the whole weights that a penalty on their "
                "change reads. Use engine=zero2, or an anchor by distillation."
            )
        found = list(_products(active))
        covered = {id(p) for change in found for p in change.inputs}
        for name, parameter in trained.items():
            if id(parameter) not in covered:
                start = parameter.detach().float().clone()
                found.append(Change(name, parameter, (parameter,), partial(_moved, start)))
    return tuple(found)


def _moved(start: Tensor, parameter: Tensor) -> Tensor:
    return parameter.float() - start


def _products(view: View) -> Iterator[Change]:
    """Changes of the matrices under the active low-rank adapter."""
    for name, module in view.model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        layer: Any = module
        for key in layer.active_adapters:
            if key not in layer.lora_A:
                continue
            base = layer.get_base_layer()
            varied = key in getattr(layer, "lora_variant", {}) or hasattr(layer, "lora_E")
            if varied or not isinstance(base, nn.Module):
                raise ConfigError(
                    f"anchor: {name} has an adapter that is more than a product B·A (DoRA, AdaLoRA)"
                    "; penalties on weights take adapter=lora or adapter=full, distillation any."
                )
            down, up = layer.lora_A[key].weight, layer.lora_B[key].weight
            if not down.requires_grad:  # what an adapter began as, frozen beside it (PiSSA, OLoRA)
                continue
            start = (down.detach().float().clone(), up.detach().float().clone())
            turned = bool(getattr(layer, "fan_in_fan_out", False))
            compute = partial(_product_moved, float(layer.scaling[key]), start, turned)
            weight: Any = base.weight
            yield Change(name, weight, (down, up), compute)


def _product_moved(
    scale: float, start: Sequence[Tensor], turned: bool, down: Tensor, up: Tensor
) -> Tensor:
    """``s (B A − B₀ A₀)`` as one product of ``[B, −B₀]`` and ``[A; A₀]``."""
    right = torch.cat([down.float(), start[0]], 0)
    left = torch.cat([up.float(), -start[1]], 1)
    with torch.autocast(left.device.type, enabled=False):
        change = scale * (left @ right)
    return change.T if turned else change
