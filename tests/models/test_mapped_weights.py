"""A float32 file is mapped while it is read; a frozen model in bfloat16 keeps nothing of it."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from alignlab.models.tiny import make_tiny
from alignlab.models.weights import load_model

MAPS = Path("/proc/self/maps")


@pytest.mark.slow
@pytest.mark.skipif(not MAPS.is_file(), reason="no /proc/self/maps, so mappings are not seen here")
@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, False), (torch.float32, True)])
def test_a_frozen_model_keeps_no_mapping_that_it_does_not_use(
    dtype: torch.dtype, kept: bool, tmp_path: Path
) -> None:
    make_tiny(tmp_path)
    model = load_model(tmp_path, "cpu", dtype, "grouped", trainable=False)
    gc.collect()
    # In float32 the weights are the file; in bfloat16 embedding and norms are float32 copies.
    assert (str(tmp_path / "model.safetensors") in MAPS.read_text()) is kept
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.weight.dtype == dtype
