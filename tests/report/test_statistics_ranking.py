"""Who is better: against rliable's and choix's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from test_statistics_intervals import RUNS

from alignlab.report import statistics as st

OTHER = np.array(
    [[-1.95, 1.25, 1.46, -0.14], [2.87, -0.85, 0.65, 0.41], [2.13, 2.07, 0.75, 0.98],
     [-0.29, -1.38, 0.25, 0.76], [1.83, 1.8, 0.21, 0.3]]
)  # fmt: skip


def test_probability_of_improvement_is_that_of_rliable():
    # rliable 1.2.0: probability_of_improvement, 20,000 draws, RandomState(1)
    found = st.improvement_interval(RUNS, OTHER, draws=20000)
    assert found.value == pytest.approx(0.705)
    assert (found.low, found.high) == pytest.approx((0.53, 0.87), abs=0.021)
    one = st.improvement_interval(RUNS[:, 0], OTHER[:, 0])
    assert one.value == st.probability_of_improvement(RUNS[:, 0], OTHER[:, 0])
    with pytest.raises(ValueError, match="same tasks"):
        st.improvement_interval(RUNS, OTHER[:, :2])


def test_performance_profile_is_that_of_rliable():
    at = [-1, 0, 0.5, 1, 1.5, 2]
    found = st.performance_profile(RUNS, at, draws=20000)
    assert found.value == pytest.approx([1.0, 1.0, 0.9, 0.75, 0.4, 0.25])
    assert found.low == pytest.approx([1.0, 1.0, 0.75, 0.55, 0.25, 0.1], abs=0.051)
    assert found.high == pytest.approx([1.0, 1.0, 1.0, 0.9, 0.55, 0.4], abs=0.051)
    assert st.performance_profile([1.0, 3.0], [2.0]).value == [0.5]
    with pytest.raises(ValueError, match="no values"):
        st.performance_profile(np.empty((0, 2)), [1.0])


def test_bradley_terry_is_the_maximum_that_choix_finds():
    wins = np.array([[0, 7, 5, 9], [3, 0, 6, 8], [5, 4, 0, 6], [1, 2, 4, 0]])
    # choix 0.4.1, ilsr_pairwise, centred
    theirs = [0.673630406796973, 0.22521124747649907, 0.008709913204984598, -0.9075515674784567]
    assert st.bradley_terry(wins) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.slow
def test_bradley_terry_intervals_cover_the_planted_strengths():
    truth = np.array([0.8, 0.1, -0.9])
    chance = 1 / (1 + np.exp(truth[None, :] - truth[:, None]))
    generator = np.random.default_rng(0)

    def played(p):
        upper = np.triu(generator.binomial(60, p), 1)
        return upper + np.tril(60 - upper.T, -1)

    hits = 0
    for _ in range(100):
        wins = played(chance)
        drawn = np.stack([played(np.clip(wins / 60, 0, 1)) for _ in range(120)])
        found = st.bradley_terry_intervals(wins, drawn)
        hits += sum(not f.excludes(t) for f, t in zip(found, truth, strict=True))
    assert 0.88 <= hits / 300 <= 0.99
