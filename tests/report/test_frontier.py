"""The reward–KL plane of a study with known truth, and of studies that lack what it needs."""

from __future__ import annotations

import json
import math
import re
import warnings

import fake_grids
import numpy as np
import pytest
from fake_study import FakeStore, write_json, write_study

from alignlab.report.analysis import analyse
from alignlab.report.frontier.figure import gains_figure, plane_figure
from alignlab.report.frontier.numbers import plane_of
from alignlab.report.frontier.part import part
from alignlab.report.frontier.sampled import intervals
from alignlab.report.frontier.sentences import nats, over_optimisation, sentences
from alignlab.report.style import looks
from alignlab.report.table import read_study


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    root = tmp_path_factory.mktemp("plane")
    write_study(root, seeds=3, prompts=40, missing=False, grids=True)
    return analyse(read_study("demo", FakeStore(root)))


@pytest.fixture(scope="module")
def plane(analysis):
    return plane_of(analysis)


@pytest.fixture(scope="module")
def shown(analysis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return part(analysis, looks([s.method for s in analysis.scores]), folder), folder


def curve(plane, family):
    return next(c for c in plane.curves if c.family == family)


@pytest.mark.slow
def test_families_are_curves_by_kl(plane):
    assert [c.family for c in plane.curves if c.swept]
    assert curve(plane, "best of n").control
    ppo = curve(plane, "PPO")
    kls = [p.kl.value for p in ppo.points]
    assert kls == sorted(kls)
    assert len(kls) == 5
    assert not curve(plane, "KTO").swept
    # the line goes through SFT at 0 and through every point
    assert ppo.line.value[0] == pytest.approx(plane.baseline.value("gold"))
    at = np.interp([math.sqrt(k) for k in kls], ppo.line.at, ppo.line.value)
    assert at == pytest.approx([p.gold.value for p in ppo.points], abs=0.02)
    banded = ~np.isnan(ppo.line.low)
    assert (ppo.line.low <= ppo.line.value)[banded].all()
    assert (ppo.line.value <= ppo.line.high)[banded].all()


def test_a_band_ends_where_a_seed_ends(plane):
    """Beyond the KL that every seed reaches there is a line of means and no band."""
    ppo = curve(plane, "PPO")
    ends = ppo.drawn.points.per_seed[:, :, 0].max(axis=1)
    banded = ~np.isnan(ppo.line.low)
    assert banded[0]
    assert ppo.line.at[banded][-1] ** 2 <= min(ends)
    assert not banded[ppo.line.at**2 > min(ends)].any()
    assert not np.isnan(ppo.line.value).any()


def test_the_planted_hump_is_found(plane):
    """PPO was made with gold d (0.36 − 0.145 log d), clipped at 1: it peaks at √KL = 4.4."""
    fit = curve(plane, "PPO").fit
    *_, alpha, beta = fake_grids.GRIDS["ppo"]
    truth = math.exp(alpha / beta - 1)
    assert fit.peak_d.low - 0.3 < truth < fit.peak_d.high + 0.3
    assert fit.humps > 0.99
    past, proxy = curve(plane, "PPO").past, curve(plane, "PPO").proxy_past
    last = math.sqrt(curve(plane, "PPO").furthest.kl.value)
    fall = beta * truth - last * (alpha - beta * math.log(last))
    assert past.value == pytest.approx(-fall, abs=0.12)  # golds above 1 were clipped
    assert past.high < 0 < proxy.low


def test_a_sweep_that_ends_before_its_peak_has_none(plane):
    text = over_optimisation(curve(plane, "IPO (mean)"))
    assert "gold still rises at the largest KL tried" in text or "not clear" in text
    assert curve(plane, "IPO (mean)").past is None


def test_comparison_at_equal_kl_leaves_out_what_ends_early(plane):
    assert plane.short == ("IPO (mean)",)
    reached = [a for a in plane.areas if a.mean is not None]
    assert [a.mean.value for a in reached] == sorted((a.mean.value for a in reached), reverse=True)
    assert {a.curve.family for a in reached} == {"DPO", "PPO", "GRPO"}
    early = next(a for a in plane.areas if a.mean is None)
    assert early.at[0] is not None
    assert early.at[-1] is None
    assert max(plane.budgets) <= plane.top
    for pair in plane.pairs:
        means = {a.curve.family: a.mean.value for a in reached}
        assert pair.mean.value == pytest.approx(means[pair.a] - means[pair.b])
        assert pair.p_value <= pair.holm <= 1
        assert pair.mean.error < 0.6 * max(a.mean.error for a in reached)  # pairing pays


def test_best_within_a_budget_is_corrected_for_choosing(plane):
    for area in plane.areas:
        for budget, best, flattery in zip(plane.budgets, area.best, area.optimism, strict=True):
            inside = [p.gold.value for p in area.curve.points if p.kl.value <= budget]
            assert best.value + flattery == pytest.approx(
                max([plane.baseline.value("gold"), *inside])
            )
            assert flattery >= -1e-3


def test_lone_settings_stand_beside_the_curves(plane):
    found = {(b.single.score.method.label, b.curve): b for b in plane.beside}
    assert ("KTO", "DPO") in found
    assert ("ORPO", "PPO") in found
    orpo = found["ORPO", "DPO"]
    assert orpo.difference.value == pytest.approx(orpo.single.gold.value - orpo.there.value)
    assert orpo.difference.high < 0  # 0.12 was planted, and 0.36 at that KL on the curve


def test_intervals_by_hand():
    # three seeds 0, 1, 2 of no prompt noise: V = 1/3 of the draws' making, 2 degrees of freedom
    draws = np.random.default_rng(0).normal(1, math.sqrt(1 / 3), (20000, 1))
    found, freedom = intervals(
        np.array([1.0]), draws, np.ones((20000, 1)), np.array([[0.0], [1.0], [2.0]]), prompts=9
    )
    assert freedom[0] == pytest.approx(2, rel=0.05)
    assert found[0].high == pytest.approx(1 + 4.303 * math.sqrt(1 / 3), rel=0.03)
    assert found[0].seeds == 3


def test_anchors(plane, analysis):
    assert plane.reference_gold == pytest.approx(0.31)
    assert plane.baseline is analysis.baseline


@pytest.mark.slow
def test_part_shows_everything(shown, plane):
    made, folder = shown
    for name in ("frontier", "gain-ppo-beta-1"):
        assert (folder / f"{name}.png").stat().st_size > 5000
    assert made.html.count("<figure") >= 5
    assert "At equal KL, averaged over √KL up to" in made.html
    runs = re.findall(r'href="#run-([^"]+)"', made.html)
    assert len(runs) == len(set(runs)) == sum(len(p.seeds) for c in plane.curves for p in c.points)
    assert set(made.tables) == {
        "frontier_points", "frontier_curves", "frontier_fits", "frontier_families",
        "frontier_differences", "frontier_beside",
    }  # fmt: skip
    topics = [c.topic for c in made.concerns]
    assert "past the peak" in topics
    assert "KL ranges differ" in topics
    assert not re.search(r"\bnan\b", re.sub(r"<svg.*?</svg>", "", made.html, flags=re.S))


def test_sentences_hold_the_numbers_of_the_tables(shown, plane):
    text = sentences(plane)[0]
    best = max(
        (r for r in shown[0].tables["frontier_families"] if not math.isnan(r["mean_gold"])),
        key=lambda r: r["mean_gold"],
    )
    assert best["family"] in text
    assert f"{best['mean_gold']:.2f} [{best['mean_gold_low']:.2f}, " in text


@pytest.mark.slow
def test_one_setting_per_method_is_a_plane_of_points(store, tmp_path):
    analysis = analyse(read_study("demo", store), draws=100)
    plane = plane_of(analysis, draws=100)
    assert plane.top is None
    assert not plane.areas
    assert not plane.pairs
    assert not plane.beside
    drawn = looks([s.method for s in analysis.scores])
    assert plane_figure(plane, drawn) is not None
    assert all(gains_figure(c, drawn[c.lead]) is None for c in plane.curves)
    made = part(analysis, drawn, tmp_path)
    assert set(made.tables) == {"frontier_points"}
    assert "<figure" in made.html


@pytest.mark.slow
def test_without_kl_or_baseline(small, tmp_path):
    for folder in small.root.glob("evaluate-*-sft"):
        (folder / "DONE").unlink()
    analysis = analyse(read_study("demo", small), draws=50)
    assert plane_of(analysis, draws=50).baseline is None
    assert part(analysis, looks([s.method for s in analysis.scores]), tmp_path).html
    for file in small.root.glob("evaluate-*/samples.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**r, "kl": None}) + "\n" for r in rows))
    for record in small.root.glob("evaluate-*/record.json"):
        write_json(record, {**json.loads(record.read_text()), "best_of": 1})
    bare = analyse(read_study("demo", small), draws=50)
    assert part(bare, looks([s.method for s in bare.scores]), tmp_path).html == ""


@pytest.mark.slow
def test_sweeps_that_never_left_the_reference(tmp_path):
    """A KL that cannot be told from zero, a gold of zero: points, and nothing fitted to them."""
    write_study(tmp_path, prompts=6, missing=False, grids=True)
    for file in tmp_path.glob("evaluate-*/samples.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        flat = [{**r, "kl": 0.001 * (-1) ** i, "gold": 0.0} for i, r in enumerate(rows)]
        file.write_text("".join(json.dumps(row) + "\n" for row in flat))
    analysis = analyse(read_study("demo", FakeStore(tmp_path)), draws=100)
    plane = plane_of(analysis, draws=100)
    assert plane.top is None
    assert all(c.fit is None for c in plane.curves if not c.control)
    drawn = looks([s.method for s in analysis.scores])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the answers of the data score 0.31, far above all points
        assert "<figure" in part(analysis, drawn, tmp_path).html


def test_how_nats_are_written():
    assert [nats(x) for x in (12.3, 2.44, 0.314)] == ["12", "2.4", "0.31"]
