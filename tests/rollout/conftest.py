from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from alignlab.models.grouped_attention import register

VOCABULARY = 24
EOS = 2


@pytest.fixture(scope="session", params=["waves", "slots"])
def llama(request) -> LlamaForCausalLM:
    """Two layers, grouped-query attention, logits far from uniform; for both ways of decoding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_id=EOS,
    )
    if request.param == "slots":
        return AutoModelForCausalLM.from_config(config, attn_implementation=register()).eval()
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    """Learned absolute positions, dropout 0.5, in training mode."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.5,
        embd_pdrop=0.5,
        attn_pdrop=0.5,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    return GPT2LMHeadModel(config).train()


@pytest.fixture(scope="session")
def prompts() -> list[np.ndarray]:
    """Seven prompts of six different lengths, 1 to 9, no EOS inside."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCABULARY, size).astype(np.int32) for size in (3, 1, 9, 5, 3, 7, 4)]


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE with BOS first, 300 tokens; ids 0 pad, 1 BOS, 2 EOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["the film was good and the acting very good ."] * 4, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>"
    )
