"""Run folders: what is written, what survives a kill, and that one process at a time owns a run."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from alignlab import environment, lease
from alignlab.errors import ConfigError, TrainingError
from alignlab.run import Run, Store, content_key

processes = multiprocessing.get_context("spawn")


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def run(store) -> Run:
    return store.run("sft", "0123456789ab")


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


# --------------------------------------------------------------------------------- what is written


def test_metrics_are_read_back_also_when_not_finite(run):
    run.log(1, {"loss": 0.5, "tokens": 7})
    run.log(2, {"loss": math.nan, "norm": -math.inf}, split="validation")
    rows = run.metrics()
    assert [(r["step"], r["split"]) for r in rows] == [(1, "train"), (2, "validation")]
    assert rows[0]["tokens"] == 7
    assert math.isnan(rows[1]["loss"])
    assert rows[1]["norm"] == -math.inf
    assert run.metrics("train") == rows[:1]
    # Every line is JSON for readers other than Python, whose parser alone knows the word NaN.
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("value", [True, "0.5", None, [1.0]])
def test_only_python_numbers_are_metrics(run, value):
    with pytest.raises(TypeError, match="'loss' is a"):
        run.log(1, {"loss": value})
    with pytest.raises(ValueError, match="cannot be called 'step'"):
        run.log(1, {"step": 1})


def test_a_sample_that_reads_nan_stays_text(run):
    run.sample({"step": 1, "completion": "nan", "kl": math.inf, "gold": 1.5})
    assert run.samples() == [{"step": 1, "completion": "nan", "kl": math.inf, "gold": 1.5}]


def test_record_keeps_what_is_not_replaced(run):
    assert run.record == {}
    run.update_record(name="sft", summary={"gold": math.inf})
    run.update_record(seconds=2.0)
    run.warn("W&B is silent")
    run.warn("W&B is silent")
    assert run.record == {
        "name": "sft",
        "summary": {"gold": "inf"},
        "seconds": 2.0,
        "warnings": ["W&B is silent"],
    }
    assert run.summary() == {"gold": math.inf}


def test_listeners_hear_what_was_written(run):
    heard = []

    class Ear:
        def logged(self, step, split, metrics):
            heard.append((step, split, dict(metrics)))

        def sampled(self, row):
            heard.append(row["completion"])

    run.listeners.append(Ear())
    run.log(3, {"loss": 1.0}, split="validation")
    run.sample({"completion": "good"})
    assert heard == [(3, "validation", {"loss": 1.0}), "good"]


def test_a_torn_line_is_tolerated_and_cut(run):
    run.log(1, {"loss": 1.0})
    file = run.path / "metrics.jsonl"
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 2, "spl')  # killed here
    assert [row["step"] for row in run.metrics()] == [1]
    again = Run(run.path)
    again.log(2, {"loss": 0.5})
    assert [row["step"] for row in again.metrics()] == [1, 2]


def test_rewind_drops_later_and_torn_lines(run):
    for step in (1, 2, 3):
        run.log(step, {"loss": 1 / step})
        run.sample({"step": step, "completion": "x"})
    run.sample({"completion": "without a step"})
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 1, "torn')
    run.rewind(2)
    assert [row["step"] for row in run.metrics()] == [1, 2]
    assert [row.get("step") for row in run.samples()] == [1, 2, None]
    assert (run.path / "metrics.jsonl").read_bytes().endswith(b"}\n")


# -------------------------------------------------------------------------------------------- DONE


def finished(run: Run) -> Run:
    with run.claim():
        run.log(1, {"loss": 1.0})
        run.update_record(summary={})
        run.model_dir.mkdir()
        (run.model_dir / "weights").write_bytes(b"\x00\x01")
        run.state_dir.mkdir()
        (run.state_dir / "optimizer").write_bytes(b"big")
        run.finish()
    return run


def test_done_hashes_everything_but_the_state(run):
    assert run.verify() == ["sft-0123456789ab is not finished"]
    finished(run)
    hashes = json.loads((run.path / "DONE").read_text())["files"]
    assert sorted(hashes) == ["env.json", "metrics.jsonl", "model/weights", "record.json"]
    # sha256 of the bytes 00 01, from `printf '\x00\x01' | sha256sum`
    assert hashes["model/weights"].startswith("b413f47d13ee2fe6c845b2ee141af81d")
    assert run.verify() == []
    assert not run.state_dir.exists()
    assert not (run.path / "lease").exists()
    with pytest.raises(RuntimeError, match="is done"):
        run.update_record(name="other")


def test_verify_names_what_changed(run):
    finished(run)
    (run.model_dir / "weights").write_bytes(b"\x00\x02")
    (run.path / "metrics.jsonl").unlink()
    (run.path / "new").write_text("")
    assert run.verify() == [
        "metrics.jsonl is missing",
        "new was added",
        "model/weights has changed",
    ]


def test_env_tells_every_process_that_worked_on_the_run(run):
    for _ in range(2):
        with run.claim():
            pass
    env = json.loads((run.path / "env.json").read_text())
    assert env["python"].startswith("3.")
    assert env["packages"]["torch"]
    assert env["hardware"]["cpus"] >= 1
    assert len(env["earlier"]) == 1
    assert "earlier" not in env["earlier"][0]


def test_environment_never_records_a_secret(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hush")
    monkeypatch.setenv("HF_TOKEN", "hush")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("MY_LETTERS", "private")
    variables = environment.environment()["variables"]
    assert variables["TOKENIZERS_PARALLELISM"] == "false"
    assert not {"WANDB_API_KEY", "HF_TOKEN", "MY_LETTERS"} & set(variables)


def test_git_state_is_commit_and_hash_of_the_difference(tmp_path):
    import subprocess

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    git("init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git("add", ".")
    git("commit", "-qm", "one")
    read = environment.git.__wrapped__  # without the cache of one process
    clean = read(tmp_path)
    assert clean["dirty"] is False
    assert len(clean["commit"]) == 40
    (tmp_path / "a.py").write_text("2\n")
    changed = read(tmp_path)
    (tmp_path / "b.py").write_text("new\n")
    added = read(tmp_path)
    assert changed["commit"] == added["commit"] == clean["commit"]
    assert changed["diff_sha256"] != added["diff_sha256"]
    assert read(tmp_path / "..") is None


# ------------------------------------------------------------------------------------------ leases


def race(path: str, start, trained, notes) -> None:
    run = Run(Path(path))
    start.wait()
    with run.claim(notes.put, poll=0.01):
        if not run.done:
            trained.put(os.getpid())
            run.log(1, {"loss": 1.0})
            time.sleep(0.3)
            run.finish()
    assert run.done


def hold(path: str, heartbeat: float) -> None:
    with Run(Path(path)).claim(poll=0.01, heartbeat=heartbeat):
        time.sleep(60)


def start_all(target, arguments, count):
    started = [processes.Process(target=target, args=arguments) for _ in range(count)]
    for process in started:
        process.start()
    return started


def drain(queue) -> list:
    found = []
    while not queue.empty():
        found.append(queue.get())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dead_owner", [False, True])
def test_four_processes_race_and_exactly_one_trains(run, dead_owner):
    if dead_owner:  # all four find the lease of a process that is gone, at the same time
        other = start_all(hold, (str(run.path), 10.0), 1)[0]
        until(lambda: (run.path / "env.json").exists())
        other.kill()
        other.join()
    start, trained, notes = processes.Event(), processes.Queue(), processes.Queue()
    racers = start_all(race, (str(run.path), start, trained, notes), 4)
    start.set()
    for process in racers:
        process.join(30)
        assert process.exitcode == 0
    assert len(drain(trained)) == 1
    assert len(run.metrics()) == 1
    told = drain(notes)
    assert sum("finished by process" in line for line in told) <= 3
    assert run.verify() == []


@pytest.mark.slow
def test_waits_for_a_live_owner_and_takes_over_when_it_is_killed(run):
    owner = start_all(hold, (str(run.path), 10.0), 1)[0]
    until(lambda: (run.path / "env.json").exists())
    assert run.live
    start, trained, notes = processes.Event(), processes.Queue(), processes.Queue()
    start.set()
    waiter = start_all(race, (str(run.path), start, trained, notes), 1)[0]
    assert "is working on it; waiting" in notes.get(timeout=20)
    time.sleep(0.1)
    assert trained.empty()
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    assert "stopped without finishing; taking over" in notes.get(timeout=20)
    waiter.join(20)
    assert run.done
    assert not run.live


def test_a_crash_inside_leaves_a_lease_that_can_be_taken(run):
    with pytest.raises(ZeroDivisionError), run.claim():
        _ = 1 / 0
    assert not run.live
    notes = []
    with run.claim(notes.append):
        assert run.live
        assert not run.done
    assert notes == []  # nobody had to be waited for


def test_the_same_thread_cannot_wait_for_itself(run):
    with run.claim(), pytest.raises(RuntimeError, match="already owns"), run.claim():
        pass


def test_a_done_run_is_not_claimed(run):
    finished(run)
    with run.claim() as same:
        assert same.done
    assert not (run.path / "lease").exists()


def elsewhere(monkeypatch):
    """Let every lease written from now on look as if it came from another machine."""
    real = lease.identity()
    monkeypatch.setattr(lease, "identity", lambda: {**real, "machine": "other", "host": "other"})


@pytest.mark.slow
def test_a_foreign_owner_is_judged_by_its_heartbeat(run, monkeypatch):
    with monkeypatch.context() as patched:
        elsewhere(patched)
        owner = lease.Lease(run.path / "lease", heartbeat=0.02, stale=0.3)
        assert owner.acquire()
    taker = lease.Lease(run.path / "lease", stale=0.3)
    for _ in range(30):  # twice the stale time: the heartbeat keeps it alive
        assert not taker.acquire()
        time.sleep(0.02)
    owner._rest()  # the heartbeat stops, as when the machine is lost
    began = time.monotonic()
    until(taker.acquire)
    assert time.monotonic() - began > 0.2
    taker.release()


def test_an_owner_that_was_taken_over_stops(run):
    with run.claim(heartbeat=0.01):
        (run.path / "lease" / "000002.json").write_text(json.dumps(lease.identity()))
        until(lambda: run._lease.lost)
        with pytest.raises(TrainingError, match="taken over"):
            run.log(1, {"loss": 1.0})
        with pytest.raises(TrainingError, match="taken over"):
            run.finish()
    assert run.metrics() == []
    assert not run.done
    assert (run.path / "lease" / "000002.json").exists()


def test_a_slow_taker_with_an_old_number_withdraws(run, monkeypatch):
    folder = run.path / "lease"
    owner = lease.Lease(folder)
    assert owner.acquire()
    owner.release()
    # The slow taker saw number 1 released; before it creates number 2, two others came and went on
    # to number 3, and number 2 was cleared away.
    real = lease._highest
    answers = iter([1])
    monkeypatch.setattr(lease, "_highest", lambda f: next(answers, None) or real(f))
    (folder / "000003.json").write_text(json.dumps(lease.identity()))
    assert not lease.Lease(folder).acquire()
    assert sorted(lease._numbers(folder)) == [1, 2, 3]  # taken for good, and without a meaning


def test_an_empty_lease_file_counts_as_live_at_first(run):
    folder = run.path / "lease"
    folder.mkdir(parents=True)
    (folder / "000001.json").write_text("")  # its owner is between creating and writing
    taker = lease.Lease(folder, stale=0.1)
    assert not taker.acquire()
    until(taker.acquire)
    taker.release()


# ------------------------------------------------------------------------------------------- store


def test_find_by_name_key_and_prefix(store):
    for key in ("aa11", "aa22"):
        store.run("sft", key).update_record(name="x")
    store.run("reward", "bb33").update_record(name="x")
    assert store.find("sft-aa11").key == "aa11"
    assert store.find("bb").name == "reward-bb33"
    assert store.find(f"{store.root}/reward-bb33/").name == "reward-bb33"
    with pytest.raises(ConfigError, match="fits 2 runs: sft-aa11, sft-aa22"):
        store.find("aa")
    with pytest.raises(ConfigError, match="Did you mean 'reward-bb33'"):
        store.find("rewrd-bb33")
    assert [run.name for run in store.runs()] == ["reward-bb33", "sft-aa11", "sft-aa22"]


def test_gc_and_prune_list_and_delete_is_explicit(store):
    sft, policy, loose = (store.run(*name) for name in (("sft", "1"), ("ppo", "2"), ("dpo", "3")))
    for run in (sft, policy, loose):
        finished(run) if run is not policy else run.update_record(inputs={"init": "sft-1"})
    study = store.studies / "first" / "study.json"
    study.parent.mkdir(parents=True)
    study.write_text(json.dumps({"jobs": [{"stages": {"policy": "ppo-2"}}]}))
    assert [run.name for run in store.gc()] == ["ppo-2"]
    assert [run.name for run in store.prune()] == ["dpo-3"]  # sft-1 is an input of ppo-2
    with policy.claim():
        assert store.gc() == []
        with pytest.raises(ConfigError, match="being worked on"):
            store.delete(policy)
    store.delete(loose)
    assert [run.name for run in store.runs()] == ["ppo-2", "sft-1"]
    assert not list(store.root.glob(".deleted*"))


def test_content_key_is_canonical():
    # printf '{"a":[1,2.5],"b":"é"}' | sha256sum
    import hashlib

    expected = hashlib.sha256('{"a":[1,2.5],"b":"é"}'.encode()).hexdigest()[:12]
    assert content_key({"b": "é", "a": (1, 2.5)}) == expected
    assert content_key({"a": 1}) != content_key({"a": 1.5})
    assert len(content_key({})) == 12


def test_a_folder_of_another_name_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        Run(tmp_path / "cache")
