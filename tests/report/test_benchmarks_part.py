"""Benchmarks on the page: paired differences from SFT, forgetting, reward models, doubts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_study import FakeStore, write_study
from scipy.stats import binomtest

from alignlab.report import statistics as st
from alignlab.report.analysis import Analysis, analyse
from alignlab.report.benchmarks.figure import calibration, changes
from alignlab.report.benchmarks.numbers import (
    headlines,
    linearised,
    reward_models,
    tables,
    verdict,
)
from alignlab.report.benchmarks.part import part
from alignlab.report.statistics import Interval
from alignlab.report.style import looks
from alignlab.report.table import read_study


def write_rows(folder: Path, rows: list[dict[str, Any]], **record: Any) -> None:
    """Replace a run's rows, and parts of its record."""
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(known | record))


def held_out(shift: float, seed: int) -> list[dict[str, Any]]:
    """A task of two metrics: nats of 30 documents (weights 1 to 3), a right answer or not."""
    noise = np.random.default_rng(seed).normal(0, 0.02, 30)
    nats = [
        {"task": "text", "metric": "nll_per_token", "item": f"d{i}", "weight": 1.0 + i % 3,
         "value": 3.0 + 0.1 * (i % 5) + shift + noise[i]}
        for i in range(30)
    ]  # fmt: skip
    right = [
        {"task": "sums", "metric": "accuracy", "item": f"q{i}",
         "value": float((i * 7) % 10 < 6 - 10 * shift)}
        for i in range(30)
    ]  # fmt: skip
    return nats + right


