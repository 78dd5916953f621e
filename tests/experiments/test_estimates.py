"""The estimators of experiments/03_rm_overoptimization, by hand and by enumeration."""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "03_rm_overoptimization"


@pytest.fixture(scope="module")
def estimates():
    sys.path.insert(0, str(FOLDER))
    try:
        import estimates as module

        yield module
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("estimates", None)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_subsets(estimates, n):
    source = np.random.default_rng(0)
    gold, proxy = source.normal(size=(2, 5))
    picked = [gold[max(s, key=proxy.__getitem__)] for s in combinations(range(5), n)]
    assert estimates.best_of_n_gold(gold, proxy, n) == pytest.approx(np.mean(picked))


def test_best_of_two_of_three_by_hand(estimates):
    # subsets by proxy: {1,2} → 20, {1,3} → 30, {2,3} → 30; mean 80/3
    found = estimates.best_of_n_gold([30.0, 10.0, 20.0], [3.0, 1.0, 2.0], 2)
    assert found == pytest.approx(80 / 3)
    with pytest.raises(ValueError, match="best of 4 needs as many samples, not 3"):
        estimates.best_of_n_gold([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 4)


def test_a_bin_counts_each_curve_once(estimates):
    # bin [0, 1): curve one has 0.2, 0.4 with values 1, 3 (mean 2), curve two 0.6 with 4: 3 in all
    edges = np.array([0.0, 1.0, 2.0])
    places, values = [[0.2, 0.4, 1.5], [0.6]], [[1.0, 3.0, 9.0], [4.0]]
    x, y = estimates.binned(places, values, edges)
    assert x == pytest.approx([0.45])  # (0.3 + 0.6) / 2
    assert y == pytest.approx([3.0])  # the second bin misses curve two
