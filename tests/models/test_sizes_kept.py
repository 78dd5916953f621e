"""What techniques say of the activations that a backward pass needs, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignlab.compose import compose, conf_dir
from alignlab.models.load import BackboneConfig
from alignlab.models.memory import base_shapes, dimensions_of
from alignlab.models.techniques import Sizes
from alignlab.typed import build

CACHE = Path("/nonexistent")  # the model is in the package


@pytest.fixture(scope="module")
def stated() -> dict[str, Any]:
    return dict(compose(["backbone=reviews_lm"])["backbone"])  # of four layers


def sizes(stated: dict[str, Any], name: str, **changes: Any) -> Sizes:
    node = yaml.safe_load((conf_dir() / "adapter" / f"{name}.yaml").read_text(encoding="utf-8"))
    config = build(BackboneConfig, {**stated, "adapter": {**node, **changes}}, "backbone")
    return config.adapter.sizes(base_shapes(config, CACHE), dimensions_of(config, CACHE))


@pytest.mark.parametrize(
    ("name", "changes", "reached"),
    [
        ("lora", {}, None),
        ("last_layers", {}, 2),
        ("last_layers", {"last_layers": 1}, 1),
        ("head_only", {}, 0),
        ("layernorm", {}, 4),
        ("named_layers", {"parameters": ["*.1.mlp.*"]}, 3),
        ("named_layers", {"parameters": ["*embed*"]}, 4),
    ],
)
def test_a_backward_pass_ends_at_the_lowest_layer_that_trains(
    name: str, changes: Any, reached: int | None, stated: dict[str, Any]
) -> None:
    assert sizes(stated, name, **changes).reached == reached


def test_what_is_kept_for_it(stated: dict[str, Any]) -> None:
    found = {name: sizes(stated, name) for name in ("lora", "dora", "prefix", "prompt", "houlsby")}
    assert {name: each.still for name, each in found.items() if each.still} == {
        "prefix": True,
        "prompt": True,
    }
    assert {name: each.kept for name, each in found.items() if each.kept} == {"dora": 2}
