"""The section on the trials of a sweep, over a made-up study."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from fake_study import FakeStore, write_study

from alignlab.report.analysis import analyse
from alignlab.report.page import write_report
from alignlab.report.table import read_study
from alignlab.report.trials import FILE, part, trial_rows

TRIALS: dict[str, Any] = {
    "sampler": {"_target_": "alignlab.commands.sweeper.samplers.tpe", "seed": 0},
    "split": "validation",
    "objectives": [{"name": "evaluate/gold", "direction": "maximize"}],
    "n_trials": 5,
    "trials": [
        {"number": 0, "state": "done", "params": {"beta": 0.1, "objective": "ipo"},
         "values": [0.25], "reason": ""},
        {"number": 1, "state": "done", "params": {"beta": 0.3, "objective": "<dpo>"},
         "values": [0.5], "reason": ""},
        {"number": 2, "state": "diverged", "params": {"beta": 9.0, "objective": "ipo"},
         "values": None, "reason": "the loss is not finite"},
        {"number": 3, "state": "failed", "params": {"beta": 1.0, "objective": "ipo"},
         "values": None, "reason": "out of memory"},
    ],
    "best": [1],
}  # fmt: skip


def shown(fake: FakeStore, name: str, content: dict[str, Any] | None) -> Any:
    if content is not None:
        (fake.studies / name / FILE).write_text(json.dumps(content))
    analysis = analyse(read_study(name, fake), draws=20)
    return part(analysis, {}, fake.root)


@pytest.fixture
def study(tmp_path: Path) -> tuple[FakeStore, str]:
    write_study(tmp_path)
    return FakeStore(tmp_path), "demo"


@pytest.mark.slow
def test_every_trial_is_shown_best_first(study: tuple[FakeStore, str]) -> None:
    found = shown(*study, TRIALS)
    order = [found.html.index(f">{text}<") for text in ("0.5", "0.25")]
    assert order == sorted(order)
    assert "<b>1</b>" in found.html
    assert "<b>0</b>" not in found.html
    assert "4 of 5 trials, chosen by tpe: 2 done, 1 diverged, 1 failed" in found.html
    assert "diverged: the loss is not finite" in found.html
    assert "on validation prompts" in found.html
    assert "&lt;dpo&gt;" in found.html
    assert "<dpo>" not in found.html
    [doubt] = found.concerns
    assert "2 of 4 trials: 1 diverged, 1 failed" in doubt.text


def test_rows_for_files_have_every_trial() -> None:
    rows = trial_rows(TRIALS)
    assert [row["trial"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["evaluate/gold"] == 0.5
    assert rows[2] == {
        "trial": 2,
        "state": "diverged",
        "evaluate/gold": None,
        "beta": 9.0,
        "objective": "ipo",
        "reason": "the loss is not finite",
    }


@pytest.mark.slow
def test_a_choice_on_test_prompts_is_a_serious_doubt(study: tuple[FakeStore, str]) -> None:
    found = shown(*study, {**TRIALS, "split": "test"})
    assert "chosen on test prompts" in {doubt.topic for doubt in found.concerns}
    assert "on validation prompts" not in found.html


@pytest.mark.slow
def test_a_study_without_a_sweep_has_no_such_section(study: tuple[FakeStore, str]) -> None:
    assert shown(*study, None).html == ""


@pytest.mark.slow
def test_the_page_has_the_chapter_and_its_table(study: tuple[FakeStore, str]) -> None:
    fake, name = study
    (fake.studies / name / FILE).write_text(json.dumps(TRIALS))
    path = write_report(analyse(read_study(name, fake), draws=20), fake)
    assert 'id="trials"' in path.read_text(encoding="utf-8")
    [table] = list(path.parent.rglob("sweep_trials.csv"))
    assert len(list(csv.reader(table.open()))) == 5
