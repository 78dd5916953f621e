"""conf/data/*.yaml and the sources' fields are one-to-one, and every group makes a source."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from alignlab.compose import compose
from alignlab.data.sources.mixture import Part
from alignlab.data.sources.source import SPLITS, Source
from alignlab.spec import build, locate, parse
from alignlab.typed import ABSENT

CONF = Path(__file__).resolve().parents[2] / "conf" / "data"
GROUPS = sorted(path.stem for path in CONF.glob("*.yaml"))


def stated(node):
    """The composed node with a value where a person must give one."""
    if isinstance(node, dict):
        return {key: stated(value) for key, value in node.items()}
    return "x" if node == ABSENT else node


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_every_field_has_a_value_and_a_comment(name):
    text = (CONF / f"{name}.yaml").read_text()
    composed = compose([f"data={name}"])["data"]
    cls = locate(composed["_target_"], "data")
    assert set(composed) - {"_target_"} == {f.name for f in fields(cls) if f.init}
    written = yaml.safe_load(text)
    assert set(written.get("limit", SPLITS)) == set(SPLITS)
    for line in text.splitlines()[2:]:
        key = line.partition(":")[0]
        if not line.startswith((" ", "#")) and key not in ("_target_", "defaults"):
            assert "#" in line, line


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_every_group_makes_a_source(name):
    source = build(parse(stated(compose([f"data={name}"])["data"]), "data"))
    assert isinstance(source, Source)


@pytest.mark.slow
def test_a_mixture_states_its_parts_and_takes_more():
    config = compose(["data=mixture"])["data"]
    keys = {f.name for f in fields(Part)}
    assert {name: set(part) for name, part in config["parts"].items()} == {
        "first": keys,
        "second": keys,
    }
    third = [
        "+data@data.parts.third.source=reviews",
        "+data.parts.third.weight=2.0",
        "+data.parts.third.count=5",
        "+data.parts.third.cap=null",
        "+data.parts.third.splits=[sft]",
    ]
    config = compose(["data=mixture", *third])["data"]
    made = build(parse(stated(config), "data"))
    assert list(made.parts) == ["first", "second", "third"]
    assert made.parts["third"].splits == ("sft",)
