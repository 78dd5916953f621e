"""W&B mirrors runs, offline and online, and none of its failures reaches training."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from wandb_server import WandbServer

from alignlab.engine import tracking
from alignlab.engine.tracking import Tracker, Tracking
from alignlab.errors import ConfigError
from alignlab.run import Run, Store

# One stage in a process of its own: W&B keeps one connection and one set of settings per process.
STAGE = """
import json, sys, time
from pathlib import Path
from alignlab.engine import mirror
from alignlab.engine.tracking import Tracker, Tracking
from alignlab.run import Store

mirror.INIT_SECONDS, mirror.FINISH_SECONDS = 1.5, 1.5
store = Store(Path(sys.argv[1]))
tracking = Tracking(mode="auto", project="p", entity=None)

def stage(kind, key, inputs=(), steps=range(1, 6), finish=True, close=8.0, during=None):
    run = store.run(kind, key)
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / "config.json").write_text(json.dumps({"data": {"name": "reviews"}, "rate": 0.1}))
    run.update_record(study="st", seed=3, label=kind, inputs=dict(inputs), summary={"gold": 1.5})
    with run.claim(), Tracker(tracking, run, close_seconds=close):
        began = time.monotonic()
        for step in steps:
            run.log(step, {"loss": 1 / step})
        run.log(2, {"accuracy": 0.5}, split="validation")
        run.sample({"prompt": "a", "gold": 0.25, "tags": ["x"]})
        run.model_dir.mkdir(exist_ok=True)
        (run.model_dir / "weights").write_text("heavy")
        spent = time.monotonic() - began
        if during:
            during(run)
    print("spent", spent)
    if finish:
        run.finish()
    return run
"""


@pytest.fixture
def child(tmp_path):
    """Run a stage script in a clean W&B environment; returns its output."""

    def start(script: str, **env: str) -> subprocess.Popen[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        places = {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen(
            [sys.executable, "-c", STAGE + textwrap.dedent(script), str(tmp_path / "store")],
            env={**clean, **places, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(script: str, **env: str) -> tuple[str, str]:
        process = start(script, **env)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return out, err

    run.start = start
    return run


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def server():
    started = WandbServer()
    yield started
    started.stop()


def key(server: WandbServer) -> dict[str, str]:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "k" * 40}


def until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def wandb_records(run: Run) -> list:
    """Records of a .wandb file: a 7-byte header, then LevelDB log blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    file = next(Path(run.record["wandb"]["dir"]).glob("*.wandb"))
    content, position, chunk, found = file.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # the rest of a block is too short for a chunk header
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        chunk += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, or last of several
            record = Record()
            record.ParseFromString(chunk)
            found.append(record)
            chunk = b""
    return found


def history(records: list) -> list[dict]:
    rows = (r.history.item for r in records if r.WhichOneof("record_type") == "history")
    return [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r} for r in rows]


def of_kind(records: list, kind: str) -> list:
    return [getattr(r, kind) for r in records if r.WhichOneof("record_type") == kind]


# ---------------------------------------------------------------------------------------- the mode


