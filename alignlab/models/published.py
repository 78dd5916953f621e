"""Dimensions of well-known models as their ``config.json`` states them: planned without a hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _llama(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: int, shared: int,
    *, tied: bool = False, bias: bool = False,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": "qwen2" if bias else "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "tie_word_embeddings": tied,
    }


# vocabulary, hidden, inner, layers, query heads, key heads
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "huggyllama/llama-7b": _llama(32000, 4096, 11008, 32, 32, 32),
    "meta-llama/Llama-2-7b-hf": _llama(32000, 4096, 11008, 32, 32, 32),
    "meta-llama/Llama-2-13b-hf": _llama(32000, 5120, 13824, 40, 40, 40),
    "meta-llama/Llama-2-70b-hf": _llama(32000, 8192, 28672, 80, 64, 8),
    "meta-llama/Llama-3.1-8B": _llama(128256, 4096, 14336, 32, 32, 8),
    "meta-llama/Llama-3.1-8B-Instruct": _llama(128256, 4096, 14336, 32, 32, 8),
    "meta-llama/Llama-3.1-70B": _llama(128256, 8192, 28672, 80, 64, 8),
    "meta-llama/Llama-3.1-70B-Instruct": _llama(128256, 8192, 28672, 80, 64, 8),
    "mistralai/Mistral-7B-v0.1": _llama(32000, 4096, 14336, 32, 32, 8),
    "Qwen/Qwen2.5-0.5B": _llama(151936, 896, 4864, 24, 14, 2, tied=True, bias=True),
    "Qwen/Qwen2.5-1.5B": _llama(151936, 1536, 8960, 28, 12, 2, tied=True, bias=True),
    "Qwen/Qwen2.5-7B": _llama(152064, 3584, 18944, 28, 28, 4, bias=True),
    "Qwen/Qwen2.5-7B-Instruct": _llama(152064, 3584, 18944, 28, 28, 4, bias=True),
    "Qwen/Qwen2.5-72B": _llama(152064, 8192, 29568, 80, 64, 8, bias=True),
    "openai-community/gpt2-large": {
        "model_type": "gpt2", "vocab_size": 50257, "n_embd": 1280, "n_layer": 36, "n_head": 20,
        "n_positions": 1024, "tie_word_embeddings": True,
    },
    "EleutherAI/pythia-1.4b": {
        "model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
