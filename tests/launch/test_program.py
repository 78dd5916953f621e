"""One stage as a program: exit codes, outcomes, logs; and several processes that end as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import teams
import toys
from lab import Lab

from alignlab.launch.outcomes import outcome_file, read_outcome
from alignlab.launch.task import Outcome, Task
from alignlab.run import Run

pytestmark = pytest.mark.scale

SCRIPT = "team_program.py"


@dataclass
class Program:
    """Tasks as a launcher writes them, executed as programs."""

    lab: Lab

    def task(self, stages: dict[str, Any], name: str | None = None) -> Task:
        plan = self.lab.plan(stages)
        [node] = [n for n in plan.nodes.values() if name is None or n.name == name]
        return Task.of(node, self.lab.place())

    def file(self, task: Task) -> Path:
        file = self.lab.root / "studies/s/tasks" / f"{task.run}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(task.to_json()))
        return file

    def alone(self, task: Task, *arguments: str) -> tuple[int, str]:
        environment = {**os.environ, "PYTHONPATH": f"{toys.ROOT}:{teams.HERE}"}
        done = subprocess.run(
            [sys.executable, str(teams.HERE / SCRIPT), str(self.file(task)), *arguments],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stderr

    def many(self, task: Task, processes: int = 2) -> tuple[list[int], str]:
        return teams.finished(teams.start(SCRIPT, str(self.file(task)), processes=processes))

    def outcome(self, task: Task) -> Outcome:
        found = read_outcome(task.place, task.run)
        assert found is not None
        return found

    def run(self, task: Task) -> Run:
        return self.lab.store.run(task.kind, task.key)

    def log(self, task: Task, which: str = "") -> str:
        return (self.lab.root / "studies/s/logs" / f"{task.run}{which}.log").read_text()


@pytest.fixture
def program(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr("alignlab.plan.locate", teams.locate)
    return Program(lab)


def test_a_stage_alone_is_done_once(program: Program) -> None:
    task = program.task({"a": toys.toy(7)})
    code, terminal = program.alone(task)
    assert code == 0, terminal
    assert f"done {task.run} (a)" in terminal
    assert program.run(task).summary() == {"total": 7}
    assert "from step 0" in program.log(task)  # what the stage prints
    assert "from step 0" not in terminal
    assert program.outcome(task).status == "done"
    assert program.run(task).record["processes"] == {"started": 1, "nodes": 1, "at_work": 1}
    code, terminal = program.alone(task, "--here")
    assert (code, program.outcome(task).status) == (0, "cached")
    assert len(program.run(task).samples()) == 1


@pytest.mark.parametrize(
    ("end", "code", "kind", "reason"),
    [
        ("trouble", 1, "failed", "the toy is broken."),
        ("bug", 1, "failed", "ZeroDivisionError: a bug"),
        ("mistake", 2, "refused", "this toy cannot be had."),
        ("divergence", 3, "diverged", "the loss is not finite."),
    ],
)
def test_an_exit_code_says_what_became_of_it(
    program: Program, end: str, code: int, kind: str, reason: str
) -> None:
    task = program.task({"a": toys.toy(1, end=end)})
    assert program.alone(task)[0] == code
    outcome = program.outcome(task)
    assert (outcome.status, outcome.error_kind) == ("failed", kind)
    assert outcome.reason.startswith(reason)


def test_an_interrupted_program_asks_to_be_started_again(program: Program) -> None:
    task = program.task({"a": toys.toy(5, steps=100, pause=0.05)})
    environment = {**os.environ, "PYTHONPATH": f"{toys.ROOT}:{teams.HERE}"}
    command = [sys.executable, str(teams.HERE / SCRIPT), str(program.file(task))]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not program.run(task).metrics() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert process.returncode == 85
    assert program.outcome(task).status == "interrupted"
    assert program.run(task).record["error"] is None
    assert program.alone(program.task({"a": toys.toy(5, steps=100, pause=0.0)}))[0] == 0


def test_a_program_without_a_task_is_refused(program: Program, tmp_path: Path) -> None:
    torn = tmp_path / "task.json"
    torn.write_text('{"name": "a"')
    done = subprocess.run(
        [sys.executable, "-m", "alignlab.launch.program", str(torn)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "task.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cached_stage_imports_no_torch(program: Program) -> None:
    task = program.task({"a": toys.toy(3)})
    assert program.alone(task)[0] == 0
    code = (
        "import sys; from alignlab.launch.program import main; "
        f"code = main([{str(program.file(task))!r}]); sys.exit(code or 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{toys.ROOT}:{teams.HERE}"}
    patched = f"import teams; from alignlab import plan; plan.locate = teams.locate; {code}"
    done = subprocess.run([sys.executable, "-c", patched], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
def test_two_processes_do_a_stage_together_and_one_alone(program: Program) -> None:
    stages = {"a": toys.toy(7), "b": teams.team(10, left="a")}
    first, second = (program.task(stages, name) for name in "ab")
    assert program.many(first)[0] == [0, 0]
    assert program.run(first).record["processes"] == {"started": 2, "nodes": 1, "at_work": 1}
    assert len(program.run(first).samples()) == 1  # the toy writes one line each time it is run
    codes, text = program.many(second)
    assert codes == [0, 0], text
    run = program.run(second)
    assert run.summary() == {"total": 10 * 1 + 10 * 2 + 7}
    assert run.record["processes"] == {"started": 2, "nodes": 1, "at_work": 2}
    assert run.record["peak_memory_bytes"] > 10**8  # torch is in both
    assert [row["step"] for row in run.metrics()] == [1]  # one of them writes
    assert program.outcome(second).status == "done"
    codes, _ = program.many(second)
    assert (codes, program.outcome(second).status) == ([0, 0], "cached")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        ({"1": "bug"}, 1, "process 1 of 2 ({host}): ZeroDivisionError: a bug"),
        ({"0": "bug"}, 1, "ZeroDivisionError: a bug"),
        ({"1": "mistake"}, 2, "process 1 of 2 ({host}): this team cannot be had."),
        ({"0": "divergence", "1": "divergence"}, 3, "the loss is not finite."),
    ],
)
def test_a_failure_of_one_process_ends_all_and_is_named(
    program: Program, ends: dict[str, str], code: int, said: str
) -> None:
    task = program.task({"a": teams.team(1, steps=3, ends=ends)})
    codes, text = program.many(task)
    assert codes == [code, code], text
    outcome = program.outcome(task)
    assert outcome.status == "failed"
    assert outcome.reason.startswith(said.format(host=os.uname().nodename))
    assert program.run(task).record["error"] in outcome.reason
    assert not program.run(task).live


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_by_the_others(program: Program) -> None:
    task = program.task({"a": teams.team(1, steps=3, ends={"1": "death"})})
    codes, text = program.many(task)
    assert codes == [1, -signal.SIGKILL], text
    assert "process 1 of 2" in program.outcome(task).reason
    assert "no sign of life" in program.outcome(task).reason
    assert "process 1 of 2" in program.run(task).record["error"]


@pytest.mark.slow
def test_without_the_main_process_another_one_says_so(program: Program) -> None:
    task = program.task({"a": teams.team(1, steps=3, ends={"0": "death"})})
    codes, text = program.many(task)
    assert codes == [-signal.SIGKILL, 1], text
    assert "process 0 of 2" in program.outcome(task).reason
    assert "continues from the last checkpoint" in program.outcome(task).reason


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all(program: Program) -> None:
    task = program.task({"a": teams.team(1, steps=3, ends={"1": "stop"})})
    codes, text = program.many(task)
    assert codes == [85, 85], text
    assert program.outcome(task).status == "interrupted"
    assert program.run(task).record["error"] is None
    assert outcome_file(task.place, task.run).is_file()
