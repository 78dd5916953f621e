"""Sizes of models from their shapes, and shapes of models from their configurations."""

from __future__ import annotations

import pytest
from model_cases import backbone_config

from alignlab.models.dimensions import Dimensions
from alignlab.models.load import resolve
from alignlab.models.memory import (
    SHAPES,
    dimensions_of,
    llama_shapes,
    parameter_count,
    tensor_shapes,
)
from alignlab.models.published import PUBLISHED


def test_a_llama_by_hand() -> None:
    stated = {
        "vocab_size": 10, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    found = Dimensions.of(llama_shapes(stated), stated)
    # q and o 8·8, k and v 4·8, three of 16·8; two norms of 8
    matrices, norms = 2 * 64 + 2 * 32 + 3 * 128, 16
    assert found == Dimensions(
        layers=3, hidden=8, inner=16, queries=8, keys=4, heads=4, vocabulary=10, gated=True,
        tied=True, total=3 * (matrices + norms) + 80 + 8, matrices=3 * matrices,
        largest=matrices + norms, linear_widths=3 * (2 * 16 + 2 * 12 + 3 * 24), linear_count=7,
    )  # fmt: skip
    assert not Dimensions.of(llama_shapes({**stated, "tie_word_embeddings": False})).tied


def test_the_packaged_model(tmp_path) -> None:
    found = dimensions_of(backbone_config(path="package:reviews_lm"), tmp_path)
    assert (found.layers, found.hidden, found.inner, found.heads) == (4, 256, 640, 8)
    assert (found.queries, found.keys, found.vocabulary, found.tied) == (256, 128, 4096, True)
    assert found.total == parameter_count(resolve("package:reviews_lm", tmp_path)) == 3_803_392


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("huggyllama/llama-7b", 6.738),
        ("meta-llama/Llama-2-13b-hf", 13.016),
        ("meta-llama/Llama-2-70b-hf", 68.977),
        ("meta-llama/Llama-3.1-8B", 8.030),
        ("meta-llama/Llama-3.1-70B", 70.554),
        ("mistralai/Mistral-7B-v0.1", 7.242),
        ("Qwen/Qwen2.5-7B", 7.616),
        ("Qwen/Qwen2.5-0.5B", 0.494),
        ("openai-community/gpt2-large", 0.774),
        ("EleutherAI/pythia-1.4b", 1.415),
    ],
)
def test_published_models_have_the_parameters_that_they_are_named_for(name, billions) -> None:
    stated = PUBLISHED[name]
    shapes = SHAPES.get(stated["model_type"], llama_shapes)(stated)
    found = Dimensions.of(shapes, stated)
    assert found.total / 1e9 == pytest.approx(billions, abs=6e-4)
    if stated["model_type"] in ("gpt2", "gpt_neox"):
        assert (found.inner, found.gated) == (4 * found.hidden, False)


def test_a_published_model_is_planned_without_a_hub(tmp_path) -> None:
    found = dimensions_of(backbone_config(path="meta-llama/Llama-2-70b-hf"), tmp_path)
    assert (found.layers, found.keys, found.heads) == (80, 1024, 64)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen2"])
def test_shapes_are_those_of_transformers(kind: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {
        "gpt2": {"vocab_size": 11, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16},
        "gpt_neox": {
            "vocab_size": 11, "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "qwen2": {
            "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2,
        },
    }[kind]  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small))
    theirs = {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert SHAPES.get(kind, llama_shapes)({**small, "model_type": kind}) == theirs


def test_shapes_of_a_file_are_read_from_its_header(tmp_path) -> None:
    shapes = tensor_shapes(resolve("package:reviews_lm", tmp_path))
    assert Dimensions.of(shapes).heads == 4  # without the configuration: 256 / 64
