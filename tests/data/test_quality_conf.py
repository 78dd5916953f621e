"""conf/quality/*.yaml and the steps' fields are one-to-one, and each plans."""

from __future__ import annotations

from dataclasses import fields

import pytest
import yaml
from quality_rows import refined, write

from alignlab.compose import compose, conf_dir
from alignlab.data.quality.refined import Refined
from alignlab.data.quality.step import Step
from alignlab.data.sources.source import SPLITS
from alignlab.spec import build, locate, parse

STEPS = sorted((conf_dir() / "quality").glob("*.yaml"))
SOURCES = {"refined": "source", "from_run": "origin", "self_instruct": "source"}


@pytest.mark.parametrize("path", STEPS, ids=lambda p: p.stem)
def test_every_field_has_a_value_and_a_comment(path):
    text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    step = build(parse(values, path.stem))
    assert isinstance(step, Step)
    assert set(values) == {f.name for f in fields(step)} | {"_target_"}
    assert set(step.splits) <= set(SPLITS)
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    for line in lines[2:]:
        if not line.startswith(" ") and not line.startswith("_target_"):
            assert "#" in line, line


@pytest.mark.parametrize("name", SOURCES)
def test_sources_have_a_comment_for_every_field(name):
    path = conf_dir() / "data" / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    cls = locate(values.pop("_target_"), name)
    named = {f.name for f in fields(cls) if f.init}
    assert set(values) - {"defaults"} == named - {SOURCES[name]} - {"steps"}
    for line in text.splitlines():
        if line[:1].isalpha() and not line.startswith(("defaults", "_target_")):
            assert "#" in line, line


@pytest.mark.slow
def test_refined_offers_every_step_and_its_defaults_are_of_use(tmp_path):
    steps = compose(["data=refined", "data.source.path=x"])["data"]["steps"]
    assert set(steps) == {path.stem for path in STEPS}
    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(60)]
    data = refined(write(tmp_path / "rows.jsonl", rows))
    assert isinstance(data, Refined)
    assert data.load("sft")
    assert data.card()["splits"]["sft"][-1]["step"] == "statistics"
