"""The page that helps to choose says of every technique what the technique says of itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import alignlab
from alignlab.compose import compose, conf_dir
from alignlab.models.load import BackboneConfig
from alignlab.typed import build

PAGE = Path(alignlab.__file__).parent / "models" / "README.md"
NAMES = sorted(path.stem for path in (conf_dir() / "adapter").glob("*.yaml"))


def table() -> dict[str, tuple[str, str]]:
    """Adapter → what its row says of merging and of ZeRO."""
    rows = {}
    text = PAGE.read_text(encoding="utf-8").partition("## Which technique?")[2]
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 5:
            rows |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), (cells[2], cells[3]))
    return rows


def test_every_technique_has_a_row() -> None:
    assert sorted(table()) == NAMES


@pytest.fixture(scope="module")
def backbone() -> dict[str, Any]:
    return dict(compose(["backbone=tiny"])["backbone"])


@pytest.mark.parametrize("name", NAMES)
def test_a_row_says_what_merges_and_what_is_shared_out(name: str, backbone: Any) -> None:
    node = yaml.safe_load((conf_dir() / "adapter" / f"{name}.yaml").read_text(encoding="utf-8"))
    technique = build(BackboneConfig, {**backbone, "adapter": node}, "backbone").adapter
    merges, zero = table()[name]
    highest, reason = technique.zero
    assert zero == (f"0–{highest}" if highest else "0")
    assert bool(reason) == (highest < 3)
    assert (merges == "no") == bool(technique.unmergeable)
