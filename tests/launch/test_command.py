"""`alignlab run` as a process of its own: what it prints, how it stops, how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_cli
import toys

from alignlab.run import Store

SCRIPT = Path(toy_cli.__file__)


class Command:
    """The toy command line over one store."""

    def __init__(self, folder: Path) -> None:
        self.conf = toy_cli.write_conf(folder / "conf")
        self.store = Store(folder / "runs")
        self.variables = {**os.environ, "ALIGNLAB_RUNS": str(self.store.root)}
        self.variables["PYTHONPATH"] = str(toys.ROOT)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), str(self.conf), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.variables,
        )

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def wait_for_step(self, step: int) -> None:
        """Wait until the first stage has logged ``step``."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if any(
                run.metrics() and run.metrics()[-1]["step"] >= step for run in self.store.runs()
            ):
                return
            time.sleep(0.02)
        raise AssertionError("the stage never started")

    def totals(self) -> list[int]:
        return sorted(int(run.summary()["total"]) for run in self.store.runs())


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.mark.slow
def test_run_prints_a_line_per_stage_and_writes_the_study(command: Command) -> None:
    code, out, err = command("run", "study=mine")
    assert (code, err) == (0, "")
    assert "study mine: 2 stages, 0 in the store" in out
    stages = [line.split() for line in out.splitlines() if line.startswith("done")]
    assert [words[2] for words in stages] == ["a", "b"]
    assert command.totals() == [1, 11]
    study = json.loads((command.store.studies / "mine/study.json").read_text())
    assert (study["name"], study["command"]) == ("mine", "alignlab run study=mine")
    assert study["overrides"] == ["study=mine"]
    [job] = study["jobs"]
    assert job["seed"] == 0
    assert job["stages"] == {"a": stages[0][1], "b": stages[1][1]}

    code, out, _ = command("run", "study=mine")
    assert code == 0
    assert out.count("cached") == 2
    assert "done" not in out
    created = json.loads((command.store.studies / "mine/study.json").read_text())["created"]
    assert created == study["created"]


