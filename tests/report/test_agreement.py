"""Whether two runs of a study agree: against scipy's t tests, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from alignlab.report.agreement import Cell, agreements


def cell(name: str, then: list[float], now: list[float], error: float | None = None) -> Cell:
    errors = {} if error is None else dict.fromkeys(range(len(then)), error)
    sides = (dict(enumerate(then)), dict(enumerate(now)))
    return Cell(name, "gold", *sides, errors, errors)


def test_five_seeds_are_welchs_test() -> None:
    then, now = [0.1, 0.5, 0.3, 0.2, 0.4], [0.6, 0.5, 0.9, 0.7, 0.4]
    [found] = agreements([cell("DPO", then, now)])
    oracle = stats.ttest_ind(now, then, equal_var=False)
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-9)
    assert found.freedom == pytest.approx(oracle.df, rel=1e-9)
    assert found.difference == pytest.approx(0.32)
    assert found.holm == found.p  # alone


def test_two_seeds_borrow_the_scatter_of_all_methods() -> None:
    cells = [cell("a", [0.0, 0.2], [0.5, 0.7]), cell("b", [1.0, 1.4], [1.0, 1.4001])]
    first, second = agreements(cells)
    # variances 0.02, 0.02, 0.08, 0.080004: pooled 0.05000…, with 4 degrees of freedom
    pooled = np.mean(
        [np.var(side, ddof=1) for side in ([0, 0.2], [0.5, 0.7], [1, 1.4], [1, 1.4001])]
    )
    error = math.sqrt(pooled * (1 / 2 + 1 / 2))
    assert first.error == pytest.approx(error)
    assert first.freedom == 4
    assert first.p == pytest.approx(2 * stats.t.sf(0.5 / error, 4))
    assert [first.holm, second.holm] == [pytest.approx(2 * first.p), pytest.approx(second.p)]


def test_one_seed_has_the_noise_of_its_prompts_alone() -> None:
    [found] = agreements([cell("a", [0.5], [0.8], error=0.1)])
    assert found.error == pytest.approx(math.sqrt(0.02))
    assert found.p == pytest.approx(2 * stats.norm.sf(0.3 / math.sqrt(0.02)))


def test_equal_numbers_agree_even_without_any_noise() -> None:
    same, rounded, other = agreements([
        cell("same", [0.5, 0.5], [0.5, 0.5]),
        cell("rounded", [0.5, 0.5], [0.5 + 1e-8, 0.5]),
        cell("other", [0.5, 0.5], [0.6, 0.6]),
    ])  # fmt: skip
    assert (same.p, same.equal) == (1.0, True)
    assert (rounded.p, rounded.equal) == (1.0, True)
    assert other.p < 1e-12
    assert not other.equal
    [certain] = agreements([cell("greedy", [0.5, 0.5], [0.6, 0.6])])
    assert certain.p == 0.0  # no scatter at all, and another number


def test_only_seeds_of_both_sides_count() -> None:
    found = Cell("a", "gold", {0: 1.0, 1: 3.0, 2: 9.0}, {1: 3.0, 0: 1.0, 7: 0.0}, {}, {})
    [each] = agreements([found])
    assert (each.seeds, each.then, each.now) == (2, 2.0, 2.0)
    assert agreements([Cell("a", "gold", {0: 1.0}, {1: 1.0}, {}, {})]) == []
    assert agreements([]) == []


def test_a_number_that_is_lost_does_not_agree() -> None:
    nan = math.nan
    kept, lost, never = agreements([
        cell("kept", [0.1, 0.2, nan], [0.1, 0.2, nan]),
        cell("lost", [0.1, 0.2], [0.1, nan]),
        cell("never", [nan], [nan]),
    ])  # fmt: skip
    assert (kept.equal, kept.p, kept.seeds) == (True, 1.0, 2)
    assert (lost.equal, lost.p) == (False, 0.0)
    assert (never.equal, never.p, never.error) == (True, 1.0, 0.0)


def test_metrics_do_not_lend_each_other_scatter() -> None:
    noisy = Cell("a", "tokens", {0: 10.0, 1: 90.0}, {0: 20.0, 1: 70.0}, {}, {})
    quiet = cell("a", [0.0, 0.02], [0.5, 0.52])
    _, found = agreements([noisy, quiet])
    assert found.error == pytest.approx(math.sqrt(0.0002))


@pytest.mark.slow
def test_the_test_keeps_its_level_and_finds_what_it_says_it_would() -> None:
    generator = np.random.default_rng(0)
    methods, seeds, studies = 6, 2, 150
    false, found = 0, 0
    for _ in range(studies):
        values = generator.normal(0, 1, (methods, 2, seeds))
        cells = [cell(str(i), list(v[0]), list(v[1])) for i, v in enumerate(values)]
        result = agreements(cells)
        false += any(each.holm < 0.05 for each in result)
        # shift one method by what is said to be noticeable
        shift = float(np.median([each.noticeable for each in result]))
        cells[0] = cell("0", list(values[0][0]), list(values[0][1] + shift))
        found += agreements(cells)[0].holm < 0.05
    assert false / studies < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    assert 0.7 < found / studies < 0.95
