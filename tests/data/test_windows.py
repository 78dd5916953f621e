"""Documents in windows: every token a target exactly once, by itself or end to end."""

from __future__ import annotations

import numpy as np
import pytest

from alignlab.data.group import DEMONSTRATION, TokenGroup
from alignlab.data.mapped import Selection, completion_counts, sizes_of
from alignlab.data.windows import ConcatenatedWindows, DocumentWindows, windows_of

BOS, EOS = 1, 2


def document(number: int, tokens: int) -> TokenGroup:
    """``tokens`` tokens of its own and EOS, after BOS: 100n, 100n + 1, …"""
    ids = [100 * number + i for i in range(tokens)]
    return TokenGroup(
        prompt=np.array([BOS], dtype=np.int32),
        completions=(np.array([*ids, EOS], dtype=np.int32),),
        verdict=DEMONSTRATION,
        row=number,
        id=f"d{number}",
    )


DOCUMENTS = [document(1, 4), document(2, 1), document(3, 0), document(4, 7)]


def plain(groups) -> list[tuple[list[int], list[int]]]:
    return [(g.prompt.tolist(), g.completions[0].tolist()) for g in groups]


def test_windows_of_single_documents_by_hand():
    """Targets 5, 2, 1, 8 in windows of 3: 2 + 1 + 1 + 3 windows, each after the token before."""
    groups = DocumentWindows(DOCUMENTS, 3)
    assert plain(groups) == [
        ([BOS], [100, 101, 102]),
        ([102], [103, EOS]),
        ([BOS], [200, EOS]),
        ([BOS], [EOS]),
        ([BOS], [400, 401, 402]),
        ([402], [403, 404, 405]),
        ([405], [406, EOS]),
    ]
    assert [g.id for g in groups[:3]] == ["d1:0", "d1:3", "d2:0"]
    assert [g.truncated[0] for g in groups] == [True, False, False, False, True, True, False]
    assert groups.owners().tolist() == [0, 0, 1, 2, 3, 3, 3]
    assert [g.row for g in groups] == list(range(7))


def test_end_to_end_by_hand():
    """BOS 100 … EOS BOS 200 EOS BOS EOS BOS 400 … EOS: 6 + 3 + 2 + 9 = 20 tokens, 19 targets."""
    groups = ConcatenatedWindows(DOCUMENTS, 6, opened=True)
    assert plain(groups) == [
        ([BOS], [100, 101, 102, 103, EOS, BOS]),
        ([BOS], [200, EOS, BOS, EOS, BOS, 400]),
        ([400], [401, 402, 403, 404, 405, 406]),
        ([406], [EOS]),
    ]
    assert [g.truncated[0] for g in groups] == [True, True, True, False]


def test_end_to_end_without_bos_starts_from_the_end_before():
    """Only the first document has a token before it: 1 + 5 + 2 + 1 + 8 = 17 tokens."""
    groups = ConcatenatedWindows(DOCUMENTS, 6, opened=False)
    assert plain(groups) == [
        ([BOS], [100, 101, 102, 103, EOS, 200]),
        ([200], [EOS, EOS, 400, 401, 402, 403]),
        ([403], [404, 405, 406, EOS]),
    ]


@pytest.mark.parametrize("packing", ["documents", "concatenated"])
@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("window", [1, 2, 5, 64])
def test_every_token_is_a_target_once_and_sizes_are_known_unread(packing, opened, window):
    source = np.random.default_rng(window)
    documents = [document(n, int(source.integers(0, 30))) for n in range(1, 21)]
    groups = windows_of(documents, window, packing, opened=opened)
    targets = np.concatenate([g.completions[0] for g in groups]).tolist()
    joined = np.concatenate([d.completions[0] for d in documents]).tolist()
    if packing == "concatenated" and opened:
        assert targets.count(BOS) == 19  # every document but the first
        targets = [t for t in targets if t != BOS]
    assert targets == joined
    sizes = [1 + len(g.completions[0]) for g in groups]
    assert sizes_of(groups).tolist() == sizes
    assert max(sizes) <= window + 1
    assert completion_counts(groups).tolist() == [1] * len(groups)
    if packing == "concatenated":
        assert set(sizes[:-1]) <= {window + 1}  # all but the last are full
    some = Selection(groups, np.arange(0, len(groups), 3))
    assert sizes_of(some).tolist() == sizes[::3]


def test_a_window_is_a_view_and_copies_nothing():
    groups = DocumentWindows(DOCUMENTS, 3)
    assert np.shares_memory(groups[5].completions[0], DOCUMENTS[3].completions[0])
    assert np.shares_memory(groups[5].prompt, DOCUMENTS[3].completions[0])


def test_nothing_is_nothing():
    for packing in ("documents", "concatenated"):
        groups = windows_of([], 4, packing, opened=True)
        assert len(groups) == 0
        assert sizes_of(groups).tolist() == []
