"""What a model costs before it is loaded: parameters, memory, arithmetic. Imports no torch."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignlab.errors import ConfigError
from alignlab.models.load import Adapter, BackboneConfig, is_made, resolve

Shapes = dict[str, tuple[int, ...]]

# Dimensions of the models that are made on first use, so that planning need not make them.
_MADE_LATER: dict[str, dict[str, Any]] = {
    "random:tiny": {
        "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "wheel:smollm2": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
_NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe")  # what "all-linear" leaves out
_RUNTIME_BYTES = 600_000_000  # Python with torch, transformers and peft, measured


def tensor_shapes(folder: Path) -> Shapes:
    """Shape of every tensor in the safetensors files of a model folder, from their headers."""
    shapes: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        if file.name == "head.safetensors":
            continue
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    if not shapes:
        raise ConfigError(f"{folder} has no weights (*.safetensors).")
    return shapes


def llama_shapes(config: Mapping[str, Any]) -> Shapes:
    """Tensors of a Llama-type model (gated MLP, no biases) by its ``config.json``."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    keys = (config.get("num_key_value_heads") or heads) * size
    shapes: Shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    layer = {
        "self_attn.q_proj": (heads * size, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, heads * size),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{k}.weight": v for k, v in layer.items()}
    return shapes


def parameter_count(model: Path | Mapping[str, Any]) -> int:
    """Parameters of a model folder (from its headers) or of a Llama-type configuration."""
    shapes = tensor_shapes(model) if isinstance(model, Path) else llama_shapes(model)
    return sum(map(math.prod, shapes.values()))


def parameter_counts(config: BackboneConfig, cache: Path) -> tuple[int, int]:
    """Parameters in all and trained, as `Backbone.parameter_counts` gives for a headless view."""
    shapes = base_shapes(config, cache)
    total = sum(map(math.prod, shapes.values()))
    if config.adapter.rank is None:
        return total, total
    own = adapter_parameters(shapes, config.adapter)
    return total + own, own


def adapter_parameters(shapes: Shapes, adapter: Adapter) -> int:
    """Parameters of a low-rank adapter: ``rank · (inputs + outputs)`` for every adapted matrix."""
    wanted = adapter.target_modules
    names = (wanted,) if isinstance(wanted, str) else wanted

    def adapted(tensor: str, shape: tuple[int, ...]) -> bool:
        if len(shape) != 2 or not tensor.endswith(".weight"):
            return False
        if names == ("all-linear",):
            return not any(part in tensor for part in _NOT_ADAPTED)
        return tensor.removesuffix(".weight").endswith(tuple(f".{name}" for name in names))

    return (adapter.rank or 0) * sum(sum(s) for name, s in shapes.items() if adapted(name, s))


def base_shapes(config: BackboneConfig, cache: Path) -> Shapes:
    """Tensors of the base model; nothing is made and no weights are fetched for it.

    Raises:
        ConfigError: no such model.
    """
    if config.path in _MADE_LATER and not is_made(config.path, cache):
        return llama_shapes(_MADE_LATER[config.path])
    if is_made(config.path, cache) or config.path.partition(":")[0] in ("random", "wheel"):
        return tensor_shapes(resolve(config.path, cache))
    return _hub_shapes(config)


def _hub_shapes(config: BackboneConfig) -> Shapes:
    from huggingface_hub import get_safetensors_metadata, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(config.path, revision=config.revision, local_files_only=True)
        return tensor_shapes(Path(folder))
    except (LocalEntryNotFoundError, ConfigError):  # not here yet: ask the hub for the headers
        try:
            found = get_safetensors_metadata(config.path, revision=config.revision)
        except Exception as error:  # whatever the network raises; the reason is reported
            raise ConfigError(
                f"backbone.path={config.path}: cannot be read from the Hugging Face hub ({error})."
            ) from error
    files = found.files_metadata.values()
    return {name: tuple(t.shape) for file in files for name, t in file.tensors.items()}


def estimate_memory(
    config: BackboneConfig,
    cache: Path,
    *,
    training: bool = True,
    frozen_views: int = 1,
    tokens: int = 2048,
) -> int:
    """Rough peak bytes of a stage: weights, gradients, optimizer state and activations.

    A trained parameter takes 16 bytes (value, gradient and two Adam moments in fp32), a frozen one
    4 or 2. Full-parameter views are copies: ``frozen_views`` of them beside the trained one. The
    activations of ``tokens`` tokens per micro-batch follow Korthikanti et al. 2022 (eq. 2 without
    the attention matrix): 34 bytes per token, layer and hidden unit in half precision.
    """
    shapes = base_shapes(config, cache)
    total, trained = parameter_counts(config, cache)
    base = sum(map(math.prod, shapes.values()))
    full = config.adapter.rank is None
    frozen = 4 if config.dtype == "float32" else 2
    bases = frozen_views if full else 1
    weights = bases * base * frozen + (16 * trained if training else frozen * (total - base))
    layers = len({n.split(".")[2] for n in shapes if re.match(r"[a-z_]+\.[a-z_]+\.\d+\.", n)})
    hidden = min(min(s) for s in shapes.values() if len(s) == 2)
    kept = layers * hidden * (2 if config.gradient_checkpointing else 34)
    activations = tokens * kept * frozen // 2 if training else 0
    return _RUNTIME_BYTES + weights + activations


def flops_per_token(total: int, trained: int) -> float:
    """Arithmetic of training on one token: ``2N`` forward, ``2N`` back to the activations, ``2n``.

    ``N`` is all parameters (head included) and ``n`` the trained ones: ``6N`` when all are trained,
    about ``4N`` for adapters, whose frozen matrices need no weight gradient.
    """
    return 4.0 * total + 2.0 * trained


def training_flops(total: int, trained: int, tokens: int) -> float:
    """`flops_per_token` times the tokens that go through forward and backward."""
    return flops_per_token(total, trained) * tokens
