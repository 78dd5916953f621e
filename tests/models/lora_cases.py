"""A tiny Llama, and LoRA with an update that is not zero."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def llama() -> LlamaForCausalLM:
    """Two layers with grouped heads and biases, logits far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def adapted(base: torch.nn.Module, **options: Any) -> Any:
    """The model with an adapter of rank 4 on all linear layers, unless ``options`` say other."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "lora_dropout": 0.0}
    return stirred(get_peft_model(base, LoraConfig(**{**settings, **options})))


def stirred(model: Any) -> Any:
    """The model with second factors away from zero, where they start."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model
