"""Tests of differences: against scipy and statsmodels, their size and their power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from alignlab.report import statistics as st


def items(only_a: int, only_b: int, both: int = 7) -> tuple[list[int], list[int]]:
    a = [1] * only_a + [0] * only_b + [1] * both + [0] * both
    b = [0] * only_a + [1] * only_b + [1] * both + [0] * both
    return a, b


@pytest.mark.parametrize(
    ("only_a", "only_b", "exact", "chi2"),
    [  # statsmodels 0.15.0, mcnemar(exact=True) and (exact=False, correction=True)
        (6, 1, 0.125, 0.13057001811573693),
        (10, 3, 0.09228515625, 0.0960923294556734),
        (25, 8, 0.004551384132355452, 0.005348770520482035),
    ],
)
def test_mcnemar_is_that_of_statsmodels(only_a, only_b, exact, chi2):
    a, b = items(only_a, only_b)
    assert st.mcnemar(a, b) == pytest.approx(exact, rel=1e-12)
    assert st.mcnemar(b, a, method="chi2") == pytest.approx(chi2, rel=1e-12)


def test_mcnemar_mid_p_by_hand():
    # 6 of 7: exact = 2 (1 + 7) / 128 = 0.125; the observed split 7/128 counts half on each side
    assert st.mcnemar(*items(6, 1), method="mid") == pytest.approx(0.125 - 7 / 128)
    # 4 to 2: 2 (1 + 6 + 15) / 64 less 15/64
    assert st.mcnemar(*items(4, 2), method="mid") == pytest.approx(29 / 64)
    assert st.mcnemar(*items(0, 0)) == 1.0
    assert st.mcnemar(*items(5, 5), method="chi2") == 1.0  # |0| − 1 is no evidence
    assert 0 < st.mcnemar(*items(900, 700)) < 1e-5  # 2^1600 is beyond a float
    with pytest.raises(ValueError, match="0 or 1"):
        st.mcnemar([0.5], [1])
    with pytest.raises(ValueError, match="0 or 1"):
        st.mcnemar([1, 0], [1])


@pytest.mark.parametrize("shape", [(5, 6), (30, 25)])
def test_permutation_test_against_scipy(shape):
    generator = np.random.default_rng(shape[0])
    a, b = generator.normal(0.5, 1, shape[0]), generator.normal(0, 1, shape[1])
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        vectorized=True,
        n_resamples=20000,
        rng=generator,
    ).pvalue
    exact = math.comb(sum(shape), shape[0]) <= 20000
    # scipy doubles the smaller tail; of equal sizes that is the same up to the draws
    assert st.permutation_test(a, b) == pytest.approx(theirs, abs=0.005 if exact else 0.02)


def test_permutation_test_by_hand():
    # {3} against {1, 2}: of the 3 choices of one, 3 and 1 lie furthest from the mean: 2/3
    assert st.permutation_test([3], [1, 2]) == pytest.approx(2 / 3)
    assert st.permutation_test([1, 1], [1, 1]) == 1.0
    with pytest.raises(ValueError, match="empty"):
        st.permutation_test([], [1.0])


def test_permutation_and_sign_flip_have_their_size():
    """Without a difference p < 0.05 in 5 % of experiments; of 400, give or take 1.1 %."""
    generator = np.random.default_rng(0)
    flips = swaps = 0
    for _ in range(400):
        a, b = generator.standard_t(4, size=(2, 14))
        flips += st.sign_flip_test(a - b, draws=399) <= 0.05
        swaps += st.permutation_test(a, b, draws=399) <= 0.05
    assert 0.025 <= flips / 400 <= 0.08
    assert 0.025 <= swaps / 400 <= 0.08


@pytest.mark.slow
def test_size_and_power_of_a_paired_difference_are_as_predicted():
    """Intervals of five seeds × 60 prompts exclude 0 as often as `power` says."""
    generator = np.random.default_rng(1)
    noise, effect, n = 1.0, 0.2, 300
    found = {0.0: 0, effect: 0}
    for _ in range(n):
        cells = generator.normal(0, noise, (1, 60))
        for shift in found:
            found[shift] += st.difference_of_cells(cells + shift, draws=300).p_value < 0.05
    predicted = st.power(effect, 60, noise, freedom=59)
    assert found[0.0] / n <= 0.085
    assert found[effect] / n == pytest.approx(predicted, abs=0.09)  # three standard deviations


def test_holm_is_that_of_statsmodels():
    # multipletests(method="holm") of statsmodels 0.15.0
    found = st.holm([0.01, 0.04, 0.03, 0.005, 0.2])
    assert found == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.2])


def test_holm_keeps_the_family_wise_error():
    generator = np.random.default_rng(0)
    wrong = sum(min(st.holm(list(generator.uniform(size=10)))) < 0.05 for _ in range(2000))
    assert wrong / 2000 == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    ("n", "effect", "power"),  # TTestPower().power(effect, n, 0.05) of statsmodels 0.15.0
    [(5, 1.5, 0.7107026739256754), (10, 0.8, 0.6162327634744059), (30, 0.5, 0.75396471574379)],
)
def test_power_is_that_of_statsmodels(n, effect, power):
    assert st.power(effect, n, 1.0, freedom=n - 1) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "effect"),  # TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)
    [(5, 1.6819970833232674), (10, 0.9960019107624178), (30, 0.5292357045238948)],
)
def test_detectable_effect_is_near_that_of_statsmodels(n, effect):
    found = st.minimum_detectable_effect(n, 1.0, freedom=n - 1)
    assert found == pytest.approx(effect, rel=0.02)
    assert st.power(found, n, 1.0, freedom=n - 1) == pytest.approx(0.8, abs=0.02)


def test_t_p_value_against_scipy():
    assert st.t_p_value(2.0, 1.0, 4) == pytest.approx(2 * stats.t.sf(2, 4))
    assert st.t_p_value(-2.0, 1.0) == pytest.approx(2 * stats.norm.sf(2))
    assert (st.t_p_value(0.0, 0.0), st.t_p_value(1.0, 0.0)) == (1.0, 0.0)
