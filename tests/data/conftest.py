"""Fixtures of the data room: small tokenizers, and the folder of the optional data sets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_tokenizers import (
    chatml_tokenizer,
    gemma_tokenizer,
    llama3_tokenizer,
    plain_tokenizer,
    tokenizer_factory,
)

__all__ = [
    "chatml_tokenizer",
    "gemma_tokenizer",
    "llama3_tokenizer",
    "plain_tokenizer",
    "shared_data",
    "tokenizer_factory",
]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the large optional data sets; the test is skipped without it."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("ALIGNLAB_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"optional data sets not found: set ALIGNLAB_SHARED_DATA (tried {folder})")
    return folder
