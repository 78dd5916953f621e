"""One store, many processes and machines: what a network file system does must not hurt a run."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from alignlab import files, lease, processes, seal
from alignlab.errors import TrainingError
from alignlab.lease import Lease, held
from alignlab.run import Run, Store

fork = multiprocessing.get_context("fork")
STALE = OSError(errno.ESTALE, "Stale file handle")


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path / "store" / "sft-abc")


def as_other_machine(name: str) -> None:
    """Let this process look as if it ran on a machine of its own, with a wrong clock."""
    real = processes.identity()
    told = {**real, "machine": name, "host": name}
    lease.identity = lambda: told  # type: ignore[assignment]  (in a forked process)
    skew = random.Random(name).uniform(-3e6, 3e6)  # weeks
    clock = time.time
    time.time = lambda: clock() + skew  # type: ignore[assignment]


def with_old_listings(seconds: float) -> None:
    """Let this process see a folder of leases as it was up to some seconds ago."""
    real, known = lease._numbers, {}

    def numbers(folder: Path) -> list[int]:
        seen, at = known.get(folder, ([], -1e9))
        if time.monotonic() - at > seconds:
            seen, at = known[folder] = real(folder), time.monotonic()
        return list(seen)

    lease._numbers = numbers


def work(root: str, number: int, foreign: bool, wins, losses) -> None:
    """Want every run of a store, in an order of one's own; do those that nobody has done."""
    if foreign:
        as_other_machine(f"machine-{number}")
        with_old_listings(0.15)
    keys = [f"{key:02d}" for key in range(8)]
    random.Random(number).shuffle(keys)
    for key in keys:
        mine = Store(Path(root)).run("sft", key)
        try:
            with mine.claim(lambda text: None, poll=0.02, heartbeat=0.1, stale=2.0):
                if mine.done:
                    continue
                mine.rewind(0)
                for step in range(1, 4):
                    mine.log(step, {"loss": 1.0 / step})
                    time.sleep(0.01)
                mine.update_record(by=number)
                mine.finish()
                wins.put((key, number))
        except TrainingError:
            losses.put((key, number))  # it did not respond for so long that another took over


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [False, True], ids=["one machine", "machines with old news"])
def test_every_run_is_finished_once_whoever_is_killed(tmp_path, foreign):
    wins, losses = fork.Queue(), fork.Queue()
    root = str(tmp_path / "store")
    started = [
        fork.Process(target=work, args=(root, number, foreign, wins, losses)) for number in range(6)
    ]
    for process in started:
        process.start()
    time.sleep(0.3)
    for process in started[:2]:
        os.kill(process.pid, signal.SIGKILL)
    for process in started:
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL)
    assert sum(process.exitcode == 0 for process in started) >= 4
    found = Store(tmp_path / "store").runs()
    assert len(found) == 8
    told = []
    while not wins.empty():
        told.append(wins.get()[0])
    assert len(told) == len(set(told))  # nobody finished what another had finished
    for one in found:
        assert one.done
        assert one.verify() == []
        assert [row["step"] for row in one.metrics()] == [1, 2, 3]
        assert not (one.path / "lease").exists()


def test_an_owner_with_an_old_listing_cannot_finish(run, monkeypatch):
    """Another machine has taken over, and ours still lists the folder as it was before."""
    with run.claim():
        monkeypatch.setattr(lease, "_numbers", lambda folder: [1])
        (run.path / "lease" / "000002.json").write_text(json.dumps({"token": "other"}))
        assert not run._lease.check_lost()
        with pytest.raises(TrainingError, match="taken over by another process"):
            run.finish()
    assert not run.done


def test_a_taker_tells_the_owner(run):
    with run.claim():
        number = run._lease._number
        Lease(run.path / "lease")._supersede(number, number + 1)
        assert run._lease.check_lost()  # from its own file, whatever the listing says


@pytest.mark.parametrize("left", [{"superseded_by": 8, "released": True}, {"released": True}])
def test_a_number_that_no_longer_says_whose_it_was_has_no_owner(tmp_path, left):
    folder = tmp_path / "lease"
    folder.mkdir()
    (folder / "000007.json").write_text(json.dumps(left))  # seen before the next number was
    said = []
    mine = lease.Lease(folder)
    assert mine.owner() is None
    assert lease.wait(mine, lambda: False, said.append, "sft-00", poll=0.01)
    assert said == []
    mine.release()


