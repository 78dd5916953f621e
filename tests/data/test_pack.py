from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignlab.data.group import NONE, TokenGroup
from alignlab.data.pack import Fullness, flatten, fullness, group_tokens, pack
from alignlab.errors import DataError


def token_group(prompt: list[int], *completions: list[int], row: int = 0) -> TokenGroup:
    arrays = tuple(np.array(c, dtype=np.int32) for c in completions)
    flags = (False,) * len(arrays)
    return TokenGroup(np.array(prompt, dtype=np.int32), arrays, NONE, row, f"r{row}", flags)


def test_flatten_by_hand():
    # index      0  1  2 | 3  4 | 5  6  7 | 8  9 | 10 | 11
    # token     10 11 12 |20 21 |30 31 32 |40 41 | 50 | 60       group 2 = prompt 60 only
    # position   0  1  2 | 3  4 | 3  4  5 | 0  1 |  2 |  0
    batch = flatten(
        [
            token_group([10, 11, 12], [20, 21], [30, 31, 32], row=7),
            token_group([40, 41], [50], row=3),
            token_group([60], row=5),
        ]
    )
    assert batch.input_ids.tolist() == [10, 11, 12, 20, 21, 30, 31, 32, 40, 41, 50, 60]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 0]
    assert batch.target_ids.tolist() == [20, 21, 30, 31, 32, 50]
    assert batch.predictor_index.tolist() == [2, 3, 2, 5, 6, 9]
    assert batch.target_completion.tolist() == [0, 0, 1, 1, 1, 2]
    assert batch.end_index.tolist() == [4, 7, 10]
    assert batch.lengths.tolist() == [2, 3, 1]
    assert batch.completion_group.tolist() == [0, 0, 1]
    assert batch.rows.tolist() == [7, 3, 5]
    assert [span.prompt for span in batch.spans] == [(0, 3), (8, 10), (11, 12)]
    assert [span.completions for span in batch.spans] == [((3, 5), (5, 8)), ((10, 11),), ()]
    assert (batch.completions, batch.tokens) == (3, 12)
    assert str(batch.input_ids.dtype) == "torch.int64"


def test_flatten_of_prompts_only_has_no_targets():
    batch = flatten([token_group([1, 2]), token_group([3])])
    assert batch.target_ids.tolist() == batch.end_index.tolist() == []
    assert batch.predictor_index.shape == (0,)
    assert batch.tokens == 3


def test_flatten_refuses_what_it_cannot_predict():
    with pytest.raises(DataError, match="Row 4"):
        flatten([token_group([1], [2]), token_group([1], [2], [], row=4)])
    with pytest.raises(DataError, match="Row 9"):
        flatten([token_group([], [2], row=9)])
    with pytest.raises(ValueError, match="at least one"):
        flatten([])


ids = st.lists(st.integers(0, 99), min_size=1, max_size=5)


@pytest.mark.slow
@given(st.lists(st.tuples(ids, st.lists(ids, max_size=4)), min_size=1, max_size=6))
def test_flatten_law_every_target_follows_its_predictor(data):
    groups = [token_group(p, *cs, row=i) for i, (p, cs) in enumerate(data)]
    batch = flatten(groups)
    assert batch.tokens == sum(map(group_tokens, groups))
    position = batch.position_ids.numpy()
    n = 0
    for group, span in zip(groups, batch.spans, strict=True):
        for completion, (first, last) in zip(group.completions, span.completions, strict=True):
            assert batch.input_ids[first:last].tolist() == completion.tolist()
            for j in range(last - first):
                predictor = int(batch.predictor_index[n])
                assert predictor == (span.prompt[1] - 1 if j == 0 else first + j - 1)
                assert position[first + j] == position[predictor] + 1
                n += 1
    assert n == len(batch.target_ids)


def test_pack_by_hand():
    # decreasing: 7(0) 5(2) 4(3) 3(1) 3(4), budget 10: [7,3] [5,4] [3]
    assert pack([7, 3, 5, 4, 3], 10) == [[0, 1], [2, 3], [4]]
    assert pack([25, 1], 10) == [[0], [1]]  # too large: alone
    assert pack([], 10) == []
    with pytest.raises(ValueError, match="positive"):
        pack([1], 0)


def first_fit_decreasing(sizes, budget):
    """The definition: items by falling size, each into the first bin with room for it."""
    bins, room = [], []
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = next((b for b, free in enumerate(room) if free >= sizes[item]), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(max(budget, sizes[item]))
        bins[place].append(item)
        room[place] -= sizes[item]
    return [sorted(members) for members in bins]


def test_pack_is_first_fit_decreasing():
    source = np.random.default_rng(0)
    for _ in range(400):
        budget, largest = int(source.integers(1, 30)), int(source.integers(1, 40))
        sizes = source.integers(source.integers(0, 2), largest + 1, source.integers(0, 40)).tolist()
        assert pack(sizes, budget) == first_fit_decreasing(sizes, budget)
    assert pack([0, 0, 0], 4) == [[0, 1, 2]]
    bins = pack([3, 3, 3], 4)
    assert all(type(i) is int for members in bins for i in members)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 50))
def test_pack_law_every_item_once_within_budget(sizes, budget):
    bins = pack(sizes, budget)
    assert sorted(i for members in bins for i in members) == list(range(len(sizes)))
    for members in bins:
        assert sum(sizes[i] for i in members) <= budget or len(members) == 1
    # first fit: no two bins could be one
    totals = sorted(sum(sizes[i] for i in members) for members in bins)
    assert len(totals) < 2 or totals[0] + totals[1] > budget


def test_how_full_micro_batches_are_by_hand():
    # 12 tokens, budget 10: at least two micro-batches, so at most 12 of 20 can be used.
    assert fullness([np.array([4, 4, 4])], 10) == Fullness(2.0, 0.6, 0.6)
    # 18 tokens would fit into two of 10, but 6 + 6 do not go together: three are needed.
    assert fullness([np.array([6, 6, 6])], 10) == Fullness(3.0, 0.6, 0.9)
    # Two steps: 10 of 10 and 12 of 20.
    both = fullness([np.array([5, 5]), np.array([4, 4, 4])], 10)
    assert both == Fullness(1.5, 22 / 30, 22 / 30)
    assert fullness([], 10) == Fullness(0.0, 0.0, 0.0)


@given(st.lists(st.integers(1, 99), min_size=1, max_size=60), st.integers(99, 400))
def test_no_packing_is_fuller_than_the_bound(sizes, budget):
    found = fullness([np.array(sizes)], budget)
    assert 0 < found.used <= found.most <= 1
    least = -(-sum(sizes) // budget)
    assert found.most >= (least - 1) / least
