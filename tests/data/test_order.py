from __future__ import annotations

import pytest

from alignlab.data.order import step_rows, steps_of


def test_an_epoch_shows_every_row_once_even_across_steps():
    # 7 rows, batch 3: steps 0..6 are exactly 3 epochs
    seen = [row for step in range(7) for row in step_rows(step, 3, 7, seed=1)]
    for epoch in range(3):
        assert sorted(seen[epoch * 7 : epoch * 7 + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]


def test_pure_and_seeded():
    assert step_rows(5, 4, 100, 0) == step_rows(5, 4, 100, 0)
    assert step_rows(5, 4, 100, 0) != step_rows(5, 4, 100, 1)


def test_the_row_sequence_does_not_depend_on_the_batch_size():
    small = [r for s in range(8) for r in step_rows(s, 2, 11, 3)]
    assert small == [r for s in range(2) for r in step_rows(s, 8, 11, 3)]


def test_a_batch_larger_than_the_data_repeats_epochs():
    rows = step_rows(0, 5, 2, 0)
    assert sorted(rows[:2]) == sorted(rows[2:4]) == [0, 1]


def test_steps_of():
    assert steps_of(1, 3, 7) == 3  # 7/3 = 2.33
    assert steps_of(3, 3, 7) == 7
    assert steps_of(1.1, 3, 90) == 33  # 1.1 · 90 is 99.00000000000001


def test_refuses_an_empty_data_set():
    with pytest.raises(ValueError, match="rows"):
        step_rows(0, 1, 0, 0)
