"""A prepared data set is what the tokenization gives, kept by content, made in one bounded pass."""

from __future__ import annotations

import datetime
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
from listed import prepare_groups

from alignlab.data import prepared_shards
from alignlab.data.group import (
    CHOSEN_REJECTED,
    DEMONSTRATION,
    NONE,
    PromptGroup,
    TokenGroup,
    Verdict,
)
from alignlab.data.prepared import prepare
from alignlab.data.template import Tokenization
from alignlab.data.token_shards import read_arrays, read_shard, write_arrays, write_shard
from alignlab.errors import DataError


def pairs(count: int, start: int = 0) -> list[PromptGroup]:
    return [
        PromptGroup(
            f"film {i} was",
            (f" good for {i}", f" bad in {i * 7} ways"),
            CHOSEN_REJECTED,
            id=f"id{i}",
            meta={"place": f"pairs.jsonl, line {i + 1}", "year": 1900 + i},
        )
        for i in range(start, start + count)
    ]


def same(ours: TokenGroup, theirs: TokenGroup) -> bool:
    def arrays(group: TokenGroup) -> list[object]:
        masks = [None if m is None else m.tolist() for m in group.masks]
        return [group.prompt.tolist(), [c.tolist() for c in group.completions], masks]

    plain = ("verdict", "row", "id", "truncated", "meta")
    return arrays(ours) == arrays(theirs) and all(
        getattr(ours, name) == getattr(theirs, name) for name in plain
    )


@pytest.fixture
def small_shards(monkeypatch):
    """About eight rows to a shard."""
    for name, value in (("LEAST", 2), ("MEAN", 8), ("MOST", 24)):
        monkeypatch.setattr(prepared_shards, name, value)


def test_what_is_kept_is_what_the_tokenization_gives(plain_tokenizer, tmp_path):
    odd = {"models": ("a", "b"), "at": datetime.date(2026, 11, 22), "nested": {"k": [1, None]}}
    groups = [
        *pairs(3),
        PromptGroup("only a prompt", id="p"),
        PromptGroup("", (" all of it",), DEMONSTRATION, "d", odd),
        PromptGroup("s ", ("x", "y y", ""), Verdict("scores", scores=(0.1, -2.5, 1e300)), "s"),
        PromptGroup("thumb ", ("long " * 9,), Verdict("thumbs", thumbs=(False,)), "t"),
        PromptGroup("a very very very long prompt ", (" b",), NONE, "l", {"place": "l"}),
    ]
    tokenization = Tokenization(plain_tokenizer, 12, 9)
    prepared = prepare_groups(groups, tokenization, tmp_path, need="")
    expected = tokenization.groups(groups)
    assert len(prepared) == len(expected) == 8
    assert all(map(same, prepared, expected))
    assert prepared[7].meta["prompt_cut"] > 0
    assert same(prepared[-1], expected[-1])
    assert all(map(same, prepared[1:6:2], expected[1:6:2]))
    assert prepared.sizes().tolist() == [
        len(g.prompt) + sum(map(len, g.completions)) for g in expected
    ]
    with pytest.raises(IndexError):
        prepared[8]


