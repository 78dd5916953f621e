"""conf/data/*.yaml and the sources' fields are one-to-one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from alignlab.data.sources import tables as sources

CONF = Path(__file__).resolve().parents[2] / "conf" / "data"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_field_has_a_value_and_a_comment(path):
    text = path.read_text()
    values = yaml.safe_load(text)
    cls = getattr(sources, values.pop("_target_").rsplit(".", 1)[-1])
    assert set(values) == {f.name for f in fields(cls)}
    cls(**values)
    assert set(values["limit"]) == set(sources.SPLITS)
    for line in text.splitlines()[2:]:
        if not line.startswith(" "):
            assert "#" in line, line
