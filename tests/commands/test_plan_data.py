"""What ``alignlab plan`` says of mixtures: has and gives, part by part, where counting is cheap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignlab.commands import plan_data
from alignlab.compose import compose
from alignlab.plan import Plan
from alignlab.run import Store


def texts(path: Path, count: int, length: int) -> str:
    rows = [{"text": f"{i:<{length}}"[:length]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def plan(tmp_path):
    """A study that reads 30 long documents, and 200 short ones as a quarter of the characters."""
    parts = [f"documents.parts.first.source.path={texts(tmp_path / 'a.jsonl', 30, 100)}"]
    parts += [f"documents.parts.second.source.path={texts(tmp_path / 'b.jsonl', 200, 10)}"]
    shares = [
        f"documents.parts.{name}.source.{split}=0.0"
        for name in ("first", "second")
        for split in ("validation", "test")
    ]
    config = compose(
        [
            *("pipeline=continued_pretrain", "experiment=smoke", "data@documents=mixture"),
            *("documents.mix=weight", "documents.measure=characters", *parts, *shares),
            *("documents.parts.first.weight=0.75", "documents.parts.second.weight=0.25"),
        ]
    )
    return Plan.from_configs([config], Store(tmp_path / "runs"))


@pytest.mark.slow
def test_the_parts_with_what_they_give(plan):
    """3,000 characters are ¾ of 4,000; the short ones give 1,000 of their 2,000."""
    lines = plan_data.mixtures(plan).strip().splitlines()
    assert lines[0].split() == ["mixture", "part", "has", "gives", "share"]
    assert lines[1].split() == ["continued", "first", "3,000", "3,000", "characters", "75.0%"]
    assert lines[2].split() == ["second", "2,000", "1,000", "characters", "25.0%"]
    assert len(lines) == 3  # stages that read no mixture have no line


@pytest.mark.slow
def test_large_files_are_counted_later(plan, monkeypatch):
    monkeypatch.setattr(plan_data, "MOST_BYTES", 100)
    said = plan_data.mixtures(plan).strip()
    assert said == "What the parts of the mixture give is counted when it runs: continued."


def test_a_plan_without_mixtures_says_nothing(tmp_path):
    config = compose(["pipeline=sft", "experiment=smoke"])
    assert plan_data.mixtures(Plan.from_configs([config], Store(tmp_path))) == ""
