"""`alignlab reproduce STUDY` and `alignlab watch` as processes of their own, over toys."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from test_command import Command


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def copied(command: Command, tmp_path: Path, pause: float) -> Path:
    """The folder of a finished study; its store is gone."""
    assert command("run", "-m", "study=mine", "seed=0,1", f"pause={pause}")[0] == 0
    folder = tmp_path / "copied"
    shutil.copytree(command.store.studies / "mine", folder)
    shutil.rmtree(command.store.root)
    return folder


@pytest.mark.slow
def test_a_study_is_run_again_from_its_folder(command: Command, tmp_path: Path) -> None:
    folder = copied(command, tmp_path, 0.0)
    code, out, err = command("reproduce", str(folder))
    assert code == 0, err
    assert "nothing differs" in out
    assert "4 of 4 runs came out the same, file by file" in out
    store = command.store.root / "reproductions" / "mine-1"
    assert len(list(store.glob("toy-*"))) == 4
    assert (store / "studies" / "mine-again" / "agreement.json").is_file()

    record = json.loads((folder / "record.json").read_text())
    for stage in record["stages"].values():
        stage["result"] = "0" * 64  # as if it had come out otherwise
    (folder / "record.json").write_text(json.dumps(record))
    code, out, _ = command("reproduce", str(folder), "--to", str(tmp_path / "given"))
    assert code == 1
    assert "0 of 4 runs came out the same" in out
    assert len(list((tmp_path / "given").glob("toy-*"))) == 4


@pytest.mark.long
def test_an_interrupted_reproduction_continues(command: Command, tmp_path: Path) -> None:
    folder = copied(command, tmp_path, 0.02)
    process = command.start("reproduce", str(folder))
    root = command.store.root / "reproductions" / "mine-1"
    deadline = time.monotonic() + 30
    while not list(root.glob("toy-*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"continue with: alignlab reproduce {folder}" in err
    code, out, _ = command("reproduce", str(folder))
    assert code == 1  # a toy writes down from which step it went on, so one file is another
    assert "3 of 4 runs came out the same" in out
    assert [f.name for f in root.parent.iterdir()] == ["mine-1"]
    assert command("reproduce", str(folder))[0] == 0  # that one is done: another is begun
    assert sorted(f.name for f in root.parent.iterdir()) == ["mine-1", "mine-2"]


@pytest.mark.slow
def test_watch_follows_a_study_to_its_end(command: Command) -> None:
    run = command.start("run", "study=mine", "pause=0.05")
    deadline = time.monotonic() + 30
    while not (command.store.studies / "mine/study.json").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    code, out, err = command("watch", "--every", "0.1")
    assert (code, err) == (0, "")
    run.communicate(timeout=60)
    assert run.returncode == 0
    assert out.startswith("study mine  ")
    assert [line.split()[2] for line in out.splitlines() if line.startswith("done  ")][-1] == "b"
    assert "study mine  2 of 2 stages" in out.splitlines()[-1]


@pytest.mark.slow
def test_watch_shows_a_failure_with_its_reason(command: Command) -> None:
    assert command("run", "study=mine", "+stages.a.end=trouble")[0] == 1
    code, out, _ = command("watch")
    assert code == 0
    assert "the toy is broken." in out
    assert "2 failed or blocked" in out
    outcomes = (command.store.studies / "mine/outcomes.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in outcomes] == ["failed", "blocked"]