def test_taking_a_number_whose_answer_was_lost(run, monkeypatch):
    """The server made the link, its answer did not arrive, and it was asked again."""
    real = os.link

    def link(source, target):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists", str(target))

    monkeypatch.setattr(os, "link", link)
    mine = Lease(run.path / "lease")
    assert mine.acquire()
    assert not Lease(run.path / "lease")._create(1)
    mine.release()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_links(run, monkeypatch, number):
    def link(source, target):
        raise OSError(number, "not here")

    monkeypatch.setattr(os, "link", link)
    mine, other = Lease(run.path / "lease"), Lease(run.path / "lease")
    assert mine.acquire()
    assert not other._create(1)
    assert mine.confirm()
    mine.discard()
    assert not (run.path / "lease").exists()


def test_no_number_is_used_twice(run):
    folder = run.path / "lease"
    for _ in range(3):
        mine = Lease(folder)
        assert mine.acquire()
        mine.release()
    assert sorted(lease._numbers(folder)) == [1, 2, 3]
    assert all(not Lease(folder)._create(number) for number in (1, 2, 3))
    assert not list(folder.glob(".*"))


def test_clocks_of_machines_are_not_compared(run, monkeypatch):
    with monkeypatch.context() as patched:
        real = processes.identity()
        patched.setattr(lease, "identity", lambda: {**real, "machine": "other", "host": "other"})
        owner = Lease(run.path / "lease", heartbeat=0.05, stale=1.0)
        assert owner.acquire()
    for skew in (-1e7, 0.0, 1e7):
        with monkeypatch.context() as patched:
            now = time.time()
            patched.setattr(time, "time", lambda now=now, skew=skew: now + skew)
            assert Lease(run.path / "lease", stale=1.0).live()
    owner._rest()
    os.utime(owner._file(1), (0, 0))  # its last beat was long ago by the clock of the disk
    assert not Lease(run.path / "lease", stale=1.0).live()


def test_a_server_that_does_not_answer_is_no_lost_lease(run, monkeypatch):
    mine = Lease(run.path / "lease", heartbeat=0.01)
    assert mine.acquire()
    calls = []

    def utime(path):
        calls.append(path)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "utime", utime)
    deadline = time.monotonic() + 20
    while len(calls) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(calls) >= 3  # it goes on trying
    assert not mine.lost
    mine.release()


def test_stale_handles_are_looked_at_again(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))
    file = tmp_path / "record.json"
    files.write_atomically(file, {"a": 1})
    real, left = Path.read_text, [STALE, STALE]

    def read_text(self, *args, **more):
        if left:
            raise left.pop()
        return real(self, *args, **more)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert files.read_json(file) == {"a": 1}
    left[:] = [STALE] * 9
    with pytest.raises(OSError, match="Stale file handle"):
        files.read_json(file)


def test_rows_go_on_where_the_file_became_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))
    file = tmp_path / "metrics.jsonl"
    for step in range(6):
        files.append(file, {"step": step, "name": "\u00e9"})
    real, opened = Path.open, []

    class Breaking:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.stream.close()

        def seek(self, place):
            self.stream.seek(place)

        def __iter__(self):
            for count, line in enumerate(self.stream):
                if count == 2:
                    raise STALE
                yield line

    def open_(self, *args, **more):
        opened.append(self)
        return Breaking(real(self, *args, **more))

    monkeypatch.setattr(Path, "open", open_)
    assert [row["step"] for row in files.rows(file)] == list(range(6))
    assert len(opened) == 3


def test_what_nfs_keeps_of_open_files_is_no_result(run):
    run.log(1, {"loss": 1.0})
    (run.path / ".nfs000000001a2b00000001").write_text("removed while it was open")
    run.model_dir.mkdir()
    (run.model_dir / ".nfs000000001a2b00000002").write_text("removed while it was open")
    with run.claim():
        run.finish()
    for left in run.path.rglob(".nfs*"):
        left.unlink()
    assert run.verify() == []


def test_names_of_temporary_files_are_no_process_ids(tmp_path):
    """Two machines can have equal process ids."""
    names = {files.beside(tmp_path / "x").name for _ in range(100)}
    assert len(names) == 100
    assert all(name.endswith(".tmp") for name in names)


def test_the_seal_is_seen_by_a_new_listing(run, monkeypatch):
    """A machine remembers for a while that there was no DONE; a run is not done twice for that."""
    with run.claim():
        run.finish()
    monkeypatch.setattr(Run, "done", False)  # what it remembers
    with run.claim() as same:
        assert same._lease is None
    assert seal.is_there_now(run.path)


def test_one_at_a_time_makes_an_entry_of_a_cache(tmp_path):
    with held(tmp_path / "x.lease"):
        assert not Lease(tmp_path / "x.lease")._create(1)
    assert not (tmp_path / "x.lease").exists()
    with pytest.raises(ZeroDivisionError), held(tmp_path / "x.lease"):
        _ = 1 / 0
    assert not (tmp_path / "x.lease").exists()
