from __future__ import annotations

import pytest
from model_cases import backbone_config

from alignlab.models.load import resolve
from alignlab.models.memory import (
    _MADE_LATER,
    flops_per_token,
    llama_shapes,
    parameter_count,
    parameter_counts,
    tensor_shapes,
    training_flops,
)


def test_counts_agree_with_the_loaded_model(open_backbone, rank, cache) -> None:
    backbone = open_backbone(rank)
    backbone.add("policy", source=None, trainable=True)
    assert parameter_counts(backbone.config, cache) == backbone.parameter_counts("policy")


@pytest.mark.parametrize("modules", ["q_proj", ("q_proj", "down_proj")])
def test_counts_of_chosen_modules(open_backbone, modules, cache) -> None:
    backbone = open_backbone(3, target_modules=modules)
    backbone.add("policy", source=None, trainable=True)
    assert parameter_counts(backbone.config, cache) == backbone.parameter_counts("policy")


def test_what_is_stated_of_the_tiny_model_is_true(cache, tmp_path) -> None:
    stated = llama_shapes(_MADE_LATER["random:tiny"])
    assert stated == tensor_shapes(resolve("random:tiny", cache))
    assert parameter_counts(backbone_config(), tmp_path) == (26880, 26880)
    assert not any(tmp_path.iterdir())  # nothing was made for the count


def test_smollm2_by_hand() -> None:
    # Embedding 49,152·576; a layer 2·576² + 2·192·576 + 3·1536·576 + 2·576; 30 of them; a norm.
    layer = 2 * 576**2 + 2 * 192 * 576 + 3 * 1536 * 576 + 2 * 576
    assert parameter_count(_MADE_LATER["wheel:smollm2"]) == 49152 * 576 + 30 * layer + 576
    assert parameter_count(_MADE_LATER["wheel:smollm2"]) == 134_515_008


def test_flops_by_hand() -> None:
    assert flops_per_token(10, 10) == 60
    assert training_flops(10, 1, 7) == (40 + 2) * 7
