from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats

from alignlab.report import statistics as st


def test_interquartile_mean_by_hand():
    # n = 8: two dropped at each end; (3 + 4 + 5 + 6) / 4 = 4.5, the outlier 100 has no say
    assert st.interquartile_mean([1, 2, 3, 4, 5, 6, 7, 100]) == 4.5
    # n = 5: floor(5 / 4) = 1 dropped at each end; (2 + 3 + 10) / 3 = 5
    assert st.interquartile_mean([10, 1, 2, 3, 50]) == 5.0


@given(some.lists(some.floats(-1e3, 1e3), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_interquartile_mean_is_the_trimmed_mean_that_rliable_uses(values):
    assert st.interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-9)


def test_bootstrap_interval_against_scipy():
    values = np.random.default_rng(0).normal(3, 2, size=80)
    ours = st.bootstrap_interval(values, draws=20000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1)
    )
    assert ours.value == pytest.approx(values.mean(), abs=1e-12)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)
    assert ours.error == pytest.approx(theirs.standard_error, rel=0.03)


def test_bootstrap_is_seeded_and_stratified():
    values = [0.0, 0.0, 10.0, 10.0]
    assert st.bootstrap_interval(values, seed=3) == st.bootstrap_interval(values, seed=3)
    # two strata without spread inside: every resample has mean 5
    strata = st.bootstrap_interval(values, strata=["a", "a", "b", "b"])
    assert (strata.low, strata.value, strata.high) == (5.0, 5.0, 5.0)
    assert st.bootstrap_interval(values).low < 5
    with pytest.raises(ValueError, match="one stratum per value"):
        st.bootstrap_interval(values, strata=["a"])


def test_hierarchical_bootstrap_with_one_seed_is_a_bootstrap_over_prompts():
    row = np.random.default_rng(0).normal(size=60)
    ours = st.hierarchical_bootstrap(row[None, :], draws=20000)
    assert ours.value == pytest.approx(row.mean(), abs=1e-12)
    assert ours.error == pytest.approx(row.std() / math.sqrt(60), rel=0.03)
    assert (ours.seeds, ours.prompts) == (1, 60)


def test_hierarchical_bootstrap_sees_seed_noise():
    # 4 seeds with means −3, −1, 1, 3 and no prompt noise: the variance of the mean is
    # s² / 4 = (9 + 1 + 1 + 9) / 3 / 4 = 5/3
    cells = np.repeat([[-3.0], [-1.0], [1.0], [3.0]], 50, axis=1)
    ours = st.hierarchical_bootstrap(cells, draws=20000)
    assert ours.value == 0.0
    assert ours.error == pytest.approx(math.sqrt(5 / 3), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("seed_sd", "prompt_sd"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.5), (0.2, 0.3)])
def test_hierarchical_error_is_calibrated(seed_sd, prompt_sd):
    """The mean squared error bar is the true variance of the mean, not two or three times it."""
    seeds, prompts, generator = 5, 40, np.random.default_rng(1)
    means, errors = [], []
    for _ in range(300):
        cells = generator.normal(0, 1, (seeds, prompts))
        cells += generator.normal(0, seed_sd, (seeds, 1)) + generator.normal(
            0, prompt_sd, (1, prompts)
        )
        found = st.hierarchical_bootstrap(cells, draws=300)
        means.append(found.value)
        errors.append(found.error**2)
    true = seed_sd**2 / seeds + prompt_sd**2 / prompts + 1 / (seeds * prompts)
    assert np.mean(errors) == pytest.approx(true, rel=0.25)
    assert np.var(means) == pytest.approx(true, rel=0.25)


def test_hierarchical_bootstrap_ignores_missing_cells():
    cells = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    found = st.hierarchical_bootstrap(cells)
    assert found.value == 2.0  # (1 + 2 + 3) / 3
    assert (found.seeds, found.prompts) == (2, 2)
    with pytest.raises(ValueError, match="at least one value"):
        st.hierarchical_bootstrap(np.full((2, 2), np.nan))


def test_paired_difference_uses_shared_keys_only():
    a = {(0, "p"): 1.0, (0, "q"): 2.0, (1, "p"): 4.0, (1, "only a"): 100.0}
    b = {(0, "p"): 0.5, (0, "q"): 1.0, (1, "p"): 2.5, (0, "only b"): -100.0}
    found = st.paired_difference(a, b)
    assert found.interval.value == pytest.approx((0.5 + 1.0 + 1.5) / 3)
    # prompts p: (0.5 + 1.5) / 2 = 1, q: 1; of the four sign patterns ++ and −− are as extreme
    assert found.p_value == 0.5
    with pytest.raises(ValueError, match="share no"):
        st.paired_difference({(0, "p"): 1.0}, {(1, "p"): 1.0})