def test_masks_and_conversations_come_back(chatml_tokenizer, tmp_path):
    def said(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    turns = (said("assistant", "b"), said("user", "c d"), said("assistant", "e"))
    groups = [
        PromptGroup((said("user", "a"),), (turns,), DEMONSTRATION, "turns"),
        PromptGroup((said("user", "a"),), ((said("assistant", "b"),),), DEMONSTRATION, "one"),
    ]
    tokenization = Tokenization(chatml_tokenizer, None, None)
    prepared = prepare_groups(groups, tokenization, tmp_path, need="demonstration")
    assert all(map(same, prepared, tokenization.groups(groups)))
    path = tmp_path / "masked"
    ids = np.arange(5, dtype=np.int32)
    mask = np.array([True, False, True])
    group = TokenGroup(ids[:1], (ids[:2], ids[:3]), NONE, 0, "m", (False, True), {}, (None, mask))
    write_shard(path, [group, group])
    shard = read_shard(path)
    assert all(same(shard.group(i, 0, None), group) for i in (0, 1))


def test_statistics_by_hand(plain_tokenizer, tmp_path):
    # byte-level ids, one for each of q, w, x, z; BOS before a prompt and EOS after a completion
    groups = [
        PromptGroup("qwxz", ("w", "wxzwxz"), CHOSEN_REJECTED, "a"),
        PromptGroup("q", ("ww", "zz"), CHOSEN_REJECTED, "b"),
    ]
    prepared = prepare_groups(groups, Tokenization(plain_tokenizer, 4, 5), tmp_path, need="pairs")
    stats = prepared.stats
    # prompts: 5 cut to 4, and 2; completions: 2, 7 cut to 5, 3, 3
    assert (stats.rows, stats.tokens, stats.tokenized) == (2, 4 + 2 + 2 + 5 + 3 + 3, 2)
    assert prepared.sizes().tolist() == [11, 8]
    assert stats.prompt_lengths == {"50%": 2, "95%": 4, "99%": 4, "100%": 4}
    assert stats.completion_lengths == {"50%": 3, "95%": 5, "99%": 5, "100%": 5}
    assert (stats.prompts_truncated, stats.completions_truncated) == (0.5, 0.25)


def test_no_rows(plain_tokenizer, tmp_path):
    prepared = prepare_groups([], Tokenization(plain_tokenizer, None, None), tmp_path, need="pairs")
    assert len(prepared) == 0
    assert prepared[:] == []
    assert prepared.sizes().tolist() == []
    assert [f.code for f in prepared.findings] == ["no_rows"]


@pytest.mark.slow
def test_a_change_costs_its_own_shard_only(plain_tokenizer, tmp_path, small_shards):
    tokenization = Tokenization(plain_tokenizer, None, None)

    def tokenized(groups: list[PromptGroup], how: Tokenization = tokenization) -> int:
        prepared = prepare_groups(groups, how, tmp_path, need="pairs")
        assert all(map(same, prepared, how.groups(groups)))
        return prepared.stats.tokenized

    rows = pairs(200)
    assert tokenized(rows) == 200
    assert tokenized(rows) == 0
    moved = [
        replace(g, meta={**g.meta, "place": f"other.csv, line {i}"}) for i, g in enumerate(rows)
    ]
    assert tokenized(moved) == 0  # where a row stands decides no token
    changed = [*rows[:90], replace(rows[90], completions=(" fine", " poor")), *rows[91:]]
    assert 0 < tokenized(changed) <= 2 * 24
    assert 0 < tokenized([*pairs(1, start=500), *rows]) <= 2 * 24  # all rows moved on by one
    assert tokenized(rows[:100] + rows[101:]) <= 2 * 24
    assert tokenized(rows, Tokenization(plain_tokenizer, None, 3)) == 200
    assert tokenized([replace(g, meta={"year": 0}) for g in rows[:30]]) == 30


def test_damaged_shards_are_made_again(plain_tokenizer, tmp_path, small_shards):
    tokenization = Tokenization(plain_tokenizer, None, None)
    rows = pairs(60)
    prepare_groups(rows, tokenization, tmp_path, need="pairs")
    files = sorted((tmp_path / "tokens").glob("*.tokens"))
    data = [file.read_bytes() for file in files]
    middle = len(data[0]) // 2
    files[0].write_bytes(data[0][:middle] + bytes([data[0][middle] ^ 1]) + data[0][middle + 1 :])
    files[1].write_bytes(data[1][:-1])
    files[2].write_bytes(b"")
    files[3].write_bytes(b"[1]\n")
    lost = sum(shard is None for shard in map(read_shard, files))
    assert lost == 4
    again = prepare_groups(rows, tokenization, tmp_path, need="pairs")
    assert 0 < again.stats.tokenized < 60
    assert all(map(same, again, tokenization.groups(rows)))
    assert [file.read_bytes() for file in files] == data
    assert read_arrays(tmp_path / "tokens") is None  # a folder


KILLED = """
import os, signal, sys
from pathlib import Path
from alignlab.data import prepared_shards
from alignlab.data.template import Tokenization
sys.path.insert(0, {here!r})
from listed import prepare_groups
from small_tokenizers import make_tokenizer
from test_prepared import pairs

prepared_shards.LEAST, prepared_shards.MEAN, prepared_shards.MOST = 2, 8, 24

def rows():
    for number, group in enumerate(pairs(200)):
        if number == 120:
            os.kill(os.getpid(), signal.SIGKILL)
        yield group

tokenizer = make_tokenizer("<|bos|>", "<|eos|>", adds_bos=True)
prepare_groups(rows(), Tokenization(tokenizer, None, None), Path({cache!r}), need="pairs")
"""


@pytest.mark.long
def test_a_killed_process_loses_only_the_shard_in_work(plain_tokenizer, tmp_path, small_shards):
    from pathlib import Path

    script = KILLED.format(here=str(Path(__file__).parent), cache=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    tokenization = Tokenization(plain_tokenizer, None, None)
    prepared = prepare_groups(pairs(200), tokenization, tmp_path, need="pairs")
    assert 80 <= prepared.stats.tokenized <= 80 + 24
    assert all(map(same, prepared, tokenization.groups(pairs(200))))


@pytest.mark.slow
def test_two_at_once_make_the_same(tokenizer_factory, tmp_path, small_shards):
    found: dict[int, list[TokenGroup]] = {}

    def work(number: int) -> None:
        tokenizer = tokenizer_factory("<|bos|>", "<|eos|>", adds_bos=True)
        made = prepare_groups(
            pairs(150), Tokenization(tokenizer, None, None), tmp_path, need="pairs"
        )
        found[number] = list(made)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2]
    assert all(map(same, found[0], found[1]))
    assert all(map(same, found[0], found[2]))
    assert not list((tmp_path / "tokens").glob(".*"))


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(plain_tokenizer, tmp_path, small_shards):
    tokenization = Tokenization(plain_tokenizer, None, 6)
    alone = prepare_groups(pairs(90), tokenization, tmp_path / "0", need="pairs")
    both = prepare_groups(pairs(90), tokenization, tmp_path / "2", need="pairs", workers=2)
    assert both.stats.tokenized == 90
    assert all(map(same, alone, both))
    assert alone.findings == both.findings
    files = [sorted((tmp_path / name / "tokens").iterdir()) for name in "02"]
    assert [f.name for f in files[0]] == [f.name for f in files[1]]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    bad = [*pairs(5), PromptGroup("text", (({"role": "assistant", "content": "x"},),), NONE, "bad")]
    with pytest.raises(DataError, match="bad"):
        prepare_groups(bad, tokenization, tmp_path / "2", need="", workers=1)


@pytest.mark.slow
def test_few_groups_are_in_memory_at_a_time(plain_tokenizer, tmp_path, small_shards):
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def rows():
        nonlocal alive, most
        for group in pairs(600):
            fresh = replace(group)
            weakref.finalize(fresh, gone)
            alive += 1
            most = max(most, alive)
            yield fresh

    prepared = prepare_groups(
        rows(), Tokenization(plain_tokenizer, None, None), tmp_path, need="pairs"
    )
    assert len(prepared) == 600
    assert most <= 3 * 24


@dataclass(frozen=True)
class Given:
    """A source in memory that counts how often it is read."""

    rows: tuple[PromptGroup, ...]
    name: str
    reads: list[str]

    def fingerprint(self) -> str:
        return self.name

    def stream(self, split: str):
        self.reads.append(split)
        return iter(self.rows if split == "preference" else pairs(2, start=split == "test"))

    def load(self, split: str) -> list[PromptGroup]:
        return list(self.stream(split))


def first_only(group: PromptGroup) -> PromptGroup | None:
    return None if group.id == "id1" else group.keep((0,))


@pytest.mark.slow
def test_a_source_that_was_prepared_is_not_read_again(plain_tokenizer, tmp_path, small_shards):
    tokenization = Tokenization(plain_tokenizer, None, None)
    reads: list[str] = []

    def get(name: str = "a", **changes):
        source = Given(tuple(pairs(50)), name, reads)
        return prepare(source, "preference", tokenization, tmp_path, **{"need": "pairs", **changes})

    first = get()
    assert reads == ["preference"]
    assert first.stats.tokenized == 50
    again = get()
    assert reads == ["preference"]
    assert again.stats.tokenized == 0
    assert all(map(same, first, again))
    assert first.findings == again.findings
    assert again[3].meta["place"] == "pairs.jsonl, line 4"
    assert get(name="b").stats.tokenized == 0  # other configuration, same rows
    assert reads == ["preference"] * 2
    leaky = get(held_out=("validation",))
    assert "validation" in reads
    assert "prompt_in_two_splits" in [f.code for f in leaky.findings]
    assert get(held_out=("validation",)).findings == leaky.findings
    assert len(get(rows=7)) == 7
    chosen = get(select=first_only, need="demonstration")
    assert [g.id for g in chosen][:2] == ["id0", "id2"]
    assert len(chosen) == 49
    count = len(reads)
    next((tmp_path / "tokens").glob("*.tokens")).unlink()
    get()
    get(rows=7)
    get(select=first_only, need="demonstration")
    assert len(reads) == count + 1  # the one whose shard is gone


def test_values_that_cannot_be_kept_are_refused(plain_tokenizer, tmp_path):
    class Strange:
        pass

    tokenization = Tokenization(plain_tokenizer, None, None)
    strange = [PromptGroup("a", (" b",), DEMONSTRATION, "s", {"what": np.float64(1.0)})]
    with pytest.raises(DataError, match="meta holds a numpy"):
        prepare_groups(strange, tokenization, tmp_path, need="")


def test_files_left_by_a_killed_writer_go_after_a_day(tmp_path):
    import os
    import time

    for name, age in ((".a.tokens.1-2.part", 90_000), (".b.tokens.1-2.part", 60)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    prepared_shards.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".b.tokens.1-2.part"]


def test_arrays_of_every_length_come_back(tmp_path):
    arrays = {
        "none": np.zeros(0, np.int64),
        "odd": np.arange(7, dtype=np.uint8),
        "many": np.arange(1000),
        "last": np.zeros(0, bool),
    }
    write_arrays(tmp_path / "x", arrays, {"é": [1, "\n"]})
    found = read_arrays(tmp_path / "x")
    assert found.notes == {"é": [1, "\n"]}
    assert all(np.array_equal(found.arrays[name], value) for name, value in arrays.items())
    assert all(found.arrays[name].dtype == value.dtype for name, value in arrays.items())
