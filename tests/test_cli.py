"""The door: light, and without a traceback for a user's mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignlab.cli import main
from alignlab.run import Run, Store

HEAVY = ("torch", "transformers", "hydra", "omegaconf", "wandb", "peft", "numpy", "matplotlib")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path))
    return Store(tmp_path)


def finished(store: Store, name: str, **record: object) -> Run:
    run = store.run(*name.split("-"))
    run.update_record(kind=run.kind, label=f"label of {run.kind}", seed=3, seconds=61, **record)
    run.log(1, {"loss": 0.5})
    run.finish()
    return run


def test_help_is_light_and_fast() -> None:
    code = f"""
import sys
from alignlab.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
print([name for name in {HEAVY} if name in sys.modules])
"""
    seconds = []
    for _ in range(3):
        # Processor time, because the wall clock of a busy machine says nothing about the door.
        began = sum(os.times()[2:4])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(sum(os.times()[2:4]) - began)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"
    assert min(seconds) < 0.3
    names = (
        "run",
        "plan",
        "report",
        "watch",
        "runs",
        "reproduce",
        "export",
        "chat",
        "doctor",
        "data",
    )
    for name in names:
        assert f"    {name} " in done.stdout or f"    {name}\n" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "alignlab.plan",
        "alignlab.compose",
        "alignlab.run",
        "alignlab.launch.worker",
        "alignlab.launch.launcher",
        "alignlab.commands.study",
        "alignlab.commands.runs",
        "alignlab.commands.reproduce",
        "alignlab.commands.watch",
        "alignlab.commands.models",
        "alignlab.commands.data_check",
        "alignlab.commands.data_setup",
    ],
)
def test_no_module_of_the_door_imports_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=sentiment_demo"],
        ["-m", "pipeline=preference", "objective=glob(*)"],
        ["pipeline=compare"],
    ],
    ids=["demo", "every objective", "compare"],
)
def test_plan_imports_no_torch_and_takes_under_two_seconds(
    overrides: list[str], tmp_path: Path
) -> None:
    code = f"""
import sys
from alignlab.cli import main
assert main(["plan", *{overrides!r}]) == 0
print([name for name in ("torch", "transformers", "wandb") if name in sys.modules])
"""
    began = sum(os.times()[2:4])  # processor time: see test_help_is_light_and_fast
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "ALIGNLAB_RUNS": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    if "-m" not in overrides:
        assert sum(os.times()[2:4]) - began < 2.0


@pytest.mark.parametrize("words", [[], ["foo"], ["run", "--seed", "3"], ["export", "x"], ["runs"]])
def test_wrong_words_exit_2_with_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: alignlab" in capsys.readouterr().err


@pytest.mark.slow
def test_module_and_options_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alignlab", "plan", "sed=1", "--json", "objective=dpo", "-m"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Did you mean 'seed'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_of_an_empty_store(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "ls"]) == 0
    assert "no runs" in capsys.readouterr().out


def test_runs_ls_and_show(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    finished(store, "sft-aaaa", study="one")
    failed = store.run("dpo", "bbbb")
    failed.update_record(kind="dpo", error="out of luck")
    store.run("ppo", "cccc").update_record(kind="ppo")
    assert main(["runs", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    states = {line.split()[0]: line.split()[1] for line in lines[1:]}
    assert states == {"sft-aaaa": "done", "dpo-bbbb": "failed", "ppo-cccc": "stopped"}
    assert "1m01s" in next(line for line in lines if line.startswith("sft"))
    assert main(["runs", "show", "aa"]) == 0
    out = capsys.readouterr().out
    assert "label of sft" in out
    assert "metrics.jsonl" in out
    assert main(["runs", "show", "zz"]) == 2
    assert "no run 'zz'" in capsys.readouterr().err
    assert main(["runs", "show"]) == 2


def test_gc_and_prune_ask_before_they_delete(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(store, "sft-aaaa")
    store.run("ppo", "cccc").update_record(kind="ppo")
    assert main(["runs", "gc"]) == 0
    assert "would delete  ppo-cccc" in capsys.readouterr().out
    assert len(store.runs()) == 2
    assert main(["runs", "gc", "--yes"]) == 0
    assert [run.name for run in store.runs()] == ["sft-aaaa"]
    assert main(["runs", "prune", "--yes"]) == 0  # no study names it
    assert store.runs() == []


def test_commands_on_a_run_without_a_model(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(store, "evaluate-aaaa")
    store.run("sft", "bbbb").update_record(kind="sft")
    assert main(["export", "aaaa", "--to", str(tmp_path / "out")]) == 2
    assert "has no model" in capsys.readouterr().err
    assert main(["chat", "bbbb"]) == 2
    assert "not finished" in capsys.readouterr().err
    assert main(["reproduce", "bbbb"]) == 2


def test_report_of_an_unknown_study(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_doctor_finds_a_changed_file(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(store, "sft-aaaa")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "no problems" in out
    for topic in ("torch", "processor", "memory", "W&B", "store", "disk"):
        assert topic in out
    (run.path / "metrics.jsonl").write_text("{}\n")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "PROBLEM" in out
    assert "metrics.jsonl has changed" in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_doctor_of_a_store_that_cannot_be_written(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.root.chmod(0o500)
    assert main(["doctor"]) == 1
    assert "cannot be written" in capsys.readouterr().out