BETTER = {"text/nll_per_token": "lower", "sums/accuracy": "higher"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """DPO forgets 0.2 nats and two right answers of ten; IPO forgets nothing."""
    root = tmp_path_factory.mktemp("benchmarked")
    write_study(root, prompts=12, missing=False, benchmarked=True)
    [file] = root.glob("studies/*/study.json")
    for job in json.loads(file.read_text())["jobs"]:
        for name, run in job["stages"].items():
            if name.startswith("benchmark_"):
                shift = 0.2 if name == "benchmark_dpo" else 0.0
                write_rows(root / run, held_out(shift, job["seed"]), better=BETTER)
    return FakeStore(root)


@pytest.fixture(scope="module")
def analysis(study: FakeStore) -> Analysis:
    return analyse(read_study("demo", study), draws=400)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds to write; only one test looks at them."""
    monkeypatch.setattr("alignlab.report.benchmarks.part.picture", lambda *_, **__: "")


def test_a_metric_is_the_weighted_mean_of_its_rows() -> None:
    # R = (1·2 + 3·4) / 4 = 3.5; z = R + 2 · w / 4 · (v − R): 3.5 − 0.75, 3.5 + 0.75
    found = linearised({"a": [(1.0, 2.0)], "b": [(3.0, 4.0)]})
    assert found == {"a": pytest.approx(2.75), "b": pytest.approx(4.25)}
    # several rows of one item stay together: its mean, and the sum of their weights
    together = linearised({"a": [(1.0, 0.0), (1.0, 1.0)], "b": [(2.0, 1.0)]})
    assert together == {"a": 0.5, "b": 1.0}


def test_the_interval_of_a_weighted_mean_is_that_of_a_ratio() -> None:
    """Against the bootstrap that resamples items and divides anew each time."""
    source = np.random.default_rng(3)
    weights = source.integers(1, 40, 80).astype(float)
    values = source.normal(3.0, 0.4, 80)
    items = {str(i): [(w, v)] for i, (w, v) in enumerate(zip(weights, values, strict=True))}
    cells = np.array([list(linearised(items).values())])
    found = st.hierarchical_bootstrap(cells)
    picks = source.integers(0, 80, (4000, 80))
    ratios = (weights * values)[picks].sum(1) / weights[picks].sum(1)
    assert found.value == pytest.approx((weights * values).sum() / weights.sum())
    assert found.error == pytest.approx(ratios.std(), rel=0.1)


@pytest.mark.slow
def test_differences_from_sft_by_hand(analysis: Analysis) -> None:
    nats, sums = tables(analysis)
    assert (nats.task, nats.metric, nats.better, nats.items) == (
        "text",
        "nll_per_token",
        "lower",
        30,
    )
    assert nats.changes[0].method.baseline
    assert nats.changes[0].delta is None
    dpo, ipo = nats.of("dpo"), nats.of("ipo-mean")
    assert dpo is not None
    assert ipo is not None
    # the same noise in each seed, so the difference is the shift, exactly
    assert dpo.delta is not None
    assert dpo.delta.value == pytest.approx(0.2)
    assert (dpo.verdict, dpo.forgot) == ("worse", True)
    assert ipo.delta is not None
    assert (ipo.delta.value, ipo.verdict, ipo.forgot) == (0.0, "", False)
    worse = sums.of("dpo")
    assert worse is not None
    assert worse.delta is not None
    # (7 i mod 10) < 6 against < 4: two of ten answers are lost
    assert worse.delta.value == pytest.approx(-0.2)
    assert worse.verdict == "worse"


def test_one_seed_of_right_and_wrong_is_mcnemars_test(analysis: Analysis) -> None:
    scores = [
        replace(s, method=replace(s.method, benchmarks={0: s.method.benchmarks[0]}))
        for s in analysis.scores
        if s.method.benchmarks
    ]
    alone = replace(analysis, scores=tuple(scores))
    change = tables(alone)[1].of("dpo")
    assert change is not None
    # six of thirty answers are lost and none is won: exact binomial test of 6 in 6
    assert change.p == pytest.approx(binomtest(6, 6).pvalue)


def test_holm_runs_over_every_difference(analysis: Analysis) -> None:
    found = tables(analysis)
    raw = [c.p for t in found for c in t.changes if c.p is not None]
    adjusted = [c.holm for t in found for c in t.changes if c.p is not None]
    assert adjusted == pytest.approx(st.holm(raw))
    assert len(raw) == 12  # six methods, two metrics


def test_verdicts_follow_the_better_way() -> None:
    up, down = Interval(0.3, 0.1, 0.5, 0.1), Interval(-0.3, -0.5, -0.1, 0.1)
    assert (verdict(up, "higher"), verdict(up, "lower"), verdict(up, None)) == (
        "better",
        "worse",
        "",
    )
    assert (verdict(down, "higher"), verdict(down, "lower")) == ("worse", "better")
    assert verdict(Interval(0.3, -0.1, 0.5, 0.1), "higher") == ""


@pytest.mark.slow
def test_the_page_says_who_forgot_what(analysis: Analysis, tmp_path: Path) -> None:
    made = part(analysis, looks([s.method for s in analysis.scores]), tmp_path)
    forgot = [c for c in made.concerns if c.topic == "forgot"]
    assert len(forgot) == 1
    assert forgot[0].level == "serious"
    assert "DPO is worse than SFT on text, nats per token (+0.200)" in forgot[0].text
    assert any(c.topic == "contamination" for c in made.concerns)
    assert (tmp_path / "benchmarks.png").is_file()
    assert (tmp_path / "calibration.png").is_file()
    for run in analysis.study.runs.values():
        if run.kind in ("benchmark", "reward_benchmark"):
            assert f'href="#run-{run.name}"' in made.html
    assert {"benchmarks", "reward_models"} == set(made.tables)
    rows = {(r["task"], r["method"]): r for r in made.tables["benchmarks"]}
    dpo = next(r for (task, name), r in rows.items() if task == "text" and name.startswith("DPO"))
    assert dpo["delta_vs_sft"] == pytest.approx(0.2)
    assert dpo["delta_vs_sft_low"] - 1e-9 <= 0.2 <= dpo["delta_vs_sft_high"] + 1e-9


@pytest.mark.usefixtures("undrawn")
def test_reward_models_of_the_study(analysis: Analysis, tmp_path: Path) -> None:
    models = reward_models(analysis.study.runs)
    assert [(m.task, m.seed) for m in models if m.seed == 0] == [("length", 0), ("sentiment", 0)]
    for model in models:
        rows = [r for r in model.run.lines("samples.jsonl") if r["task"] == model.task]
        assert model.accuracy.value == pytest.approx(np.mean([r["value"] for r in rows]))
        assert model.pairs == 60
    made = part(analysis, looks([s.method for s in analysis.scores]), tmp_path)
    near = {c.text.split(" pairs of ")[1].split(" ")[0] for c in made.concerns
            if c.topic == "reward near chance"}  # fmt: skip
    assert near == {m.task for m in models if not m.accuracy.low > 0.5}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_a_reward_model_that_likes_length_is_named(study: FakeStore, tmp_path: Path) -> None:
    root = tmp_path
    write_study(root, prompts=8, missing=False, benchmarked=True)
    [folder, *_] = root.glob("reward_benchmark-*")
    rows = [
        {"task": "pairs", "item": f"{i}", "value": float(i % 2), "margin": 1.0, "probability": 0.7,
         "chosen_tokens": 5 + 10 * (i % 2), "rejected_tokens": 10, "subset": "ab"[i % 4 // 2]}
        for i in range(40)
    ]  # fmt: skip
    write_rows(folder, rows)
    found = analyse(read_study("demo", FakeStore(root)), draws=200)
    made = part(found, looks([s.method for s in found.scores]), root)
    assert [c.topic for c in made.concerns].count("reward likes length") == 1
    sets = {(r["set"], r["subset"], r["pairs"]) for r in made.tables["reward_models"]}
    assert {("pairs", "", 40), ("pairs", "a", 20), ("pairs", "b", 20)} <= sets


@pytest.mark.usefixtures("undrawn")
def test_who_was_not_benchmarked_is_said(analysis: Analysis, tmp_path: Path) -> None:
    scores = [
        replace(s, method=replace(s.method, benchmarks={})) if s.method.id == "kto" else s
        for s in analysis.scores
    ]
    some = replace(analysis, scores=tuple(scores))
    made = part(some, looks([s.method for s in some.scores]), tmp_path)
    [concern] = [c for c in made.concerns if c.topic == "not benchmarked"]
    assert "KTO" in concern.text
    assert "DPO" not in concern.text


def test_a_study_without_benchmarks_has_no_section(small: FakeStore, tmp_path: Path) -> None:
    found = analyse(read_study("demo", small), draws=100)
    made = part(found, looks([s.method for s in found.scores]), tmp_path)
    assert (made.html, made.tables, made.concerns) == ("", {}, ())
    assert changes([], {}) is None
    assert calibration([]) is None


@pytest.mark.usefixtures("undrawn")
def test_a_decontaminated_study_is_not_doubted(analysis: Analysis, tmp_path: Path) -> None:
    [sft] = [r for r in analysis.study.runs.values() if r.name == "sft-0a"]
    card = {"splits": {"sft": [{"step": "decontaminate", "rows_in": 3, "rows_out": 2}]}}
    clean = replace(sft, record={**sft.record, "data_card": card})
    study = replace(analysis.study, runs={**analysis.study.runs, sft.name: clean})
    made = part(
        replace(analysis, study=study), looks([s.method for s in analysis.scores]), tmp_path
    )
    assert not any(c.topic == "contamination" for c in made.concerns)


def test_the_figure_shows_few_metrics_of_a_large_task(analysis: Analysis) -> None:
    found = tables(analysis)
    many = [replace(found[0], metric=f"m{i}") for i in range(5)]
    assert [t.metric for t in headlines([*many, found[1]])] == ["m0", "accuracy"]
    assert [t.metric for t in headlines([*many, found[0]])] == ["nll_per_token"]
    figure = changes(headlines(found), looks([s.method for s in analysis.scores]))
    assert figure is not None
    assert len(figure.axes) == 2
