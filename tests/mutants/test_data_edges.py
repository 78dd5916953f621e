"""Where mutants of packing and of the data order hid: boundaries, ties, types."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_pack import token_group

from alignlab.data.order import step_rows, steps_of
from alignlab.data.pack import flatten, group_tokens, pack


def test_group_tokens_by_hand():
    assert group_tokens(token_group([1, 2, 3], [4], [5, 6])) == 6
    assert group_tokens(token_group([1, 2])) == 2


def test_the_smallest_budget_packs():
    assert pack([1, 1], 1) == [[0], [1]]


def test_indices_of_a_bin_ascend_whatever_their_sizes():
    assert pack([3, 7], 10) == [[0, 1]]
    assert {type(i) for i in pack([3, 7], 10)[0]} == {int}


def test_equal_sizes_are_placed_by_index():
    # 400 items of 1 and 2 by turns, budget 2: the twos alone by index, then the ones in pairs
    bins = pack([1, 2] * 200, 2)
    assert bins[:200] == [[i] for i in range(1, 400, 2)]
    assert bins[200:] == [[i, i + 2] for i in range(0, 400, 4)]


def test_a_flat_batch_is_tensors_and_spans_are_plain_integers():
    batch = flatten([token_group([1, 2], [3]), token_group([4], [5, 6])])
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if field.name not in ("spans", "images"):
            assert (isinstance(value, torch.Tensor), value.dtype) == (True, torch.int64)
    assert {type(i) for s in batch.spans for span in (s.prompt, *s.completions) for i in span} == {
        int
    }


def test_a_flat_batch_names_the_images_of_its_prompts_in_order():
    groups = [
        dataclasses.replace(token_group([1], [2]), meta={"images": shown, "part": "a"})
        for shown in (("one", "two"), (), ("three", "four"))
    ]
    assert flatten(groups).images == ("one", "two", "three", "four")


def test_a_batch_moves_as_a_whole_and_keeps_its_spans():
    batch = flatten([token_group([1, 2], [3]), token_group([4], [5, 6])])
    moved = batch.to("meta")
    assert {
        getattr(moved, f.name).device.type
        for f in dataclasses.fields(moved)
        if f.name not in ("spans", "images")
    } == {"meta"}
    assert moved.spans == batch.spans
    assert (moved.completions, moved.tokens) == (2, 6)


def test_step_rows_is_the_concatenation_of_seeded_permutations():
    rows = np.concatenate([np.random.default_rng([3, e]).permutation(5) for e in range(4)]).tolist()
    for batch in (1, 2, 3, 5, 7):
        for step in range(len(rows) // batch):
            found = step_rows(step, batch, 5, 3)
            assert found == rows[step * batch : (step + 1) * batch]
            assert {type(row) for row in found} == {int}


def test_one_row_and_a_batch_of_one_are_enough():
    assert step_rows(2, 1, 1, 0) == [0]


@pytest.mark.parametrize(("step", "batch", "rows"), [(-1, 1, 1), (0, 0, 1), (0, 1, 0), (5, 0, 9)])
def test_impossible_steps_are_refused(step, batch, rows):
    with pytest.raises(ValueError, match="step_rows needs"):
        step_rows(step, batch, rows, 0)


def test_rounding_adds_no_step():
    # in floating point 1.1 · 90 / 3 = 33.00000000000001
    assert steps_of(1.1, 3, 90) == 33
    assert steps_of(1.0, 3, 91) == 31
