"""Signs of overfitting on the page: courses, gaps, verbatim copying, and the doubts they raise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fake_study import FakeStore, write_study
from test_benchmarks_part import write_rows

from alignlab.report.analysis import Analysis, analyse
from alignlab.report.overfitting.figure import drawn, trajectories
from alignlab.report.overfitting.numbers import copied, courses
from alignlab.report.overfitting.part import part
from alignlab.report.style import looks
from alignlab.report.table import read_study

NLL = [3.0, 2.5, 2.0, 2.1, 2.2, 2.3]  # best at the third of six evaluations, then 15 % worse


def evaluations(folder: Path, held_out: list[float], train: list[float], **record) -> None:
    """Add evaluations every ten steps to a run, and what was kept in the end."""
    rows = [
        {"step": 10 * (n + 1), "split": "eval", "nll": a, "train_nll": b, "nll_gap": a - b}
        for n, (a, b) in enumerate(zip(held_out, train, strict=True))
    ]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    known = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(known | record))


def copies(extra: float, recites: float) -> list[dict]:
    """24 prompts: human texts copy a tenth of their 4-grams, the policy ``extra`` more."""
    rows = []
    for i in range(24):
        human = 0.1 + 0.02 * (i % 3)
        for name, value in (("copied_4", human + extra), ("copied_4_human", human)):
            rows.append({"task": "copying", "metric": name, "item": f"p{i}", "value": value})
        for name, value in (("longest_copy", 5.0 + i % 2), ("longest_copy_human", 5.0 + i % 2)):
            rows.append({"task": "copying", "metric": name, "item": f"p{i}", "value": value})
        for name, value in (("extracted", float(i < 24 * recites)), ("extracted_held_out", 0.0)):
            rows.append({"task": "copying", "metric": name, "item": f"r{i}", "value": value})
    return rows


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """SFT overfits with seed 0 and is stopped in time with seed 1; DPO copies and recites."""
    root = tmp_path_factory.mktemp("overfitted")
    write_study(root, prompts=12, missing=False, benchmarked=True)
    [file] = root.glob("studies/*/study.json")
    for job in json.loads(file.read_text())["jobs"]:
        seed, stages = job["seed"], job["stages"]
        kept = {"summary": {"validation_nll": NLL[-1], "train_nll": 1.5}}
        if seed == 1:
            kept = {"summary": {"validation_nll": 2.0, "train_nll": 1.8}, "best_step": 30}
        evaluations(root / stages["sft"], NLL, [2.9, 2.4, 1.8, 1.7, 1.6, 1.5], **kept)
        summary = {"summary": {"validation_accuracy": 0.7, "train_accuracy": 0.9 - 0.1 * seed}}
        evaluations(root / stages["reward"], [], [], **summary)
        for name, run in stages.items():
            if name.startswith("benchmark_"):
                much = name == "benchmark_dpo"
                write_rows(root / run, copies(0.3 * much, 0.5 * much), better={})
    return analyse(read_study("demo", FakeStore(root)), draws=200)


@pytest.mark.slow
def test_courses_by_hand(analysis: Analysis) -> None:
    named = courses(analysis).items()
    found = {title: {c.run.record["seed"]: c for c in own} for title, own in named}
    [(first, second)] = [(own[0], own[1]) for title, own in found.items() if "sft" in title.lower()]
    assert (first.best, first.since, first.restored) == (2, 3, False)
    assert first.worse == pytest.approx(0.15)  # 2.3 / 2.0 − 1
    assert first.gap == pytest.approx(0.8)  # 2.3 − 1.5
    assert (second.restored, second.gap) == (True, pytest.approx(0.2))
    [reward] = [own for title, own in found.items() if "reward" in title]
    assert reward[0].gap == pytest.approx(0.2)  # of an accuracy: trained on minus held out
    assert (reward[0].best, reward[0].since, reward[0].worse) == (None, 0, 0.0)
    assert not [t for t in found if "DPO" in t]  # which measured nothing


def test_doubts(analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignlab.report.overfitting.part.picture", lambda *_, **__: "")
    made = part(analysis, looks(analysis.study.methods), tmp_path)
    said = {(c.level, c.topic): c.text for c in made.concerns}
    assert len(said) == len(made.concerns) - 1  # two gaps
    late = said["serious", "overfitting"]
    assert "seed 0)" in late
    assert "lowest at step 30 (2.000)" in late
    assert "all 3 evaluations since (at last 2.300)" in late
    gaps = [c.text for c in made.concerns if c.topic == "generalisation gap"]
    assert any("nll is 1.500" in text and "2.300" in text and "seed 0)" in text for text in gaps)
    assert any("accuracy is 0.900" in text and "seed 0)" in text for text in gaps)  # 0.1: seed 1
    recited = said["serious", "verbatim copying"]
    assert recited.startswith("DPO repeats")
    assert "copied 4 0.42 against 0.12" in recited
    assert "extracted 0.5 against 0" in recited
    assert "longest" not in recited
    assert set(made.tables) == {"overfitting", "copying"}
    [row] = [r for r in made.tables["overfitting"] if r["measure"] == "nll" and r["seed"] == 0]
    assert (row["best_step"], row["evaluations_since"], row["gap"]) == (30, 3, pytest.approx(0.8))
    assert "Verbatim copying" in made.html


def test_copying_is_compared_on_the_same_prompts(analysis: Analysis) -> None:
    found = {(c.method.label, c.metric): c for c in copied(analysis)}
    dpo, ipo = found["DPO", "copied_4"], found["IPO (mean)", "copied_4"]
    assert dpo.excess.value == pytest.approx(0.3)
    assert dpo.surely
    assert ipo.excess.value == pytest.approx(0)
    assert not ipo.surely
    assert found["DPO", "extracted"].surely
    assert found["DPO", "extracted"].excess is None
    assert [c.metric for c in copied(analysis) if c.method.label == "DPO"] == [
        "copied_4", "longest_copy", "extracted",
    ]  # fmt: skip


def test_the_figure_has_a_panel_for_what_was_evaluated(analysis: Analysis) -> None:
    panels = drawn(courses(analysis))
    assert [metric for _, metric in panels] == ["nll"]
    figure = trajectories(courses(analysis))
    lines = [line for ax in figure.axes for line in ax.get_lines()]
    assert len(lines) == 6  # of either seed: trained on, held out, and a ring
    assert trajectories({}) is None
    rings = [line for line in lines if line.get_marker() == "o"]
    places = [(float(r.get_xdata()[0]), float(r.get_ydata()[0])) for r in rings]
    assert places == [(30, 2.0)] * 2
    assert all(math.isfinite(y) for line in lines for y in line.get_ydata())


def test_a_study_without_evaluations_has_no_such_chapter(tmp_path: Path) -> None:
    write_study(tmp_path, prompts=12, missing=False)
    found = analyse(read_study("demo", FakeStore(tmp_path)), draws=50)
    assert not part(found, looks(found.study.methods), tmp_path).html
