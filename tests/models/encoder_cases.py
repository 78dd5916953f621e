"""Tiny random encoders with tokenizers of their kinds: WordPiece as BERT's, bytes as RoBERTa's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = "the quick brown fox jumps over a lazy dog 0123456789 klmnop abcdef"


def wordpiece() -> Any:
    """``[CLS] a [SEP] b [SEP]``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({*WORDS, *"ghqrtuvwxyz"} - {" "})
    pieces = [*special, *letters, *(f"##{x}" for x in letters), *WORDS.split()]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(names, special, strict=True)))


def byte_level() -> Any:
    """``<s> a </s></s> b </s>``; one token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, cls_token="<s>", pad_token="<pad>", sep_token="</s>",
        unk_token="<unk>", bos_token="<s>", eos_token="</s>",
    )  # fmt: skip


def encoder_config(kind: str, tokenizer: Any, positions: int = 98) -> Any:
    """Tiny configuration of a model type: H = 32, I = 48, two layers (ModernBERT: three)."""
    from transformers import AutoConfig

    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
        "pad_token_id": tokenizer.pad_token_id,
    }
    more: dict[str, dict[str, Any]] = {
        "deberta-v2": {
            "relative_attention": True,
            "position_buckets": 16,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        "modernbert": {
            "local_attention": 20,  # ten tokens to either side: longer rows are padded
            "num_hidden_layers": 3,  # a layer that sees all, and two with the window
            **dict.fromkeys(("bos_token_id", "eos_token_id"), None),
            "cls_token_id": tokenizer.cls_token_id,
            "sep_token_id": tokenizer.sep_token_id,
        },
        "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
        "electra": {"embedding_size": 16},
    }
    return AutoConfig.for_model(kind, **{**common, **more.get(kind, {})})


def make_encoder(kind: str, folder: Path, positions: int = 98) -> Any:
    """Write a random encoder with its tokenizer to ``folder``; returns transformers' own model."""
    from transformers import AutoModel

    roberta = kind in ("roberta", "xlm-roberta", "camembert")
    tokenizer = byte_level() if roberta else wordpiece()
    torch.manual_seed(0)
    model = AutoModel.from_config(encoder_config(kind, tokenizer, positions)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # large enough for attention to matter
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
