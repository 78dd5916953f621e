"""What a model is before it is loaded: tensors, parameters, arithmetic. Imports no torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignlab.errors import ConfigError
from alignlab.files import read_json
from alignlab.models.dimensions import Dimensions
from alignlab.models.encoders import encoder_shapes, is_encoder, stated_config
from alignlab.models.load import BackboneConfig, is_made, resolve
from alignlab.models.published import PUBLISHED
from alignlab.models.sighted import family_of, is_visual, sees, sees_at
from alignlab.models.techniques import Sizes

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
    return as_loaded(shapes)


def as_loaded(shapes: Shapes) -> Shapes:
    """Parameters of a checkpoint as the loaded model names them.

    The first GPT-2 and GPT-NeoX files hold causal masks as ``attn.bias`` (n, n), which are no
    biases and no parameters any more; those of GPT-2 lack the prefix of the whole model.
    """
    found = {name: shape for name, shape in shapes.items() if not _is_buffer(name, shape)}
    if "h.0.ln_1.weight" not in found:
        return found
    return {n if n.startswith("lm_head") else f"transformer.{n}": s for n, s in found.items()}


def _is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    mask = name.endswith((".attn.bias", ".attention.bias")) and len(shape) == 4
    return mask or name.endswith((".masked_bias", ".rotary_emb.inv_freq"))


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
        if config.get("model_type") == "qwen2":  # biases on what attention reads
            for name, rows in (("q_proj", heads * size), ("k_proj", keys), ("v_proj", keys)):
                shapes[f"model.layers.{index}.self_attn.{name}.bias"] = (rows,)
    return shapes


def gpt2_shapes(config: Mapping[str, Any]) -> Shapes:
    """Tensors of a GPT-2 by its ``config.json``."""
    hidden = config["n_embd"]
    inner = config.get("n_inner") or 4 * hidden
    shapes: Shapes = {
        "transformer.wte.weight": (config["vocab_size"], hidden),
        "transformer.wpe.weight": (config["n_positions"], hidden),
        **_vectors("transformer.ln_f", hidden),
    }
    for index in range(config["n_layer"]):
        layer = f"transformer.h.{index}"
        for name, rows, columns in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, inner),
            ("mlp.c_proj", inner, hidden),
        ):
            shapes |= {
                f"{layer}.{name}.weight": (rows, columns),
                f"{layer}.{name}.bias": (columns,),
            }
        shapes |= _vectors(f"{layer}.ln_1", hidden) | _vectors(f"{layer}.ln_2", hidden)
    return shapes


def neox_shapes(config: Mapping[str, Any]) -> Shapes:
    """Tensors of a GPT-NeoX (Pythia) by its ``config.json``."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        "gpt_neox.embed_in.weight": (config["vocab_size"], hidden),
        "lm_head.weight": (config["vocab_size"], hidden),
        **_vectors("gpt_neox.final_layer_norm", hidden),
    }
    for index in range(config["num_hidden_layers"]):
        layer = f"gpt_neox.layers.{index}"
        for name, rows, columns in (
            ("attention.query_key_value", 3 * hidden, hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", inner, hidden),
            ("mlp.dense_4h_to_h", hidden, inner),
        ):
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= _vectors(f"{layer}.{norm}", hidden)
    return shapes


def _vectors(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


SHAPES = {"gpt2": gpt2_shapes, "gpt_neox": neox_shapes}  # others as Llama


def parameter_count(model: Path | Mapping[str, Any]) -> int:
    """Parameters of a model folder (from its headers) or of a Llama-type configuration."""
    shapes = tensor_shapes(model) if isinstance(model, Path) else llama_shapes(model)
    return sum(map(math.prod, shapes.values()))


def parameter_counts(config: BackboneConfig, cache: Path) -> tuple[int, int]:
    """Parameters in all and trained, as `Backbone.parameter_counts` gives for a headless view."""
    total = sum(map(math.prod, base_shapes(config, cache).values()))
    sizes = adapted_sizes(config, cache)
    return total + sizes.added, total if sizes.trained is None else sizes.trained


def base_shapes(config: BackboneConfig, cache: Path) -> Shapes:
    """Tensors of the base model; nothing is made and no weights are fetched for it.

    Raises:
        ConfigError: no such model.
    """
    stated = _stated(config, cache)
    if stated is not None:
        return SHAPES.get(str(stated.get("model_type")), llama_shapes)(stated)
    if is_made(config.path, cache) or config.path.partition(":")[0] in ("random", "wheel"):
        found = tensor_shapes(resolve(config.path, cache))
    else:
        found = as_loaded(_hub_shapes(config))
    return encoder_shapes(found) if is_encoder(stated_config(config, cache)) else found


def dimensions_of(config: BackboneConfig, cache: Path) -> Dimensions:
    """Sizes of the base model, from the shapes of its tensors and its ``config.json``."""
    stated = _stated(config, cache)
    if stated is None and is_made(config.path, cache):
        stated = read_json(resolve(config.path, cache) / "config.json")
    shapes = base_shapes(config, cache)
    if stated is None or not sees(stated):
        return Dimensions.of(shapes, stated)
    # Of a model that sees: the language model, and every parameter. What its tower computes per
    # image is not counted.
    decoder = Dimensions.of(_language(shapes), stated["text_config"])
    return replace(decoder, total=sum(map(math.prod, shapes.values())))


def adapted_sizes(config: BackboneConfig, cache: Path) -> Sizes:
    """What a view of the backbone trains and adds; of a model that sees, what is trained of it."""
    shapes, dimensions = base_shapes(config, cache), dimensions_of(config, cache)
    if not sees_at(config.path) or config.vision == "all":
        return config.adapter.sizes(shapes, dimensions)
    stated = read_json(resolve(config.path, cache) / "config.json") or {}
    family = family_of(str(stated.get("model_type")))
    frozen = {family.tower} if config.vision else {family.tower, *family.connector}
    own = {name: shape for name, shape in shapes.items() if frozen.isdisjoint(name.split("."))}
    sizes = config.adapter.sizes(own, dimensions)
    if sizes.trained is not None:
        return sizes
    return replace(sizes, trained=sum(map(math.prod, own.values())))


def _language(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not is_visual(name)}


def _stated(config: BackboneConfig, cache: Path) -> Mapping[str, Any] | None:
    """Return what is known of a model that is not here, without asking anybody."""
    if is_made(config.path, cache):
        return None
    if config.path in _MADE_LATER:
        return _MADE_LATER[config.path]
    return PUBLISHED.get(config.path) if config.revision is None else None


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


def flops_per_token(total: int, trained: int) -> float:
    """Arithmetic of training on one token: ``2N`` forward, ``2N`` back to the activations, ``2n``.

    ``N`` is all parameters (head included) and ``n`` the trained ones: ``6N`` when all are trained,
    about ``4N`` for adapters, whose frozen matrices need no weight gradient.
    """
    return 4.0 * total + 2.0 * trained


def training_flops(total: int, trained: int, tokens: int) -> float:
    """`flops_per_token` times the tokens that go through forward and backward."""
    return flops_per_token(total, trained) * tokens
