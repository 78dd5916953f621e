"""Curves at equal KL, frontiers and Gao et al.'s forms: by hand and with planted peaks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from alignlab.report import statistics as st

POINTS = [(4.0, 0.5), (0.0, 0.1), (9.0, 0.4)]  # √KL 2, 0, 3


def test_value_at_kl_is_linear_in_the_root():
    # at √KL = 1 halfway from 0.1 to 0.5; at 2.5 halfway from 0.5 to 0.4
    found = st.value_at_kl(POINTS, [0.0, 1.0, 4.0, 6.25, 9.0])
    assert found == pytest.approx([0.1, 0.3, 0.5, 0.45, 0.4])
    assert np.isnan(st.value_at_kl(POINTS, [9.1]))
    assert np.isnan(st.value_at_kl([(1.0, 0.2), (4.0, 0.3)], [0.5]))  # does not begin at 0
    both = st.value_at_kl([POINTS, [(0, 0), (4, 1), (9, np.nan)]], [1.0, 9.0])
    assert both[:, 0] == pytest.approx([0.3, 0.5])
    assert np.isnan(both[1, 1])  # the last point of the second curve is unknown


def test_frontier_is_the_best_within_the_budget():
    found = st.frontier_value(POINTS, [0.0, 3.9, 4.0, 100.0])
    assert found == pytest.approx([0.1, 0.1, 0.5, 0.5])
    assert np.isnan(st.frontier_value([(2.0, 1.0)], [1.0]))


def test_mean_over_kl_by_hand():
    # √KL 0 … 2: mean of 0.1 and 0.5; 2 … 3: mean of 0.5 and 0.4; (2 · 0.3 + 1 · 0.45) / 3
    assert st.mean_over_kl(POINTS, 9.0, 300) == pytest.approx((2 * 0.3 + 0.45) / 3, abs=1e-6)
    assert math.isnan(st.mean_over_kl(POINTS, 9.5))


def test_choosing_among_equal_points_flatters_and_the_optimism_says_by_how_much():
    """Ten points of equal truth: the best of them is 1.54 deviations too high."""
    generator = np.random.default_rng(0)
    kl = np.arange(1.0, 11.0)
    seen, corrected = [], []
    for _ in range(200):
        own = generator.normal(0, 1, 10)
        points = np.stack([kl, own], axis=-1)
        drawn = np.stack([np.tile(kl, (200, 1)), own + generator.normal(0, 1, (200, 10))], -1)
        seen.append(float(st.frontier_value(points, 20.0)[0]))
        corrected.append(seen[-1] - float(st.frontier_optimism(points, drawn, 20.0)[0]))
    assert np.mean(seen) == pytest.approx(1.54, abs=0.15)
    # A bootstrap knows the noise about the points it saw, so it takes away most of the excess.
    assert abs(np.mean(corrected)) < 0.5 * np.mean(seen)
    clear = np.array([[1.0, 0.0], [2.0, 5.0]])
    noise = np.stack([np.tile([1.0, 2.0], (50, 1)), generator.normal([0, 5], 0.1, (50, 2))], -1)
    assert st.frontier_optimism(clear, noise, [9.0]) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("form", ["rl", "bon"])
def test_planted_coefficients_and_peak_are_found(form):
    d = np.linspace(0.5, 8, 12)
    alpha, beta = 0.6, 0.2 if form == "rl" else 0.06
    r = d * (alpha - beta * (np.log(d) if form == "rl" else d))
    found = st.fit_overoptimisation(d, r, form)
    assert (found.alpha.value, found.beta.value) == pytest.approx((alpha, beta))
    assert found.humps == 1.0
    best = minimize(lambda x: -found.at(x), x0=[2.0], tol=1e-10)  # the peak by search
    assert found.peak_d.value == pytest.approx(best.x[0], rel=1e-4)
    assert found.peak_r.value == pytest.approx(-best.fun, rel=1e-6)
    # by hand: d* = e^{0.6/0.2 − 1} = e² and R* = 0.2 e²; d* = 0.6 / 0.12 = 5 and R* = 0.36 / 0.24
    hand = (math.exp(2), 0.2 * math.exp(2)) if form == "rl" else (5.0, 1.5)
    assert (found.peak_d.value, found.peak_r.value) == pytest.approx(hand)
    assert st.form_value([0.0, 1.0], [alpha, beta], form) == pytest.approx(
        [0.0, alpha if form == "rl" else alpha - beta]
    )


def test_weights_are_those_of_least_squares():
    generator = np.random.default_rng(0)
    d, r, w = generator.uniform(0.5, 4, 9), generator.normal(size=9), generator.uniform(1, 5, 9)
    scale = np.sqrt(w)
    features = np.stack([d, -d * np.log(d)], axis=1)
    theirs = np.linalg.lstsq(features * scale[:, None], r * scale, rcond=None)[0]
    assert st.fit_form(d, r, "rl", w) == pytest.approx(theirs)
    # points at d = 0 and unknown gains carry no weight
    more = st.fit_form([*d, 0.0, 2.0], [*r, 7.0, np.nan], "rl", [*w, 1.0, 1.0])
    assert more == pytest.approx(theirs)


def test_draws_that_cannot_be_fitted_are_left_out():
    """A draw whose KLs fall to zero has no coefficients; the others still make the interval."""
    d, r = np.array([0.5, 1.0, 2.0]), np.array([0.3, 0.4, 0.5])
    drawn = (np.stack([d, 0 * d, [0.0, 0.0, 2.0], 1.1 * d]), np.tile(r, (4, 1)))
    found = st.fit_overoptimisation(d, r, drawn=drawn)
    assert np.isnan(found.drawn).any(axis=1).tolist() == [False, True, True, False]
    assert math.isfinite(found.alpha.low)


def test_no_peak_is_no_number():
    d = np.linspace(0.5, 3, 8)
    found = st.fit_overoptimisation(d, d * (0.3 + 0.1 * np.log(d)), "rl")
    assert math.isnan(found.peak_d.value)
    assert found.humps == 0.0
    with pytest.raises(ValueError, match="three different KLs"):
        st.fit_overoptimisation([1.0, 1.0, 2.0], [0.1, 0.1, 0.2])


def test_intervals_of_the_peak_cover():
    """Gains with noise of 0.02 at eight KLs: intervals by residuals and by given draws."""
    generator = np.random.default_rng(3)
    d = np.linspace(0.6, 6, 8)
    truth = st.form_value(d, [0.5, 0.25], "rl")
    peak = math.exp(0.5 / 0.25 - 1)
    hits = given = 0
    for _ in range(150):
        r = truth + generator.normal(0, 0.02, 8)
        hits += not st.fit_overoptimisation(d, r, draws=250).peak_d.excludes(peak)
        drawn = (np.tile(d, (250, 1)), r + generator.normal(0, 0.02, (250, 8)))
        given += not st.fit_overoptimisation(d, r, drawn=drawn).peak_d.excludes(peak)
    assert 0.86 <= hits / 150 <= 1.0
    assert 0.89 <= given / 150 <= 1.0