def test_pairing_removes_the_prompts_own_difficulty():
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 5, 50)
    a = {(0, i): hard[i] + 0.2 + generator.normal(0, 0.1) for i in range(50)}
    b = {(0, i): hard[i] for i in range(50)}
    found = st.paired_difference(a, b).interval
    assert found.excludes(0)
    assert found.error < 0.03 < st.hierarchical_bootstrap(np.array([list(a.values())])).error


def test_sign_flip_exact_and_monte_carlo_against_scipy():
    exact = [0.3, 1.2, -0.4, 0.8, 0.9, 0.1]
    long = np.random.default_rng(0).normal(0.3, 1, 40)
    for values, tolerance in ((exact, 1e-12), (long, 0.01)):
        theirs = stats.permutation_test(
            (np.asarray(values),),
            np.mean,
            permutation_type="samples",
            n_resamples=20000,
            rng=np.random.default_rng(2),
        )
        assert st.sign_flip_test(values) == pytest.approx(theirs.pvalue, abs=tolerance)
    assert st.sign_flip_test([0.0, 0.0]) == 1.0
    assert st.sign_flip_test([1.0] * 30) == pytest.approx(1e-4)  # never zero


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04 → running maximum .04 .06 .06 .06
    assert st.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert st.holm([0.9, 0.6]) == [1.0, 1.0]
    assert st.holm([]) == []


@given(
    some.lists(some.integers(0, 5), min_size=1, max_size=15),
    some.lists(some.integers(0, 5), min_size=1, max_size=15),
)
@settings(max_examples=50, deadline=None)
def test_probability_of_improvement_is_mann_whitney(a, b):
    u = stats.mannwhitneyu(a, b).statistic
    assert st.probability_of_improvement(a, b) == pytest.approx(u / (len(a) * len(b)))


def test_minimum_detectable_effect_has_the_stated_power():
    # (1.959964 + 0.841621) · 2 / √100 = 0.560317
    effect = st.minimum_detectable_effect(100, 2.0)
    assert effect == pytest.approx(0.560317, abs=1e-6)
    z = stats.norm.ppf(0.975)
    power = stats.norm.sf(z - effect * math.sqrt(100) / 2.0)
    assert power == pytest.approx(0.8, abs=1e-9)


def test_bradley_terry_of_two_is_the_log_odds():
    # 3 wins to 1: strengths ± ½ log 3
    assert st.bradley_terry([[0, 3], [1, 0]]) == pytest.approx([math.log(3) / 2, -math.log(3) / 2])


def test_bradley_terry_recovers_planted_strengths():
    truth = np.array([1.0, 0.2, -0.3, -0.9])
    wins = 1000 / (1 + np.exp(truth[None, :] - truth[:, None]))
    np.fill_diagonal(wins, 0)
    assert st.bradley_terry(wins) == pytest.approx(truth, abs=1e-6)
    # a batch of matrices gives the same as one by one
    both = st.bradley_terry(np.stack([wins, wins.T]))
    assert both[1] == pytest.approx(-truth, abs=1e-6)


def test_bradley_terry_refuses_infinite_strengths_unless_smoothed():
    with pytest.raises(ValueError, match="prior"):
        st.bradley_terry([[0, 4], [0, 0]])
    assert np.isfinite(st.bradley_terry([[0, 4], [0, 0]], prior=0.5)).all()


def test_rank_intervals():
    clear = np.tile([3.0, 2.0, 1.0], (100, 1))
    assert st.rank_intervals(clear) == [(1, 1), (2, 2), (3, 3)]
    swapped = clear.copy()
    swapped[:50, [0, 1]] = swapped[:50, [1, 0]]
    assert st.rank_intervals(swapped) == [(1, 2), (1, 2), (3, 3)]


def test_cycles_are_found_once():
    rock = [[0.5, 0.6, 0.4], [0.4, 0.5, 0.7], [0.6, 0.3, 0.5]]
    assert st.cycles(rock) == [(0, 1, 2)]
    assert st.cycles([[0.5, 0.6, 0.6], [0.4, 0.5, 0.7], [0.4, 0.3, 0.5]]) == []
