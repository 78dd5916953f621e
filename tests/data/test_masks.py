"""Completions of several turns: what the loss counts, and what it only reads."""

from __future__ import annotations

import numpy as np
import pytest

from alignlab.data.group import NONE, TokenGroup
from alignlab.data.pack import flatten
from alignlab.errors import DataError


def masked(completions, masks, prompt=(1, 2), row=0):
    arrays = tuple(np.array(c, dtype=np.int32) for c in completions)
    kept = tuple(None if m is None else np.array(m, dtype=bool) for m in masks)
    return TokenGroup(np.array(prompt, np.int32), arrays, NONE, row, f"r{row}", masks=kept)


def test_masked_tokens_are_read_and_are_no_targets():
    # index   0 1 | 2 3 4 5 | 6 7 || 8 | 9
    # token   1 2 | 5 6 7 8 | 9 4 || 3 | 4
    # counted       y n n y   y y        y
    first = masked([[5, 6, 7, 8], [9, 4]], [[True, False, False, True], None])
    second = masked([[4]], [None], prompt=(3,), row=1)
    batch = flatten([first, second])
    assert batch.input_ids.tolist() == [1, 2, 5, 6, 7, 8, 9, 4, 3, 4]
    assert batch.target_ids.tolist() == [5, 8, 9, 4, 4]
    assert batch.predictor_index.tolist() == [1, 4, 1, 6, 8]
    assert batch.target_completion.tolist() == [0, 0, 1, 1, 2]
    assert batch.lengths.tolist() == [2, 2, 1]
    assert batch.end_index.tolist() == [5, 7, 9]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 0, 1]


def test_masks_of_every_group_count_from_its_own_prompt():
    first = masked([[5, 6]], [[False, True]])
    second = masked([[7, 8, 9], [4, 3]], [[True, False, True], [False, True]], (1, 2, 3), row=1)
    third = masked([[8, 8]], [[True, False]], row=2)
    batch = flatten([first, second, third])
    assert batch.target_ids.tolist() == [6, 7, 9, 3, 8]
    assert batch.target_completion.tolist() == [0, 1, 1, 2, 3]
    assert batch.lengths.tolist() == [1, 2, 1, 1]


def test_targets_are_counted_with_and_without_masks():
    assert masked([[5, 6, 7], [8, 9]], [[True, False, True], None]).targets() == (2, 2)
    assert masked([[5, 6, 7]], []).targets() == (3,)


def test_a_mask_goes_where_its_completion_goes():
    group = masked([[5, 6], [7, 8, 9]], [[True, False], [False, True, True]])
    kept = group.keep([1])
    assert kept.targets() == (2,)
    assert kept.masks[0].tolist() == [False, True, True]


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(DataError, match="one value per completion token"):
        masked([[5, 6, 7]], [[True, False]])
