"""Intervals: rliable's published behaviour, clusters, and coverage in simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from alignlab.report import statistics as st

# Five runs of four tasks; numbers below: rliable 1.2.0, 20,000 draws, RandomState(1).
RUNS = np.array(
    [[2.76, 1.4, 1.98, 3.24], [2.87, 0.02, 1.95, 0.85], [0.9, 1.41, 1.14, 2.45],
     [1.76, 1.12, 1.44, 1.33], [2.49, 0.79, 1.31, 0.15]]
)  # fmt: skip


def test_stratified_iqm_is_that_of_rliable():
    tasks = np.tile(np.arange(4), 5).tolist()
    found = st.bootstrap_interval(RUNS.ravel(), st.interquartile_mean, strata=tasks, draws=20000)
    assert found.value == pytest.approx(1.484)
    assert (found.low, found.high) == pytest.approx((1.168, 1.877), abs=0.02)


def table(generator, seeds, prompts, seed_sd, prompt_sd):
    noise = generator.normal(0, 1, (seeds, prompts))
    noise += generator.normal(0, seed_sd, (seeds, 1)) if seeds > 1 else 0
    return noise + generator.normal(0, prompt_sd, (1, prompts))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize(("seed_sd", "prompt_sd"), [(0, 0), (0.2, 0), (0.5, 0), (0.1, 0.5)])
def test_intervals_over_seeds_and_prompts_cover(seeds, seed_sd, prompt_sd):
    """95 % intervals hold the truth in 90 to 99 % of 250 studies, whatever the noise is."""
    generator = np.random.default_rng(seeds)
    hits = sum(
        not st.hierarchical_bootstrap(
            table(generator, seeds, 50, seed_sd, prompt_sd), draws=300
        ).excludes(0)
        for _ in range(250)
    )
    # 250 draws of 0.95 have a standard deviation of 0.014
    assert 0.90 <= hits / 250 <= 0.992


def test_a_plain_percentile_interval_would_not_cover():
    """What the few degrees of freedom are for: without them five noisy seeds cover too little."""
    generator = np.random.default_rng(0)
    plain = widened = 0
    for _ in range(300):
        found = st.resamples(table(generator, 3, 30, 1.0, 0), draws=300)
        plain += not st.summarise(found.value, found.draws).excludes(0)
        widened += not st.summarise(found.value, found.draws, freedom=found.freedom).excludes(0)
    assert plain / 300 < 0.88
    assert widened / 300 > 0.90


def test_freedom_by_hand():
    # V = 2, of which 1 with 4 and 1 with 9 degrees of freedom: 4 / (1/4 + 1/9) = 144/13
    assert st.satterthwaite(2.0, (1.0, 4), (1.0, 9)) == pytest.approx(144 / 13)
    assert st.satterthwaite(1.0, (1.0, 4), (0.0, 9)) == 4
    assert st.satterthwaite(0.0, (0.0, 4)) == math.inf
    assert st.satterthwaite(0.5, (1.0, 1)) == 1  # never fewer than one


def test_few_degrees_of_freedom_widen_by_t_over_z():
    draws = np.random.default_rng(0).normal(2, 1, 50000)
    found = st.summarise(2.0, draws, freedom=4.0)
    t = stats.t.ppf(0.975, 4)
    assert (found.low, found.high) == pytest.approx((2 - t, 2 + t), abs=0.05)
    assert found.error == pytest.approx(1, abs=0.02)  # the error is not widened


def test_prompts_of_one_source_are_drawn_together():
    """With four prompts of each source all alike, the error is that of the sources: twice as large.

    Miller 2024 reports naive errors up to three times too small.
    """
    source = np.repeat(np.arange(30), 4)
    cells = np.repeat(np.random.default_rng(0).normal(size=30), 4)[None, :]
    naive = st.hierarchical_bootstrap(cells, draws=8000).error
    own = st.hierarchical_bootstrap(cells, clusters=source, draws=8000).error
    assert own == pytest.approx(cells.std() / math.sqrt(30), rel=0.03)
    assert own == pytest.approx(2 * naive, rel=0.04)
    with pytest.raises(ValueError, match="one cluster per prompt"):
        st.hierarchical_bootstrap(cells, clusters=source[:3])


def test_clusters_of_one_prompt_change_nothing():
    cells = np.random.default_rng(2).normal(size=(3, 20))
    alone = st.hierarchical_bootstrap(cells, clusters=range(20))
    found = st.hierarchical_bootstrap(cells)
    assert (alone.value, alone.low, alone.error) == pytest.approx(
        (found.value, found.low, found.error)
    )


def test_clustered_intervals_cover():
    generator = np.random.default_rng(5)
    source = np.repeat(np.arange(15), 4)
    hits = naive = 0
    for _ in range(250):
        shared = generator.normal(0, 1, (1, 15)) + generator.normal(0, 0.5, (4, 15))
        cells = generator.normal(0, 1, (4, 60)) + np.repeat(shared, 4, axis=1)
        hits += not st.hierarchical_bootstrap(cells, clusters=source, draws=300).excludes(0)
        naive += not st.hierarchical_bootstrap(cells, draws=300).excludes(0)
    assert hits / 250 >= 0.90
    assert naive / 250 < 0.85


def test_a_missing_seed_keeps_methods_paired():
    """Two methods over the same seeds share their draws, also where one lacks a seed."""
    generator = np.random.default_rng(0)
    one = generator.normal(size=(4, 30))
    other = one + 1
    other[3] = np.nan
    without = np.where(np.isnan(other), np.nan, one)
    gap = st.resamples(other).by_prompt - st.resamples(without).by_prompt
    assert gap == pytest.approx(np.ones(2000))
