"""Small flat batches, backbone configurations and random models of many architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from alignlab.data.group import NONE, TokenGroup
from alignlab.data.pack import flatten
from alignlab.models.backbone import Backbone
from alignlab.models.load import Adapter, BackboneConfig
from alignlab.tensors import FlatBatch

# Lengths of prompt and completions, unlike in every way; a prompt and a completion of 1.
SIZES = ((5, (4, 2, 7)), (9, (3,)), (1, (1, 6)), (17, (20, 11)))


def make_batch(sizes: Sequence[tuple[int, Sequence[int]]] = SIZES, seed: int = 0) -> FlatBatch:
    random = np.random.default_rng(seed)

    def ids(count: int) -> np.ndarray:
        return random.integers(4, 90, count).astype(np.int32)

    return flatten(
        [
            TokenGroup(ids(prompt), tuple(map(ids, parts)), NONE, row=row, id=str(row))
            for row, (prompt, parts) in enumerate(sizes)
        ]
    )


def backbone_config(rank: int | None = None, **changes: Any) -> BackboneConfig:
    adapter = Adapter(
        rank=rank,
        alpha=8.0,
        dropout=changes.pop("dropout", 0.0),
        target_modules=changes.pop("target_modules", "all-linear"),
    )
    values: dict[str, Any] = {
        "path": "random:tiny",
        "revision": None,
        "adapter": adapter,
        "dtype": "float32",
        "layout": "auto",
        "gradient_checkpointing": False,
    }
    return BackboneConfig(**{**values, **changes})


def perturb(backbone: Backbone, name: str, scale: float = 0.05, seed: int = 1) -> None:
    """Move a trainable view away from where it started (fresh adapters are a zero update)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.trainable_parameters(name).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def architecture(model_type: str, **changes: Any) -> Any:
    """Tiny configuration of a model type, two layers, 97 tokens."""
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, **{**_arguments(model_type), **changes})


def _arguments(model_type: str) -> dict[str, Any]:
    narrow = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97}
    other: dict[str, dict[str, Any]] = {
        "gpt2": {**narrow, "n_positions": 128},
        "gptj": {**narrow, "rotary_dim": 4},
        "codegen": {**narrow, "rotary_dim": 4},
        "gpt_neo": {
            "hidden_size": 32,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "num_heads": 4,
            "vocab_size": 97,
            "window_size": 4,
        },
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97},
        "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 97},
        "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 97},
        "mamba2": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "vocab_size": 97,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
        },
        "falcon": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 97,
        },
    }
    if model_type in other:
        return other[model_type]
    common = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if model_type == "opt":
        common |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
    if model_type.startswith(("gemma", "qwen3")):
        common |= {"head_dim": 8}
    if "moe" in model_type:
        common |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return common


def random_model(config: Any, seed: int = 0) -> Any:
    """Model with weights large enough for attention to matter, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    from alignlab.models.grouped_attention import register

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=register()).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model
