"""Tuning: expected-max curves by hand, rankings that flip, and what every method was given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_study import FakeStore, write_json, write_study

from alignlab.report.analysis import Analysis, analyse
from alignlab.report.folders import RunFolder
from alignlab.report.statistics import expected_max
from alignlab.report.style import looks
from alignlab.report.table import Method, read_study
from alignlab.report.tuning.figure import expected, rate_of, sensitivity
from alignlab.report.tuning.given import given
from alignlab.report.tuning.numbers import (
    Trial,
    Tuning,
    curve,
    flips,
    order_weights,
    ranking,
    stops,
    trials_of,
    tunings,
)
from alignlab.report.tuning.part import at_the_edge, part, said

RATE = "optimizer.learning_rate"


def method(name: str) -> Method:
    return Method(name, name, name, "", 1, False, {}, {})


def trial(seed: int, number: int, value: float, **given: Any) -> Trial:
    fields = {
        "run": f"preference-{seed}{number}",
        "evaluation": f"evaluate-{seed}{number}",
        "settings": {RATE: 10.0**-number},
        "status": "done" if math.isfinite(value) else "diverged",
        "tokens": 100.0,
        "flops": 1e6,
        "seconds": 1.0,
        **given,
    }
    return Trial(seed=seed, number=number, value=value, **fields)


def tuning(name: str, *rows: list[float], higher: bool = True, worst: float = -9.0) -> Tuning:
    trials = {
        seed: tuple(trial(seed, i, value) for i, value in enumerate(row, start=1))
        for seed, row in enumerate(rows)
    }
    best = max if higher else min
    chosen = {
        seed: best((t for t in listed if math.isfinite(t.value)), key=lambda t: t.value)
        for seed, listed in trials.items()
    }
    tested = {seed: t.value - 0.1 * (seed + 1) for seed, t in chosen.items()}
    return Tuning(method(name), "gold", higher, trials, chosen, tested, worst)


# -------------------------------------------------------------------------------------- by hand


def test_the_expected_best_of_two_of_three() -> None:
    # Of 1, 2, 4 the pairs are {1, 2}, {1, 4}, {2, 4}: (2 + 4 + 4) / 3; of the other seed 3, 3, 3
    found = tuning("a", [4.0, 1.0, 2.0], [3.0, 3.0, 3.0])
    assert found.best_of(1) == pytest.approx((7 / 3 + 3) / 2)
    assert found.best_of(2) == pytest.approx((10 / 3 + 3) / 2)
    assert found.best_of(3) == pytest.approx((4 + 3) / 2)
    assert found.configured == pytest.approx(3.5)  # the first of each seed: (4 + 3) / 2


def test_where_lower_is_better_the_best_is_the_least() -> None:
    found = tuning("a", [4.0, 1.0, 2.0], higher=False, worst=9.0)
    assert found.best_of(2) == pytest.approx((1 + 1 + 2) / 3)
    assert found.best_of(3) == 1.0
    assert curve(found, draws=50).value[-1] == pytest.approx(1.0)


def test_a_trial_without_a_score_counts_as_the_worst_and_is_counted() -> None:
    found = tuning("a", [2.0, math.nan], worst=-1.0)
    assert found.best_of(1) == pytest.approx(0.5)
    assert found.best_of(2) == 2.0
    assert found.share("diverged") == 0.5
    assert found.share("failed") == 0.0


def test_the_weights_are_those_of_the_statistics() -> None:
    values = np.random.default_rng(0).normal(size=7)
    for k in range(1, 8):
        weights = order_weights(7, k)
        assert weights.sum() == pytest.approx(1)
        assert float(np.sort(values) @ weights) == pytest.approx(expected_max(values, k))


def test_the_band_holds_the_curve_and_knows_seeds() -> None:
    one = curve(tuning("a", [0.0, 1.0, 2.0, 3.0]), draws=400)
    assert list(one.at) == [1, 2, 3, 4]
    assert one.value[-1] == 3.0
    assert np.all(one.low <= one.value)
    assert np.all(one.value <= one.high)
    assert one.high[-1] == 3.0  # no resample knows a better trial
    # seeds that all scatter: the band of the best is as wide as they are apart
    far = curve(tuning("a", [0.0, 0.0], [1.0, 1.0], [2.0, 2.0]), draws=400)
    assert far.value[-1] == pytest.approx(1.0)
    assert far.low[-1] < 0.5
    assert far.high[-1] > 1.5


def test_methods_that_trade_places() -> None:
    # a is good untuned (mean 2, best 2); b is wild (mean 1, best 3): b is ahead from k = 2 on:
    # E best of 2 of (0, 0, 3) = (0 + 3 + 3) / 3 = 2, a tie; of 3: 3
    a, b = tuning("a", [2.0, 2.0, 2.0]), tuning("b", [0.0, 0.0, 3.0])
    [found] = flips([a, b])
    assert (found.ahead.method.id, found.behind.method.id) == ("a", "b")
    assert found.at == 3
    assert [t.method.id for t in ranking([b, a], 1)] == ["a", "b"]
    assert [t.method.id for t in ranking([b, a], 3)] == ["b", "a"]
    assert "from 3 trials on" in said([a, b], [found])[0]
    assert flips([a, tuning("c", [1.0, 1.0, 1.0])]) == []
    assert "is the same" in said([a, tuning("c", [1.0])], [])[0]


def test_a_flip_is_found_the_other_way_round_as_well() -> None:
    a, b = tuning("a", [0.0, 0.0, 3.0, 3.0]), tuning("b", [2.0, 2.0, 2.0, 2.0])
    [found] = flips([a, b])  # E best of 2 = (1·0 + 5·3) / 6 = 2.5
    assert (found.ahead.method.id, found.at) == ("b", 2)


def test_rankings_are_taken_at_numbers_that_all_methods_reach() -> None:
    short, long = tuning("a", [0.0] * 5), tuning("b", [0.0] * 20)
    assert stops([short, long]) == [1, 4, 5]
    assert stops([long]) == [1, 4, 16, 20]


def test_the_winners_curse_is_validation_minus_test_over_seeds() -> None:
    found = tuning("a", [1.0, 2.0], [3.0, 2.0])
    gap = found.gap
    assert gap is not None
    assert gap.value == pytest.approx((0.1 + 0.2) / 2)
    assert gap.low + 1e-12 >= 0.1
    assert gap.high <= 0.2 + 1e-12
    one = tuning("a", [1.0, 2.0]).gap
    assert one is not None
    assert one.error == 0.0  # one seed has no interval


def test_a_choice_at_the_edge_of_what_was_tried_is_told() -> None:
    # rates are 10^-1 … 10^-4, so the first trial has the highest
    assert at_the_edge(tuning("a", [9.0, 0.0, 0.0, 0.0])) == "highest"
    assert at_the_edge(tuning("a", [0.0, 0.0, 0.0, 9.0], [0.0, 0.0, 0.0, 9.0])) == "lowest"
    assert at_the_edge(tuning("a", [0.0, 9.0, 0.0, 0.0])) is None
    assert at_the_edge(tuning("a", [9.0, 0.0])) is None  # of two, one is always at the edge
    mixed = tuning("a", [9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0])
    assert at_the_edge(mixed) is None


def test_a_trial_that_cost_nothing_known_is_left_out_of_the_mean() -> None:
    found = tuning("a", [1.0, 2.0])
    first, second = found.trials[0]
    unknown = Trial(**{**vars(second), "flops": math.nan})
    some = Tuning(**{**vars_of(found), "trials": {0: (first, unknown)}})
    assert some.mean("flops") == 1e6
    assert math.isnan(Tuning(**{**vars_of(found), "trials": {0: (unknown,)}}).mean("flops"))


def vars_of(found: Tuning) -> dict[str, Any]:
    names = ("method", "metric", "higher", "trials", "chosen", "tested", "worst")
    return {name: getattr(found, name) for name in names}


# ------------------------------------------------------------------------------------- the study


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    root = tmp_path_factory.mktemp("searched")
    write_study(root, prompts=12, missing=False, searched=True, seeds=2)
    return analyse(read_study("demo", FakeStore(root)), draws=50)


@pytest.mark.slow
def test_the_trials_of_a_study_are_read(searched: Analysis) -> None:
    found = tunings(searched)
    assert {t.method.label for t in found} == {"DPO", "PPO"}
    for one in found:
        assert one.count == 6
        assert sorted(one.trials) == [0, 1]
        assert one.share("diverged") == pytest.approx(1 / 6)
        assert one.worst == min(t.value for x in found for t in x.all if t.status == "done")
        for seed, chosen in one.chosen.items():
            assert chosen.value == max(t.value for t in one.trials[seed] if t.status == "done")
            score = next(s for s in searched.scores if s.method.id == one.method.id)
            assert one.tested[seed] == score.per_seed["gold"][seed]


@pytest.mark.slow
def test_the_section_has_its_tables_figures_and_doubts(searched: Analysis, tmp_path: Path) -> None:
    made = part(searched, looks([s.method for s in searched.scores]), tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"tuning.png", "sensitivity.png"}
    assert len(made.tables["trials"]) == 2 * 6 * 2
    assert len(made.tables["tuning"]) == 2 * 2
    assert [row["trials"] for row in made.tables["ranks_by_trials"]] == [1, 1, 4, 4, 6, 6]
    for one in tunings(searched):
        for listed in one.trials.values():
            assert all(f'href="#run-{t.run}"' in made.html for t in listed)
    topics = {c.topic: c for c in made.concerns}
    assert topics["unequal tuning"].level == "serious"  # the others ran as configured
    assert "2 of 12 diverged" in topics["trials without a score"].text


def test_figures_draw_every_method(searched: Analysis) -> None:
    found = tunings(searched)
    drawn = looks([s.method for s in searched.scores])
    figure = expected(found, drawn)
    assert figure is not None
    trials, compute = figure.axes
    assert trials.get_xlabel() == "trials"
    assert compute.get_xlabel() == "FLOPs of the search"
    assert len(trials.lines) == len(compute.lines) == 2 * len(found)  # a line and its ends
    panels = sensitivity(found, drawn)
    assert panels is not None
    titles = [ax.get_title(loc="left") for ax in panels.axes if ax.axison]
    assert titles == [t.method.label for t in found]
    crosses = [line for line in panels.axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 2  # one per seed


def test_nothing_is_drawn_of_what_was_not_searched() -> None:
    one = tuning("a", [1.0])
    assert expected([one], looks([one.method])) is None
    other = Tuning(**{**vars_of(one), "trials": {0: (trial(0, 1, 1.0, settings={"beta": 1}),)}})
    assert sensitivity([other], looks([one.method])) is None
    assert math.isnan(rate_of(other.trials[0][0]))


def test_a_study_without_a_search_says_so(store: FakeStore, tmp_path: Path) -> None:
    analysis = analyse(read_study("demo", store), draws=50)
    made = part(analysis, looks([s.method for s in analysis.scores]), tmp_path)
    assert "none was searched for" in made.html
    assert set(made.tables) == {"given"}
    assert [c.topic for c in made.concerns] == ["tuning"]


@pytest.mark.slow
def test_hostile_settings_are_escaped(tmp_path: Path) -> None:
    write_study(tmp_path, prompts=6, missing=False, searched=True, seeds=1)
    for file in tmp_path.glob("select-*/record.json"):
        file.write_text(file.read_text().replace("optimizer.learning_rate", "<script>x</script>"))
    analysis = analyse(read_study("demo", FakeStore(tmp_path)), draws=20)
    made = part(analysis, looks([s.method for s in analysis.scores]), tmp_path)
    assert "<script>" not in made.html
    assert "&lt;script&gt;" in made.html


def test_what_a_select_run_left_out_is_not_a_number() -> None:
    record = {"trials": [{"run": "a-1", "value": None, "status": "failed", "flops": None}]}
    [found] = trials_of(RunFolder("select-1", Path("x"), record, {}, {}, True), seed=3)
    assert math.isnan(found.value)
    assert math.isnan(found.flops)
    assert (found.seed, found.number, found.settings) == (3, 1, {})


# -------------------------------------------------------------------------------- what was given


def change(root: Path, name: str, **fields: Any) -> None:
    import json

    file = root / name / "record.json"
    write_json(file, {**json.loads(file.read_text()), **fields})


def test_data_and_compute_are_read_where_they_were_spent(tmp_path: Path) -> None:
    write_study(tmp_path, prompts=6, missing=False, seeds=2)
    for seed, pairs in ((0, 100), (1, 200)):
        tag = f"{seed}a"
        change(tmp_path, f"annotate-{tag}", prompts=pairs / 2, summary={"pairs": pairs})
        change(tmp_path, f"preference-{tag}-dpo", updates=7, flops=1e6, inputs={
            "annotations": f"annotate-{tag}", "reference": f"sft-{tag}"})  # fmt: skip
        change(tmp_path, f"ppo-{tag}-ppo", updates=9, prompts=500, completions=640, flops=4e6,
               tokens_sampled=1000, inputs={"reward": f"reward-{tag}"})  # fmt: skip
        write_json(tmp_path / f"ppo-{tag}-ppo/config.json", {"prompts": 64})
        change(tmp_path, f"evaluate-{tag}-bon", completions=48, tokens_sampled=300, flops=2e3)
    found = {
        g.method.label: g for g in given(analyse(read_study("demo", FakeStore(tmp_path)), draws=20))
    }
    dpo, ppo, best = found["DPO"], found["PPO"], found["best of 8"]
    assert (dpo.prompts, dpo.pairs) == (75, 150)  # means over the seeds
    assert (dpo.unlabelled, dpo.queries, dpo.updates, dpo.flops) == (0, 0, 7, 1e6)
    # PPO learned from the same pairs, by way of its reward model; 64 prompts, met several times
    assert (ppo.prompts, ppo.pairs, ppo.unlabelled, ppo.queries) == (75, 150, 64, 640)
    assert (ppo.generated, ppo.updates, ppo.flops) == (1000, 9, 4e6)
    assert (best.pairs, best.queries, best.generated, best.updates) == (150, 48, 300, 0)
    assert found["SFT"].pairs is None


def test_a_search_is_paid_for_by_its_method(searched: Analysis) -> None:
    found = {g.method.label: g for g in given(searched)}
    assert found["PPO"].search_flops == pytest.approx(6 * 3.2e12)
    assert found["GRPO"].search_flops is None
