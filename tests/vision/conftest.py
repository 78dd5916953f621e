"""The tiny vision-language models, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from vision_lab import make_idefics, make_llava, make_llava_next


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def models(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "llava": llava,
        "llava_siglip": make_llava(tmp_path_factory.mktemp("siglip"), "siglip"),
        "llava_next": make_llava_next(tmp_path_factory.mktemp("next")),
        "idefics3": make_idefics(tmp_path_factory.mktemp("idefics3")),
        "smolvlm": make_idefics(tmp_path_factory.mktemp("smolvlm"), "smolvlm"),
    }
