"""Optimizer steps cut by tokens: greedy over the seeded order, by hand and by a second way."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from alignlab.data.order import step_rows
from alignlab.data.steps import TokenSteps, shown


def order(rows: int, seed: int, epochs: int) -> list[int]:
    return [row for epoch in range(epochs) for row in step_rows(epoch, rows, rows, seed)]


def greedy(sizes: list[int], budget: int, seed: int, epochs: int) -> list[list[int]]:
    """Steps one row after the other, as a person would fill boxes."""
    steps: list[list[int]] = [[]]
    for row in order(len(sizes), seed, epochs):
        if steps[-1] and sum(sizes[r] for r in steps[-1]) + sizes[row] > budget:
            steps.append([])
        steps[-1].append(row)
    return steps


def test_a_step_takes_what_fits_by_hand() -> None:
    # The order of seed 0 is 3 2 5 4 0 1 | 1 4 ...; sizes in that order 2 5 1 9 3 4 | 4 9 ...
    steps = TokenSteps(np.array([3, 4, 5, 2, 9, 1]), budget=8, seed=0)
    assert order(6, 0, 2)[:8] == [3, 2, 5, 4, 0, 1, 1, 4]
    assert steps.rows(0) == [3, 2, 5]  # 2 + 5 + 1 = 8 fills it exactly
    assert steps.rows(1) == [4]  # 9 alone is more than 8
    assert steps.rows(2) == [0, 1]  # 3 + 4 = 7, and the 4 behind the epoch's end does not fit
    assert steps.rows(3) == [1]
    assert [steps.end(n) for n in range(5)] == [0, 3, 4, 6, 7]
    assert steps.steps_of(1.0) == 3
    assert steps.steps_of(0.5) == 1  # three of six rows
    assert steps.steps_of(4 / 6) == 2


@pytest.mark.parametrize("budget", [1, 7, 20, 64, 500])
@pytest.mark.parametrize("seed", [0, 1])
def test_steps_are_those_of_filling_boxes_row_by_row(budget: int, seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 21, 17).tolist()
    steps = TokenSteps(np.array(sizes), budget, seed)
    expected = greedy(sizes, budget, seed, epochs=60)[:-1]  # the last box is not full yet
    for step, rows in zip(range(40), expected, strict=False):
        assert steps.rows(step) == rows
    assert steps.rows(3) == expected[3]  # asked again, after later ones


def test_a_step_may_hold_several_epochs() -> None:
    steps = TokenSteps(np.array([2, 3]), budget=11, seed=4)
    assert sorted(steps.rows(0)) == [0, 0, 1, 1]  # 2 + 3 + 2 + 3 = 10; one more would be 12 or 13


def test_epochs_show_every_row_as_often() -> None:
    sizes = np.random.default_rng(0).integers(1, 9, 13)
    steps = TokenSteps(sizes, 10, 0)
    seen = [row for step in range(steps.steps_of(3.0)) for row in steps.rows(step)]
    assert (np.bincount(seen[: 3 * 13]) == 3).all()
    assert len(seen) - len(steps.rows(steps.steps_of(3.0) - 1)) < 3 * 13 <= len(seen)


def test_shown_counts_the_rows_of_the_order() -> None:
    for end in range(20):
        expected = np.bincount(order(6, 5, 4)[:end], minlength=6)
        assert shown(6, 5, end).tolist() == expected.tolist()


@pytest.mark.parametrize(("sizes", "budget"), [([], 4), ([1, 0], 4), ([1], 0)])
def test_nothing_to_fill_a_step_with_is_refused(sizes: list[int], budget: int) -> None:
    with pytest.raises(ValueError, match="TokenSteps needs"):
        TokenSteps(np.array(sizes, dtype=np.int64), budget, 0)


def test_many_rows_are_cut_in_little_time() -> None:
    steps = TokenSteps(np.full(100_000, 7), 7 * 50, 0)
    numbers = count()
    while steps.end(next(numbers)) < 100_000:
        pass
    assert next(numbers) - 1 == 2_000
