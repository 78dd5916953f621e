"""Base models in four bits (bitsandbytes), and adapters on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignlab.models.adapters import AdapterBodies
from alignlab.models.quantized import FILE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignlab.models.bodies import Base
    from alignlab.models.quantized import QLoRA

BLOCK = 64  # values that share a scale, as in the paper


class QuantizedBodies(AdapterBodies):
    """Adapters on a base of four bits; a run's folder says how it was quantised."""

    def __init__(self, base: PreTrainedModel, technique: QLoRA, base_name: str) -> None:
        super().__init__(base, technique, base_name)
        self._stated = stated(technique)

    def save(self, name: str, folder: Path) -> None:
        """Write an ordinary peft adapter folder, and how its base is quantised."""
        super().save(name, folder)
        (folder / FILE).write_text(json.dumps(self._stated, indent=2) + "\n", encoding="utf-8")


def stated(technique: QLoRA) -> dict[str, Any]:
    """How a base is quantised, as its adapters' folders say."""
    return {"quantization": technique.quantization, "double": technique.double_quantization}


def opened(base: Base, technique: QLoRA) -> PreTrainedModel:
    """Read a base model, each of its matrices quantised as soon as it is read."""
    from transformers import BitsAndBytesConfig

    config: Any = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=technique.quantization,
        bnb_4bit_use_double_quant=technique.double_quantization,
        bnb_4bit_compute_dtype=base.dtype,
    )
    model = base.read(base.folder, False, config)
    layers: list[Any] = list(model.modules())
    for module in layers:
        # On some CPUs bitsandbytes would rearrange the matrices when a pass without gradients
        # meets them, and round their scales: sampling would change what is trained on.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def round_trip(model: Any, *, quantization: str, double: bool) -> Any:
    """Round the matrices of a plain model to the values that the four-bit base computes with."""
    from transformers.pytorch_utils import Conv1D

    model = model.float()
    head = model.get_output_embeddings()
    for module in model.modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            module.weight.data = _rounded(module.weight.data, quantization, double)
        elif isinstance(module, Conv1D):  # stored the other way round; quantised as a linear layer
            weight = module.weight.data.T.contiguous()
            module.weight.data = _rounded(weight, quantization, double).T.contiguous()
    return model


def _rounded(weight: Tensor, quantization: str, double: bool) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight, blocksize=BLOCK, compress_statistics=double, quant_type=quantization
    )
    found: Tensor = dequantize_4bit(packed, state)
    return found.to(torch.float32)
