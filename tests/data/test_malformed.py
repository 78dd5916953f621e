"""Broken files: one message that names the place and what to do; nothing hangs, nothing swells."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from malformed_files import (
    BOMBS,
    BROKEN_BYTES,
    BROKEN_JSON,
    BROKEN_PATHS,
    BROKEN_TEXT,
    FINE,
    LINE,
    MIB,
    raw,
)

from alignlab.cli import main
from alignlab.commands import data_setup
from alignlab.compose import compose
from alignlab.data.rows.files import read_rows, stream_rows
from alignlab.data.rows.listing import DataFile
from alignlab.errors import DataError

SECONDS = 10  # of work for one case; the slowest takes about one
WAITING = 300  # for what never comes, such as the other end of a pipe
BROKEN = [*BROKEN_JSON, *BROKEN_TEXT, *BROKEN_BYTES, *BOMBS, *BROKEN_PATHS]


@pytest.fixture(autouse=True)
def _in_time():
    """Seconds of this process's work, which a busy machine does not stretch; and of waiting."""

    def late(number, frame):
        raise AssertionError(f"worked more than {SECONDS} s, or waited {WAITING} s")

    before = [(kind, signal.signal(kind, late)) for kind in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    for kind, handler in before:
        signal.signal(kind, handler)


def test_the_table_is_long_enough():
    assert len(BROKEN) >= 100
    assert len({case.name for case in (*BROKEN, *FINE)}) == len(BROKEN) + len(FINE)


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN, ids=lambda c: c.name)
def test_one_error_names_the_place_and_what_to_do(tmp_path, case):
    path = case.make(tmp_path)
    with pytest.raises(DataError, match=re.compile(case.says, re.DOTALL)) as caught:
        for _ in stream_rows(path):
            pass
    message = str(caught.value)
    assert Path(str(path)).name in message or str(path) in message
    assert len(message) < 700
    assert message.rstrip().endswith((".", "?", ")"))


@pytest.mark.slow
@pytest.mark.parametrize("case", FINE, ids=lambda c: c.name)
def test_what_only_looks_odd_is_read(tmp_path, case):
    rows = read_rows(case.make(tmp_path))
    assert len(rows) == case.rows
    assert all(row for _, row in rows)


CHILD = """
import resource, sys
from alignlab.cli import main
from alignlab.commands import data_setup
from alignlab.compose import compose
from alignlab.data.rows.files import stream_rows
from alignlab.errors import DataError
import pyarrow
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for path in sys.argv[1:]:
    try:
        for _ in stream_rows(path):
            pass
    except DataError:
        print(peak() - before)
"""


@pytest.mark.slow
def test_bombs_cost_no_memory(tmp_path):
    paths = [case.make(tmp_path) for case in BOMBS if "rows" not in case.name]
    assert all(path.stat().st_size < MIB for path in paths)  # 30 to 100 MiB are in each
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)], capture_output=True, text=True, check=True
    )
    grown = list(map(int, done.stdout.split()))  # MiB; only grows, so the last is the most
    assert len(grown) == len(paths) == 4
    assert grown[-1] < 120  # the ratio is looked at from 8 MiB on


@pytest.mark.slow
def test_long_rows_of_a_table_do_not_add_up(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": ["x" * 2 * MIB] * 150})  # 300 MiB of text
    path = tmp_path / "rows.parquet"
    parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_batch_size=4)
    del table
    assert path.stat().st_size < MIB
    before = pyarrow.total_allocated_bytes()
    most = 0
    for _ in zip(range(70), stream_rows(path), strict=False):
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert most < 160 * MIB  # two batches of 64 MiB, and a page


@pytest.mark.slow
def test_a_large_file_is_read_row_by_row(tmp_path):
    path = raw("rows.jsonl", LINE * 400_000)(tmp_path)  # 13 MB; as rows in memory about 150 MB
    tracemalloc.start()
    try:
        for _ in zip(range(20_000), stream_rows(path), strict=False):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path):
    path = raw("rows.jsonl", LINE)(tmp_path)
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read_rows(path)


def test_a_file_that_refuses_to_open(tmp_path, monkeypatch):
    path = raw("rows.jsonl", LINE)(tmp_path)

    def refuse(self, *args, **more):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read_rows(path)


def test_a_file_that_breaks_while_it_is_read(tmp_path, monkeypatch):
    path = raw("rows.jsonl", LINE)(tmp_path)

    class Broken:
        def read(self, size):
            raise OSError(5, "Input/output error")

        def seekable(self):
            return False

        def close(self):
            return None

    monkeypatch.setattr(DataFile, "open", lambda self: Broken())
    with pytest.raises(DataError, match="cannot be read to its end: Input/output error"):
        read_rows(path)


@pytest.fixture(scope="module")
def composed():
    return compose(["data.path=x", "backbone=tiny"])


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN, ids=lambda c: c.name)
def test_the_command_line_says_it_in_one_message(tmp_path, case, composed, monkeypatch, capsys):
    path = str(case.make(tmp_path))
    data = {**composed["data"], "path": path}
    monkeypatch.setattr(data_setup, "compose", lambda overrides: {**composed, "data": data})
    assert main(["data", "check", path]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("alignlab: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err + printed.out
    assert printed.out == ""
