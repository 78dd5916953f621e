"""Adapters that start from a part of the weights themselves: PiSSA and OLoRA, on a shared base.

Both put a low-rank part ``s·B₀A₀`` of W into the adapter and freeze what is left of W. Views share
one base here, so W stays, and the part that was taken out is kept beside the adapter:

    W x + s·(B A − B₀ A₀) x,

which is the same function with the same gradients, and zero at the start. In a run's folder the two
are one plain LoRA of rank 2r for the untouched base, as peft's own conversion writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.models.adapters import WEIGHTS, AdapterBodies

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignlab.models.low_rank import Decomposed


class DecomposedBodies(AdapterBodies):
    """Two adapters of peft for every view: what is trained, and the frozen part it began as."""

    def __init__(self, base: PreTrainedModel, technique: Decomposed, base_name: str) -> None:
        super().__init__(base, technique, base_name)
        self._way = technique.way

    @classmethod
    def _start(cls, name: str) -> str:
        return f"{cls._key(name)}_start"

    def _keys(self, name: str) -> list[str]:
        return [self._key(name), self._start(name)]

    def add(self, name: str, source: Path | None, *, trainable: bool) -> None:
        """Add adapter ``name``: a copy of the one in ``source``, or a fresh one (a zero update)."""
        config = self._read_config(source, trainable) if source else self._technique.peft_config()
        if source:
            config.r, config.lora_alpha = config.r // 2, config.lora_alpha / 2
        self._inject(self._key(name), config)
        frozen = self._technique.peft_config()
        frozen.r, frozen.lora_alpha, frozen.lora_dropout = config.r, config.lora_alpha, 0.0
        self._inject(self._start(name), frozen)
        self._trainable[name] = trainable
        self._active = None
        if source:
            self._read_weights(name, source)
        else:
            for layer in self._layers(name):
                self._take_out(layer, name)
        self.activate(name)

    def _layers(self, name: str) -> list[Any]:
        modules = self._base.modules()
        return [m for m in modules if self._key(name) in getattr(m, "lora_A", ())]

    def _take_out(self, layer: Any, name: str) -> None:
        """Start an adapter with its part of the layer's weight, which is left as it was."""
        key, start = self._keys(name)
        base = layer.get_base_layer()
        rank, shape = layer.r[key], tuple(base.weight.shape)
        if rank > min(shape):
            raise ConfigError(
                f"adapter.rank={rank}: {self.mode} takes {rank} directions out of a matrix of "
                f"{shape[0]} by {shape[1]}, which has {min(shape)}."
            )
        weight = base.weight.data
        base.weight.data = weight.clone()  # peft takes the part out of the weight as well
        if self._way == "olora":
            layer.olora_init(key)
        else:
            layer.pissa_init(key, self._way)
        base.weight.data = weight
        for matrices, sign in ((layer.lora_A, 1.0), (layer.lora_B, -1.0)):
            own = matrices[key].weight
            own.data = own.data.to(weight.device, torch.float32).contiguous()
            matrices[start].weight.data.copy_(own.data * sign)

    def activate(self, name: str) -> PreTrainedModel:
        """Make ``name`` compute; the part that it began as is never trained."""
        fresh = self._active != name
        model = super().activate(name)
        if fresh:
            for other in self._trainable:
                for parameter in self._frozen(other):
                    parameter.requires_grad_(False)
        return model

    def _frozen(self, name: str) -> list[nn.Parameter]:
        key = self._start(name)
        return [p for n, p in self._base.named_parameters() if key in n.split(".")]

    def all_parameters(self, name: str) -> list[nn.Parameter]:
        """Of the base, of the view's adapter, and of the part that it began as."""
        starts = {id(p) for other in self._trainable for p in self._frozen(other)}
        shared = [p for p in super().all_parameters(name) if id(p) not in starts]
        return [*shared, *self._frozen(name)]

    def drop(self, name: str) -> None:
        """Free both adapters."""
        if len(self._trainable) > 1:
            others = (other for other in self._trainable if other != name)
            self.activate(next(others))  # so that peft deletes no active adapter
            self._peft.delete_adapter(self._start(name))
        super().drop(name)

    def _state(self, name: str) -> dict[str, Any]:
        """One adapter of rank 2r: inputs of both stacked, outputs of both side by side."""
        from peft import get_peft_model_state_dict

        own, start = (
            get_peft_model_state_dict(self._peft, adapter_name=key, save_embedding_layers=False)
            for key in self._keys(name)
        )
        return {k: torch.cat([own[k], start[k]], dim=0 if "lora_A" in k else 1) for k in own}

    def _config(self, name: str) -> Any:
        config = self._technique.peft_config()
        own = self._peft.peft_config[self._key(name)]
        config.target_modules = own.target_modules
        config.r, config.lora_alpha = 2 * own.r, 2 * own.lora_alpha
        return config

    def _read_weights(self, name: str, source: Path) -> None:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        state = load_file(source / WEIGHTS)
        for key, half in zip(self._keys(name), (0, 1), strict=True):
            own = {k: _half(v, half, 0 if "lora_A" in k else 1) for k, v in state.items()}
            result: Any = set_peft_model_state_dict(self._peft, own, adapter_name=key)
            missing = [k for k in result.missing_keys if key in k.split(".")]
            if missing or result.unexpected_keys:
                odd = (missing or result.unexpected_keys)[0]
                raise ConfigError(f"{source}: this adapter does not fit {self._base_name} ({odd}).")


def _half(both: Tensor, which: int, dim: int) -> Tensor:
    return both.chunk(2, dim)[which].contiguous()
