"""Expected maxima of trials: by enumeration, and in simulated searches."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from alignlab.report import statistics as st

TRIALS = [0.3, -1.0, 0.9, 0.9, 2.0]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_expected_max_is_the_mean_over_all_choices(k):
    without = np.mean([max(choice) for choice in combinations(TRIALS, k)])
    replaced = np.mean([max(choice) for choice in product(TRIALS, repeat=k)])
    assert st.expected_max(TRIALS, k) == pytest.approx(without)
    assert st.expected_max(TRIALS, k, replacement=True) == pytest.approx(replaced)


def test_expected_max_is_unbiased_and_the_plug_in_is_too_low():
    """Best of 10 normal trials: 1.5388, from 12 trials each; with replacement clearly below."""
    generator = np.random.default_rng(0)
    truth = 10 * stats.norm.expect(lambda x: x * stats.norm.cdf(x) ** 9)
    samples = generator.normal(size=(3000, 12))
    unbiased = np.mean([st.expected_max(row, 10) for row in samples])
    plug_in = np.mean([st.expected_max(row, 10, replacement=True) for row in samples])
    assert truth == pytest.approx(1.5388, abs=1e-4)
    assert unbiased == pytest.approx(truth, abs=0.04)
    assert plug_in < truth - 0.1


def test_expected_max_refuses_what_it_cannot_know():
    with pytest.raises(ValueError, match="best of 6 trials cannot be expected from 5"):
        st.expected_max(TRIALS, 6)
    assert st.expected_max(TRIALS, 6, replacement=True) < 2
    with pytest.raises(ValueError, match="finite value"):
        st.expected_max([1.0, np.nan], 1)
    with pytest.raises(ValueError, match="at least one trial"):
        st.expected_max([], 1)
    with pytest.raises(ValueError, match="best of 0"):
        st.expected_max(TRIALS, 0)


def test_expected_max_curve_rises_from_the_mean_to_the_maximum():
    found = st.expected_max_curve(TRIALS)
    assert found.at == pytest.approx([1, 2, 3, 4, 5])
    assert found.value[0] == pytest.approx(np.mean(TRIALS))
    assert found.value[-1] == 2.0
    assert (np.diff(found.value) > 0).all()
    assert (found.low <= found.value).all()
    assert (found.value <= found.high + 1e-12).all()
    assert found.high[-1] == 2.0  # no resample knows a better trial
    some = st.expected_max_curve(TRIALS, [2, 4])
    assert some.value == pytest.approx(found.value[[1, 3]])


def test_expected_max_of_many_trials_stays_exact():
    values = np.arange(1.0, 2001.0)  # 2,000 trials 1 … 2000: E max of k is k (N + 1) / (k + 1)
    for k in (1, 7, 500, 2000):
        assert st.expected_max(values, k) == pytest.approx(k * 2001 / (k + 1), rel=1e-9)