@pytest.mark.parametrize(
    ("mode", "environment", "keyed", "expected"),
    [
        ("auto", {}, False, "offline"),
        ("auto", {}, True, "online"),
        ("auto", {"WANDB_MODE": "offline"}, True, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, True, "disabled"),
        ("online", {"WANDB_MODE": "disabled"}, True, "online"),
        ("offline", {}, True, "offline"),
        ("disabled", {}, True, "disabled"),
        ("online", {"RANK": "1"}, True, "disabled"),
        ("online", {"RANK": "0"}, True, "online"),
    ],
)
def test_mode(monkeypatch, mode, environment, keyed, expected):
    for name in ("WANDB_MODE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tracking, "has_key", lambda: keyed)
    assert Tracking(mode=mode, project="p", entity=None).resolve() == expected


def test_online_without_a_key_is_refused_instead_of_asked_for(monkeypatch, store):
    monkeypatch.setattr(tracking, "has_key", lambda: False)
    online = Tracking(mode="online", project="p", entity=None)
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        Tracker(online, store.run("sft", "1")).__enter__()


@pytest.mark.slow
def test_key_is_found_in_netrc(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    assert not tracking.has_key()
    file.write_text("machine elsewhere.org login user password x\n")
    assert not tracking.has_key()
    import wandb

    host = str(wandb.setup().settings.base_url).split("//")[1].strip("/")
    file.write_text(f"machine {host} login user password {'k' * 40}\n")
    assert tracking.has_key()
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert tracking.has_key()


def test_disabled_touches_nothing(store):
    run = store.run("sft", "1")
    with Tracker(Tracking(mode="disabled", project="p", entity=None), run):
        assert run.listeners == []
        run.log(1, {"loss": 1.0})
    assert run.record == {}


# ----------------------------------------------------------------------------------------- offline


@pytest.mark.slow
def test_offline_files_hold_everything(child, store):
    _, err = child("stage('sft', 'aa'); stage('dpo', 'bb', {'init': 'sft-aa'})")
    run = store.run("dpo", "bb")
    assert run.verify() == []
    place = run.record["wandb"]
    assert (place["mode"], place["url"]) == ("offline", None)
    assert place["id"].startswith("dpo-bb-")
    assert "warnings" not in run.record
    assert err == ""

    records = wandb_records(run)
    (about,) = of_kind(records, "run")
    assert about.run_id == place["id"]
    assert (about.project, about.run_group, about.job_type) == ("p", "st", "dpo")
    assert about.display_name == "dpo s3"
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert config["rate"] == 0.1
    assert config["run"] == "dpo-bb"
    assert config["run_inputs"] == {"init": "sft-aa"}  # lineage, which offline artifacts cannot say

    rows = history(records)
    losses = {row["train/step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert losses == {step: 1 / step for step in range(1, 6)}
    # The validation step is 2 on its own axis, although W&B's step was at 5 by then.
    assert [r["validation/step"] for r in rows if "validation/accuracy" in r] == [2]
    axes = {m.glob_name: m.step_metric for m in of_kind(records, "metric") if m.glob_name}
    assert axes == {"train/*": "train/step", "validation/*": "validation/step"}

    (table,) = Path(place["dir"]).rglob("*.table.json")
    content = json.loads(table.read_text())
    assert content == {"columns": ["prompt", "gold", "tags"], "data": [["a", 0.25, '["x"]']]}
    model = [a for a in of_kind(records, "artifact") if a.type == "model"]
    assert [a.name for a in model] == ["dpo-bb"]
    assert model[0].manifest.contents[0].ref == (run.model_dir / "weights").as_uri()
    summary = {
        i.key or i.nested_key[0]: i.value_json
        for s in of_kind(records, "summary")
        for i in s.update
    }
    assert summary["gold"] == "1.5"
    assert [e.exit_code for e in of_kind(records, "exit")] == [0]


@pytest.mark.slow
def test_a_killed_run_keeps_its_metrics_and_its_id(child, store):
    run = store.run("sft", "aa")
    process = child.start("stage('sft', 'aa', during=lambda run: time.sleep(60))")
    until(lambda: len(run.samples()) == 1)
    until(lambda: list((store.root / "wandb").glob("offline-run-*/*.wandb")))
    time.sleep(2.5)  # the file is flushed every second
    process.send_signal(signal.SIGKILL)
    process.communicate()
    identity = run.record["wandb"]["id"]
    (folder,) = (store.root / "wandb").glob(f"offline-run-*-{identity}")
    # The folder is recorded with the first line logged after W&B had opened it: here none was.
    run.update_record(wandb={**run.record["wandb"], "dir": str(folder)})
    steps = [row["train/step"] for row in history(wandb_records(run)) if "train/step" in row]
    assert steps[:4] == [1, 2, 3, 4]  # the last step may still be open for more metrics

    child("stage('sft', 'aa', steps=range(4, 8))")
    place = run.record["wandb"]
    assert place["id"] == identity
    assert place["earlier_dirs"] == [str(folder)]
    assert place["dir"] != str(folder)


# ------------------------------------------------------------------------------------------ online


@pytest.mark.slow
def test_online_runs_artifacts_and_edges(child, store, server):
    script = """
        stage('sft', 'aa')
        stage('reward', 'bb', {'init': 'sft-aa'})
        stage('ppo', 'cc', {'init': 'sft-aa', 'reward': 'reward-bb'})
    """
    _, err = child(script, **key(server))
    runs = [store.run(*name) for name in (("sft", "aa"), ("reward", "bb"), ("ppo", "cc"))]
    for run in runs:
        place = run.record["wandb"]
        assert place["mode"] == "online"
        assert place["url"] == f"{server.url}/lab/p/runs/{place['id']}"
        assert place["url"] in err
        assert "warnings" not in run.record
    opened = [b for b in server.named("UpsertBucket") if b["groupName"]]
    assert [(b["groupName"], b["jobType"], b["displayName"]) for b in opened] == [
        ("st", "sft", "sft s3"),
        ("st", "reward", "reward s3"),
        ("st", "ppo", "ppo s3"),
    ]
    logged = [row for row in server.history if "train/loss" in row]
    assert len(logged) == 15
    made = {a["input"]["artifactCollectionName"] for a in server.named("CreateArtifact")}
    assert {"sft-aa", "reward-bb", "ppo-cc"} <= made
    ids = {run.record["wandb"]["id"]: run.kind for run in runs}
    edges = {
        (ids[use["runName"]], use["artifactID"].split("-")[0])
        for use in (asked.get("input", asked) for asked in server.named("UseArtifact"))
    }
    assert edges == {
        ("sft", "data"),
        ("reward", "data"),
        ("reward", "sft"),
        ("ppo", "data"),
        ("ppo", "sft"),
        ("ppo", "reward"),
    }


@pytest.mark.slow
def test_online_resume_continues_the_same_run(child, store, server):
    child("stage('sft', 'aa', finish=False)", **key(server))
    first = store.run("sft", "aa").record["wandb"]["id"]
    child("stage('sft', 'aa', steps=range(4, 9))", **key(server))
    assert store.run("sft", "aa").record["wandb"]["id"] == first
    assert list(server.runs) == [first]
    steps = [row["train/step"] for row in server.history if "train/loss" in row]
    assert steps == list(range(1, 9))  # 4 and 5 were there already, and are not sent twice


# ---------------------------------------------------------------------------------------- failures


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["hang", "fail"])
def test_a_server_that_does_not_answer_costs_nothing(child, store, server, behaviour):
    server.behaviour = behaviour
    script = "stage('sft', 'aa'); began = time.monotonic(); stage('dpo', 'bb'); "
    out, err = child(script + "print('second', time.monotonic() - began)", **key(server))
    spent = [float(line.split()[1]) for line in out.splitlines()]
    assert spent[0] < 0.5  # five steps were logged while the server was being waited for
    assert spent[2] < 3.0  # the next run of this process does not wait for it again
    first, second = store.run("sft", "aa"), store.run("dpo", "bb")
    assert first.verify() == second.verify() == []
    (warning,) = first.record["warnings"]
    assert warning.startswith("W&B is not reachable")
    assert err.count("W&B is not reachable") == 1
    assert "wandb sync" in warning
    for run in (first, second):
        assert run.record["wandb"]["mode"] == "offline"
        losses = [row["train/loss"] for row in history(wandb_records(run)) if "train/loss" in row]
        assert len(losses) == 5


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["hang", "fail"])
def test_a_server_that_dies_during_the_run_costs_a_limited_wait(child, store, server, behaviour):
    script = """
        def wait(run):
            Path(sys.argv[1], "ready").touch()
            while not Path(sys.argv[1], "go").exists():
                time.sleep(0.02)
            for step in range(6, 50):
                run.log(step, {"loss": 1 / step})
        began = time.monotonic()
        stage('sft', 'aa', close=4.0, during=wait)
    """
    process = child.start(script, **key(server))
    until(lambda: server.named("UpsertBucket") and (store.root / "ready").exists())
    server.behaviour = behaviour
    began = time.monotonic()
    (store.root / "go").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert time.monotonic() - began < 15
    run = store.run("sft", "aa")
    assert run.verify() == []
    assert len(run.metrics("train")) == 49
    losses = [row["train/step"] for row in history(wandb_records(run)) if "train/loss" in row]
    assert losses[:48] == list(range(1, 49))  # on disk, for `wandb sync`


@pytest.mark.slow
def test_a_server_that_talks_nonsense_does_no_harm(child, store, server):
    # These answers make the W&B service itself crash with a nil pointer (wandb 0.31).
    server.behaviour = "nonsense"
    child("stage('sft', 'aa')", **key(server))
    run = store.run("sft", "aa")
    assert run.verify() == []
    assert run.record["warnings"][0].startswith("W&B could not")


def test_a_wandb_that_cannot_be_imported_does_no_harm(monkeypatch, store, capsys):
    monkeypatch.setenv("WANDB_MODE", "auto")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)  # `import wandb` now raises ImportError
    run = store.run("sft", "1")
    with Tracker(Tracking(mode="auto", project="p", entity=None), run):
        run.log(1, {"loss": 1.0})
    assert "W&B could not start (ModuleNotFoundError" in run.record["warnings"][0]
    assert capsys.readouterr().err.count("W&B") == 1


def test_a_slow_wandb_never_blocks_logging(monkeypatch, store):
    import threading

    from alignlab.engine import mirror

    release = threading.Event()

    class Slow:
        def __init__(self, *_):
            self.place, self.logged = {}, 0

        def open(self):
            release.wait(20)

        def log(self, *_):
            self.logged += 1

        def close(self, *_): ...

    monkeypatch.setattr(mirror, "Mirror", Slow)
    monkeypatch.setattr(tracking, "QUEUE_LENGTH", 5)
    run = store.run("sft", "1")
    tracker = Tracker(Tracking(mode="offline", project="p", entity=None), run, close_seconds=10)
    with tracker:
        time.sleep(0.05)  # the worker has taken `open` from the queue
        began = time.monotonic()
        for step in range(8):
            run.log(step, {"loss": 1.0})
        assert time.monotonic() - began < 1.0
        release.set()
    assert tracker._mirror.logged == 5
    assert "3 calls were left out" in run.record["warnings"][0]
    assert len(run.metrics()) == 8
    assert run.listeners == []


def test_an_error_of_the_stage_passes_through(monkeypatch, store):
    from alignlab.engine import mirror

    closed = []

    class Quiet:
        def __init__(self, *_):
            self.place = {}

        def open(self): ...

        def close(self, summary, failed):
            closed.append(failed)

    monkeypatch.setattr(mirror, "Mirror", Quiet)
    run = store.run("sft", "1")
    with (
        pytest.raises(ZeroDivisionError),
        Tracker(Tracking(mode="offline", project="p", entity=None), run),
    ):
        _ = 1 / 0
    assert closed == [True]
