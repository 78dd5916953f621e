"""Cost estimates of the stages, from model files' headers alone: no weights are read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from alignlab.stages.stage import Estimate

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.models.load import Adapter, BackboneConfig

# Bytes per parameter while it is trained: fp32 weight, gradient and two AdamW moments.
TRAINED_BYTES = 16
FROZEN_BYTES = 2  # a frozen base in bfloat16
# Elements kept per token, layer and hidden unit for the backward pass of a Llama-type block:
# norms, q/k/v/o, attention, gate/up/down. Measured on the packaged model: about 30.
ACTIVATIONS = 30
TOKENS = 4096  # of a micro-batch


def training_flops(total: int, trained: int, tokens: int) -> float:
    """FLOPs of forward and backward: 4 per parameter and token, 2 more where weights get gradients.

    The forward pass and the gradient of the activations cost 2 each, the gradient of the weights 2
    (Kaplan et al. 2020, arXiv:2001.08361 §2.1); attention's own products are left out.
    """
    return (4.0 * total + 2.0 * trained) * tokens


def training_estimate(backbone: BackboneConfig, cache: Path, *, tokens: int) -> Estimate:
    """Parameters, FLOPs and memory of training on ``tokens`` tokens."""
    total, trained, hidden, layers = sizes(backbone, cache)
    activations = 4 * ACTIVATIONS * TOKENS * hidden * layers
    return Estimate(
        params_total=total,
        params_trained=trained,
        tokens=tokens,
        flops=training_flops(total, trained, tokens),
        memory_bytes=(total - trained) * FROZEN_BYTES + trained * TRAINED_BYTES + activations,
    )


def sampling_estimate(backbone: BackboneConfig, cache: Path, *, tokens: int) -> Estimate:
    """Parameters, FLOPs (2 per parameter and token) and memory of sampling ``tokens`` tokens."""
    total, _, _, _ = sizes(backbone, cache)
    return Estimate(
        params_total=total, tokens=tokens, flops=2.0 * total * tokens, memory_bytes=4 * total
    )


def sizes(backbone: BackboneConfig, cache: Path) -> tuple[int, int, int, int]:
    """Parameters, trained parameters, hidden size and layers; zeros for a model not fetched yet."""
    import json

    from alignlab.models.load import is_made, resolve
    from alignlab.models.memory import tensor_shapes

    if not is_made(backbone.path, cache):
        return 0, 0, 0, 0
    folder = resolve(backbone.path, cache, backbone.revision)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shapes = tensor_shapes(folder)
    total = sum(math.prod(shape) for shape in shapes.values())
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    if backbone.adapter.rank is None:
        return total, total, hidden, layers
    extra = adapter_parameters(shapes, backbone.adapter)
    return total + extra, extra, hidden, layers


def adapter_parameters(shapes: dict[str, tuple[int, ...]], adapter: Adapter) -> int:
    """Parameters of LoRA on the matching matrices: r (in + out) each."""
    named = adapter.target_modules
    wanted = () if named == "all-linear" else ((named,) if isinstance(named, str) else named)
    count = 0
    for name, shape in shapes.items():
        module = name.removesuffix(".weight").rsplit(".", 1)[-1]
        linear = len(shape) == 2 and "embed" not in name and "lm_head" not in name
        if linear and (not wanted or module in wanted):
            count += (adapter.rank or 0) * sum(shape)
    return count
