"""Tiny random vision-language models with their processors, and pictures to show them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from alignlab.models.tiny import byte_tokenizer

SIZE, PATCH = 28, 14
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def _tokenizer(*tokens: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", *tokens]})
    tokenizer.chat_template = CHAT
    return tokenizer


def _text(tokenizer: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.1,
        "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def make_llava(folder: Path, vision: str = "clip") -> Path:
    """Write a Llava of two layers each: CLIP or SigLIP and a Llama; an image is 4 tokens."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _tokenizer()
    seen = {
        "model_type": f"{vision}_vision_model", "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": PATCH,
        "initializer_range": 0.1,
    }  # fmt: skip
    strategy = "default" if vision == "clip" else "full"
    config = LlavaConfig(
        vision_config=seen, text_config=_text(tokenizer), vision_feature_select_strategy=strategy,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
    )  # fmt: skip
    processor = LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
        ),
        tokenizer, patch_size=PATCH, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(vision == "clip"), chat_template=CHAT,
    )  # fmt: skip
    return _write(folder, LlavaForConditionalGeneration, config, processor)


def make_llava_next(folder: Path) -> Path:
    """Write a Llava-NeXT of two layers each: an image is seen whole and in tiles."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    tokenizer = _tokenizer()
    grid = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE]]
    seen = {
        "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": PATCH,
        "initializer_range": 0.1,
    }  # fmt: skip
    config = LlavaNextConfig(
        vision_config=seen, text_config=_text(tokenizer), image_grid_pinpoints=grid,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
    )  # fmt: skip
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE},
            image_grid_pinpoints=grid,
        ),
        tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT,
    )  # fmt: skip
    return _write(folder, LlavaNextForConditionalGeneration, config, processor)


def make_idefics(folder: Path, kind: str = "idefics3") -> Path:
    """Write an Idefics3 or SmolVLM of two layers each; large images are cut into tiles."""
    import transformers
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[kind]
    tiles = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
    tokenizer = _tokenizer("<fake_token_around_image>", "<global-img>", *tiles)
    seen = {
        "model_type": f"{kind}_vision", "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 7,
        "initializer_range": 0.1,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        vision_config=seen, text_config=_text(tokenizer), scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=False,
        pad_token_id=0,
    )  # fmt: skip
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * SIZE}, max_image_size={"longest_edge": SIZE},
        do_image_splitting=True,
    )  # fmt: skip
    # SmolVLM's own processor needs torchvision, for videos; of images it makes the same.
    processor = transformers.Idefics3Processor(
        pictures, tokenizer, image_seq_len=4, chat_template=CHAT
    )
    return _write(
        folder, getattr(transformers, f"{name}ForConditionalGeneration"), config, processor
    )


def _write(folder: Path, model: Any, config: Any, processor: Any) -> Path:
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = model(config)
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(number: int, width: int = 40, height: int = 30) -> Image.Image:
    """A picture of noise, another one for every number."""
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def save_pictures(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Write pictures of these sizes; returns their names."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    names = [f"photos/{number}.png" for number in range(len(sizes))]
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        picture(number, *size).save(folder / name)
    return names


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
