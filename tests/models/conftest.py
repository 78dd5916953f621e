"""Fixtures of the models room: a cache with the tiny model, a flat batch, a backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_cases import backbone_config, make_batch

from alignlab.models.backbone import Backbone
from alignlab.models.load import resolve
from alignlab.tensors import FlatBatch


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    resolve("random:tiny", folder)
    return folder


@pytest.fixture
def batch() -> FlatBatch:
    return make_batch()


@pytest.fixture(params=[None, 4], ids=["full", "lora"])
def rank(request: pytest.FixtureRequest) -> int | None:
    return request.param


@pytest.fixture
def open_backbone(cache: Path) -> Callable[..., Backbone]:
    def make(rank: int | None = None, seed: int = 0, **changes: Any) -> Backbone:
        return Backbone.load(backbone_config(rank, **changes), cache, seed=seed)

    return make
