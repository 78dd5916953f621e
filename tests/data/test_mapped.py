"""Token groups in mapped files read as lists do, some of them, changed or end to end."""

from __future__ import annotations

import numpy as np
import pytest

from alignlab.data import mapped
from alignlab.data.group import CHOSEN_REJECTED, TokenGroup
from alignlab.data.mapped import Joined, Selection, keep, kept


def group(row: int) -> TokenGroup:
    ids = np.arange(row, row + 3, dtype=np.int32)
    meta = {"n": row} if row % 2 else {"n": row, "place": f"a.jsonl, line {row}"}
    return TokenGroup(
        ids[:1], (ids, ids[1:]), CHOSEN_REJECTED, row, f"id{row}", (False, True), meta
    )


def plain(group: TokenGroup) -> list[object]:
    parts = [part.tolist() for part in (group.prompt, *group.completions)]
    return [parts, group.row, group.id, group.truncated, dict(group.meta), group.verdict]


@pytest.fixture
def groups(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "SHARD", 4)
    notes: dict[str, list[int]] = {"seen": []}

    def given():
        for row in range(0, 30, 3):
            notes["seen"].append(row)
            yield group(row)

    keep(tmp_path, "k", given(), notes)
    found, told = kept(tmp_path, "k")
    assert told["seen"] == list(range(0, 30, 3))
    assert len(list(tmp_path.glob("k-*.tokens"))) == 3  # 4 + 4 + 2
    return found


def test_what_is_kept_comes_back_with_its_rows_and_places(groups):
    assert len(groups) == 10
    assert [plain(g) for g in groups] == [plain(group(row)) for row in range(0, 30, 3)]
    assert plain(groups[-1]) == plain(group(27))
    assert [g.row for g in groups[2:8:2]] == [6, 12, 18]
    assert groups.sizes().tolist() == [1 + 3 + 2] * 10
    with pytest.raises(IndexError):
        groups[10]


def test_some_of_them_changed_when_they_are_read(groups):
    read: list[int] = []

    def one(each: TokenGroup) -> TokenGroup:
        read.append(each.row)
        return each.keep((1,))

    some = Selection.of(groups, lambda g: g.row % 2 == 1, one)
    assert read == []
    assert len(some) == 5
    assert [len(g.completions) for g in some[:2]] == [1, 1]
    assert read == [3, 9]
    assert [g.row for g in Selection.of(some, lambda g: g.row > 9)] == [15, 21, 27]
    assert list(Selection.of(groups, lambda g: False)) == []


def test_several_end_to_end(groups):
    both = Joined(groups, [], Selection.of(groups, lambda g: g.row == 3))
    assert [g.row for g in both] == [*range(0, 30, 3), 3]
    assert both[10].row == 3
    assert both[-1].row == 3
    assert len(Joined()) == 0


def test_a_shard_that_is_gone_or_cut_is_missed(groups, tmp_path):
    assert kept(tmp_path, "other") is None
    shard = tmp_path / "k-1.tokens"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert kept(tmp_path, "k") is None
