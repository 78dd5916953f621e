"""The search for a token budget, by arithmetic: what fits, what is not even tried, what is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alignlab.engine import memory
from alignlab.engine.fitting import TOO_MUCH, largest, reserved
from alignlab.errors import ConfigError

CPU = torch.device("cpu")


class Taking:
    """A device on which n rows take ``fixed + each · n`` bytes; remembers what was tried."""

    def __init__(self, each: int, fixed: int = 0, end: int = 1 << 40) -> None:
        self.each, self.fixed, self.end = each, fixed, end
        self.tried: list[int] = []

    def __call__(self, rows: int) -> int:
        self.tried.append(rows)
        taken = self.fixed + self.each * rows
        return taken if taken <= self.end else TOO_MUCH


def test_it_doubles_and_then_bisects() -> None:
    taking = Taking(each=10)
    # 32 rows take 320 bytes; 64 would take 640 > 500 and are not tried, 48 take 480, 56 would take
    # 560 and 52 would take 520, and what is between 48 and 52 is within an eighth of 48.
    assert largest(taking, first=4, most=1000, room=500) == 48
    assert taking.tried == [4, 8, 16, 32, 48]


def test_it_stops_at_the_most_that_is_of_use() -> None:
    taking = Taking(each=1)
    assert largest(taking, first=4, most=23, room=1e9) == 23
    assert taking.tried == [4, 8, 16, 23]
    assert largest(Taking(each=1), first=50, most=3, room=1e9) == 3


def test_nothing_is_tried_that_would_not_fit_by_proportion() -> None:
    for room in range(1, 400, 7):
        taking = Taking(each=10)
        found = largest(taking, first=1, most=1000, room=room)
        assert max(taking.tried[1:], default=0) * 10 <= room
        assert found * 10 <= room
        assert room < 10 or found >= room // 10 * 7 / 8  # within an eighth of the most


def test_less_than_the_first_try_may_fit() -> None:
    assert largest(Taking(each=10), first=16, most=64, room=35) == 3
    assert largest(Taking(each=10), first=16, most=64, room=9) == 0
    assert largest(Taking(each=10), first=16, most=64, room=-5) == 0


def test_a_device_that_says_no_is_believed() -> None:
    taking = Taking(each=10, end=210)  # out of memory beyond 21 rows, whatever it said was free
    assert 18 <= largest(taking, first=4, most=1000, room=1e9) <= 21


class Counts:
    def parameter_counts(self, view: str) -> tuple[int, int]:
        return 1000, {"policy": 100, "value": 10}[view]


@pytest.mark.parametrize(
    ("zero", "of", "average", "expected"),
    [
        (0, 2, False, 110 * (4 + 8)),  # a gradient and two moments of four bytes
        (0, 1, True, 110 * (4 + 8 + 4)),
        (1, 2, False, 110 * (4 + 6)),  # two share the moments and a copy of the weights
        (2, 2, False, 110 * (2 + 6)),
        (3, 4, False, 110 * (1 + 3)),
    ],
)
def test_what_training_will_take_is_kept_free(
    zero: int, of: int, average: bool, expected: int
) -> None:
    views = ["policy", "value"]
    assert reserved(Counts(), views, average=average, zero=zero, of=of) == expected  # type: ignore[arg-type]


def test_a_large_block_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = memory.held(CPU)

    def compute() -> None:
        torch.ones(25_000_000)  # 100 MB, and gone

    taken = memory.most_taken(CPU, compute, before)
    assert taken is not None
    assert 90e6 < taken < 130e6
    assert memory.held(CPU) - before < 50e6
    nothing = memory.most_taken(CPU, lambda: None, memory.held(CPU))
    assert nothing is not None
    assert nothing < 10e6  # the mark was set back


def test_a_stated_limit_bounds_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident", lambda: 3_000)
    monkeypatch.setattr(memory, "_available", lambda: 10_000)
    monkeypatch.setattr(memory, "_left_by_cgroup", lambda: 8_000)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.room(CPU, None) == 8_000
    assert memory.room(CPU, 5_000) == 2_000
    assert memory.room(CPU, 1_000) == -2_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.room(CPU, None) == 2_000


NEW = ("memory.max", "memory.current")


def cgroup(folder: Path, limit: str, usage: int, caches: int, *, old: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names if old else NEW, (limit, str(usage)), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {caches}\nactive_file 7\n")


def test_control_groups_bind_all_below_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "CGROUPS", groups)
    (proc / "self/cgroup").write_text("0::/user/job/step\n")
    cgroup(groups / "user/job/step", "max", 100, 0, old=False)
    cgroup(groups / "user/job", "1000", 400, 50, old=False)
    cgroup(groups / "user", "5000", 800, 0, old=False)
    assert memory._left_by_cgroup() == 650  # 1000 - 400, and 50 of cached files
    (proc / "self/cgroup").write_text("3:cpuset:/\n4:memory:/api\n0::/\n")
    cgroup(groups / "memory/api", "900", 300, 10, old=True)
    assert memory._left_by_cgroup() == 610
    (proc / "self/cgroup").write_text("0::/\n")
    assert memory._left_by_cgroup() > 1 << 60  # no limit


def test_a_system_that_says_nothing_asks_for_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path)
    with pytest.raises(ConfigError, match=r"state a number, for example engine\.token_budget=4096"):
        memory.held(CPU)
    with pytest.raises(ConfigError, match="state a number"):
        memory.most_taken(CPU, lambda: None, 0)
