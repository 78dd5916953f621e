"""The section on judges: planted tastes come out, doubts are raised, everything is escaped."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from fake_study import FakeStore, write_study
from judged_study import SENTINELS, judge_rows, write_judgements

from alignlab.report import statistics as st
from alignlab.report.analysis import analyse
from alignlab.report.judging.doubts import doubts
from alignlab.report.judging.length_control import Rows, controlled, difficulty
from alignlab.report.judging.numbers import benches
from alignlab.report.judging.part import part
from alignlab.report.style import looks
from alignlab.report.table import read_study


def analysis_of(root):
    return analyse(read_study("demo", FakeStore(root)), draws=200)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    root = tmp_path_factory.mktemp("judged")
    write_study(root, prompts=12, missing=False)  # the rows of judge runs stand for themselves
    write_judgements(root)
    return analysis_of(root)


def broken(tmp_path, rows=judge_rows, **record):
    write_study(tmp_path, prompts=12, missing=False)
    write_judgements(tmp_path, prompts=40, rows=rows, **record)
    return {concern.topic: concern for concern in doubts(benches(analysis_of(tmp_path)))}


def test_planted_tastes_come_out(judged):
    [bench] = benches(judged)
    found = {one.method.id: one for one in bench.judged}
    assert list(found) == ["ppo", "dpo"] or list(found) == ["dpo", "ppo"]
    dpo, ppo = found["dpo"], found["ppo"]
    # A fifth of the matches are ties of a judge of positions, which pulls rates towards one half.
    assert dpo.win.value == pytest.approx(0.8 * 0.731 + 0.1, abs=0.05)  # σ(1) = 0.731
    assert dpo.controlled.value == pytest.approx(dpo.win.value, abs=0.07)
    assert ppo.win.value > 0.65
    assert ppo.controlled.low < 0.5 < ppo.controlled.high
    assert ppo.length_effect > 1.5 > abs(dpo.length_effect)
    assert ppo.tokens.value == pytest.approx(12, abs=2)
    assert (ppo.matches, ppo.no_verdict, sorted(ppo.runs)) == (400, 0, [0, 1])
    assert ppo.win.seeds == 2


def test_what_the_judge_is_worth(judged):
    [bench] = benches(judged)
    rows = [row for run in bench.runs for row in run.lines("samples.jsonl")]
    same = sum(row["consistent"] for row in rows) / len(rows)
    assert bench.consistency == pytest.approx(same)
    # Consistent matches name the first side once in two replies; the others always.
    assert bench.first.value == pytest.approx(same / 2 + (1 - same), abs=1e-9)
    assert bench.kappa > 0.4  # gold follows the verdict, but for ties
    assert bench.repeat_agreement == pytest.approx(0.95)
    assert bench.spent["cost_usd"] == pytest.approx(1.0)  # 4 runs
    assert bench.spent["calls"] == 1600


def test_strengths_are_bradley_terry_s(judged):
    """Against one opponent the maximum of the likelihood is a logit; own code against it."""
    [bench] = benches(judged)
    size = len(bench.judged) + 1
    wins = np.zeros((size, size))
    for i, one in enumerate(bench.judged, start=1):
        wins[i, 0] = one.win.value * 400
        wins[0, i] = 400 - wins[i, 0]
    # No prior: it would also add games between methods that never met.
    fitted = st.bradley_terry(wins)
    for i, one in enumerate(bench.judged, start=1):
        assert one.strength.value == pytest.approx(fitted[i] - fitted[0], abs=0.01)
        assert one.strength.low < one.strength.value < one.strength.high


def test_of_two_judgings_of_the_same_samples_the_larger_one_counts(tmp_path):
    write_study(tmp_path, prompts=12, missing=False)
    write_judgements(tmp_path, prompts=20)
    file = tmp_path / "studies" / "demo" / "study.json"
    study = json.loads(file.read_text())
    for job in study["jobs"]:
        for name, run in list(job["stages"].items()):
            if name.startswith("judge_"):
                small = f"{run}small"
                shutil.copytree(tmp_path / run, tmp_path / small)
                record = json.loads((tmp_path / small / "record.json").read_text())
                (tmp_path / small / "record.json").write_text(json.dumps(record | {"matches": 5}))
                job["stages"][f"{name}_small"] = small
    file.write_text(json.dumps(study))
    [bench] = benches(analysis_of(tmp_path))
    assert len(bench.runs) == 4
    assert not any(run.name.endswith("small") for run in bench.runs)


def test_the_section(judged, tmp_path):
    made = part(judged, looks([s.method for s in judged.scores]), tmp_path)
    assert "a &lt;judge&gt;" in made.html
    assert "<judge>" not in made.html
    assert "<b>one</b>" not in made.html
    assert (tmp_path / "judging.png").stat().st_size > 5000
    text = re.sub(r"<[^>]+>", " ", made.html)
    for words in ("At equal length", "Same verdict in both orders", "Asked twice", "1.00 USD"):
        assert words in text
    links = set(re.findall(r'href="#run-([^"]+)"', made.html))
    assert links == {run.name for bench in benches(judged) for run in bench.runs}
    for row in made.tables["judging"]:
        assert row["win_rate_low"] <= row["win_rate"] <= row["win_rate_high"]
        assert row["gold_over_opponent"] is not None
    assert made.tables["judges"][0]["consistency"] == benches(judged)[0].consistency
    assert len(made.tables["judging"]) == 2


def test_without_judges_there_is_no_section(store, tmp_path):
    analysis = analyse(read_study("demo", store), draws=100)
    assert part(analysis, looks([s.method for s in analysis.scores]), tmp_path).html == ""


def test_a_fair_judge_raises_no_serious_doubt(tmp_path):
    found = broken(tmp_path)
    assert not [c for c in found.values() if c.level == "serious"]


def test_a_judge_of_positions_is_doubted(tmp_path):
    def rows(*args):
        stuck = {"forward": "win", "backward": "loss", "consistent": False, "win": 0.5}
        return [row | stuck for row in judge_rows(*args)]

    found = broken(tmp_path, rows)
    assert found["inconsistent judge"].level == "serious"
    assert "κ = 0.00" in found["judge and gold disagree"].text
    assert "0% of the" in found["inconsistent judge"].text
    assert "100% of the winners" in found["position bias"].text
    assert "few decided" in found


def test_a_judge_that_trained_the_policy_is_doubted(tmp_path):
    found = broken(tmp_path, trained_on="reward-1")
    assert found["judge is the teacher"].level == "serious"
    assert "reward-1" in found["judge is the teacher"].text


def test_sentinels_that_fail_are_doubted(tmp_path):
    failing = SENTINELS | {
        "verbose": {"wins": 0.4, "ties": 0.5, "losses": 0.1},
        "identical": {"tie": 0.2, "first": 0.7, "second": 0.1, "none": 0.0},
    }
    found = broken(tmp_path, sentinels=failing, repeat_agreement=0.7)
    assert "40%" in found["verbose copy wins"].text
    assert "80%" in found["equal texts do not tie"].text
    assert "70%" in found["judge varies"].text


def test_missing_verdicts_and_lengths_that_never_meet_are_doubted(tmp_path):
    def rows(seed, method, quality, length, longer, n):
        made = judge_rows(seed, method, quality, length, 9.0, n)
        for row in made[: n // 4]:
            row |= {"win": None, "forward": "none", "consistent": False}
        return made

    found = broken(tmp_path, rows)
    assert "20 of 80 matches" in found["no verdict"].text
    assert "longer than its opponent" in found["lengths do not overlap"].text


@pytest.mark.slow
def test_the_interval_covers_the_truth_over_seeds_and_prompts():
    """Three seeds of their own quality on shared prompts; the mean rate at equal length."""
    hits, runs = 0, 80
    truth = 1 / (1 + np.exp(-0.5))
    for trial in range(runs):
        source = np.random.default_rng(trial)
        seeds = np.repeat(np.arange(3), 120)
        prompts = np.tile(np.arange(120), 3)
        delta = 10 * (0.8 + source.normal(size=360))
        logit = 0.5 + 2 * np.tanh(delta / delta.std()) + 0.1 * source.normal(size=3)[seeds]
        win = (source.random(360) < 1 / (1 + np.exp(-logit))).astype(float)
        _, interval = controlled(Rows(seeds, prompts, win, delta), draws=300, seed=trial)
        hits += interval.low <= truth <= interval.high
    assert 0.9 <= hits / runs <= 1.0


def test_hard_prompts_are_told_from_long_answers():
    """What other methods lose there as well is no matter of length."""
    source = np.random.default_rng(0)
    prompts = np.arange(600)
    gamma = source.normal(size=600)
    logit = 0.3 + 2 * gamma
    others = [
        Rows(prompts * 0, prompts, (source.random(600) < 1 / (1 + np.exp(-logit))) * 1.0, gamma)
        for _ in range(12)
    ]
    delta = 20 * (1 - 0.8 * gamma + 0.6 * source.normal(size=600))
    own = Rows(prompts * 0, prompts, (source.random(600) < 1 / (1 + np.exp(-logit))) * 1.0, delta)
    truth = (1 / (1 + np.exp(-logit))).mean()
    known, _ = controlled(own, difficulty(others, 600), draws=100)
    unknown, _ = controlled(own, draws=100)
    # γ of 12 other matches is a noisy one: most of the bias goes, not all of it.
    assert known.rate - truth < 0.6 * (unknown.rate - truth)
    assert unknown.rate > truth + 0.1


def test_difficulty_comes_from_the_other_methods():
    def rows(wins):
        place = np.arange(3)
        return Rows(place * 0, place, np.array(wins), place * 0.0)

    found = difficulty([rows([1.0, 0.5, 0.0]), rows([1.0, 0.5, 0.0])], 3)
    # log (2 + ½) / (0 + ½) = log 5; nothing; −log 5
    assert found == pytest.approx([np.log(5), 0, -np.log(5)])
    assert difficulty([], 3) is None
    assert difficulty([rows([0.5, 0.5, 0.5])], 3) is None


def test_samples_of_one_cell_are_averaged():
    rows = Rows(
        np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([1.0, 0.0, 1.0]), np.zeros(3)
    )  # fmt: skip
    cells = rows.cells(rows.win)
    assert cells[0, 0] == 0.5
    assert cells[1, 1] == 1.0
    assert np.isnan(cells[0, 1])