@pytest.mark.slow
def test_a_sweep_is_one_study(command: Command) -> None:
    code, out, _ = command("run", "-m", "seed=0,1", "stages.b.value=10,20,30")
    assert code == 0
    [study] = command.store.studies.glob("*/study.json")
    jobs = json.loads(study.read_text())["jobs"]
    assert [job["seed"] for job in jobs] == [0, 0, 0, 1, 1, 1]
    assert jobs[1]["overrides"] == ["seed=0", "stages.b.value=20"]
    assert len(command.store.runs()) == 2 + 6  # a per seed; b per seed and value
    assert len({job["stages"]["a"] for job in jobs}) == 2
    assert "8 stages" in out


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["inprocess", "local"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_an_interrupted_study_continues_where_it_stopped(
    command: Command, launch: str, number: int, code: int
) -> None:
    process = command.start("run", f"launch={launch}", "study=s", "pause=0.05")
    command.wait_for_step(2)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert f"continue with: alignlab run launch={launch} study=s pause=0.05" in err
    assert "Traceback" not in err
    [run] = command.store.runs()
    assert not run.done
    assert not run.live  # the worker is gone too, and gave the run up
    assert run.record["error"] is None  # stopped, not failed
    step = json.loads((run.state_dir / "step.json").read_text())["step"]

    code, _, _ = command("run", f"launch={launch}", "study=s", "pause=0.05")
    assert code == 0
    assert command.totals() == [1, 11]
    assert [row["from"] for row in run.samples()] == [0, step]
    assert run.record["error"] is None


@pytest.mark.slow
def test_workers_stop_when_the_launcher_is_killed(command: Command) -> None:
    process = command.start("run", "launch=local", "pause=0.2")
    command.wait_for_step(1)
    [run] = command.store.runs()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while run.live and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not run.live
    assert (run.state_dir / "step.json").is_file()  # it saved a checkpoint first


@pytest.mark.slow
def test_two_commands_on_one_store_do_not_repeat_work(command: Command) -> None:
    both = [command.start("run", "study=s", "pause=0.03") for _ in range(2)]
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert all(len(run.samples()) == 1 for run in command.store.runs())
    assert command.totals() == [1, 11]


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["inprocess", "local"])
def test_a_failed_stage_exits_1_and_its_mistake_2(command: Command, launch: str) -> None:
    code, out, err = command("run", f"launch={launch}", "+stages.a.end=trouble")
    assert code == 1
    assert "a: the toy is broken." in err
    assert "continue with: alignlab run" in err
    assert [line.split()[0] for line in out.splitlines() if " toy-" in line] == [
        "failed",
        "blocked",
    ]
    code, _, err = command("run", f"launch={launch}", "+stages.a.end=mistake")
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["sed=1"], "Did you mean 'seed'?"),
        (["stages.a.valu=1"], "Did you mean 'value'?"),
        (["+stages.a.valu=1"], "Did you mean 'value'?"),
        (["stages.a.value=x"], "stages.a.value"),
        (["stages.b.inputs.left=c"], "stages.b.inputs.left"),
        (["launch.kind=lokal"], "Did you mean 'local'?"),
        (["launch.jobs=2"], "launch=local"),
        (["engine.token_budget=-1"], "engine.token_budget"),
        (["+engine.tokens=1"], "engine.tokens"),
        (["study=a/b"], "cannot name a folder"),
        (["seed=0,1"], "-m"),
        (["-m", "engine.token_budget=1,2"], "engine: differs"),
        (["stages.a._target_=os.system"], "os.system"),
    ],
)
def test_a_refused_configuration_exits_2_with_one_message(
    command: Command, arguments: list[str], part: str
) -> None:
    code, out, err = command("run", *arguments)
    assert code == 2
    assert part in err
    assert "Traceback" not in err
    assert out == ""
    assert not command.store.root.exists()  # nothing was begun


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["launch=local"], "use it without torchrun, as `alignlab run launch=local`"),
        ([], "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set"),
    ],
)
def test_one_of_several_processes_that_cannot_work_together_is_refused(
    command: Command, arguments: list[str], part: str
) -> None:
    command.variables["WORLD_SIZE"] = "2"
    code, out, err = command("run", *arguments)
    assert (code, out) == (2, "")
    assert "WORLD_SIZE=2" in err
    assert part in err
    assert not command.store.runs()


@pytest.mark.slow
def test_plan_prints_the_contract_and_runs_nothing(command: Command) -> None:
    code, out, _ = command("plan", "-m", "seed=0,1", "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["jobs"] == 2
    assert [s["name"] for s in plan["stages"]] == ["a", "b", "a", "b"]
    assert set(plan["stages"][1]) >= {
        "name", "kind", "key", "inputs", "cached", "params_total", "params_trained",
        "tokens", "flops", "memory_bytes", "seconds", "memory", "hours", "price", "fits",
    }  # fmt: skip
    assert plan["stages"][1]["inputs"] == {"left": "a"}
    assert not command.store.runs()
    command("run")
    code, out, _ = command("plan", "seed=0")
    assert out.count("cached") == 2
    assert "nothing to do" in out


@pytest.mark.slow
def test_reproduce_says_that_nothing_differs(command: Command) -> None:
    command("run")
    names = [run.name for run in command.store.runs()]
    for name in names:
        code, out, err = command("reproduce", name)
        assert (code, err) == (0, ""), out
        assert f"is the same as {name}" in out
    assert [run.name for run in command.store.runs()] == names  # copies stand apart


@pytest.mark.slow
def test_reproduce_finds_a_difference(command: Command) -> None:
    command("run")
    run = command.store.runs()[0]
    file = run.path / "DONE"
    done = json.loads(file.read_text())
    done["files"]["model/total"] = "0" * 64  # as if the result had been another one
    file.write_text(json.dumps(done))
    code, out, _ = command("reproduce", run.key)
    assert code == 1
    assert "model/total: differs" in out
