"""Stages in several processes each: of this machine by ``launch=local``, and under torchrun."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import teams
import toys
from lab import COMMAND, Lab

from alignlab.errors import ConfigError
from alignlab.launch.launcher import Launch, launch_of
from alignlab.launch.processes import Processes
from alignlab.plan import Plan

pytestmark = pytest.mark.scale


def local(jobs: Any = 1, processes: Any = 2, **stages: Any) -> Launch:
    return launch_of({"kind": "local", "jobs": jobs, "default": {"processes": processes}, **stages})


@pytest.fixture
def execute(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    program = (sys.executable, str(teams.HERE / "team_program.py"))
    monkeypatch.setattr("alignlab.launch.processes.PROGRAM", program)
    monkeypatch.setattr("alignlab.plan.locate", teams.locate)
    monkeypatch.setenv("PYTHONPATH", f"{toys.ROOT}:{teams.HERE}")

    def done(plan: Plan, launch: Launch) -> dict[str, str]:
        outcomes = launch.execute(
            plan, lab.place(), note=lab.notes.append, settled=lab.settled.append, command=COMMAND
        )  # type: ignore[call-arg]
        return {outcome.name: outcome.status for outcome in outcomes}

    return done


@pytest.mark.slow
def test_a_study_of_stages_with_one_and_with_two_processes(lab: Lab, execute: Any) -> None:
    stages = {
        "a": toys.toy(7),
        "b": teams.team(10, left="a"),
        "bad": teams.team(3, ends={"1": "bug"}),
        "child": teams.team(4, left="bad"),
        "c": toys.toy(1),
    }
    plan = lab.plan(stages)
    assert execute(plan, local()) == {
        "a": "done", "b": "done", "bad": "failed", "child": "blocked", "c": "done",
    }  # fmt: skip
    runs = {n.name: lab.store.run(n.kind, n.key) for n in plan.nodes.values()}
    # What several processes would have nothing to do in is given one.
    assert runs["a"].record["processes"] == {"started": 1, "nodes": 1, "at_work": 1}
    assert runs["b"].record["processes"] == {"started": 2, "nodes": 1, "at_work": 2}
    assert runs["b"].summary() == {"total": 10 + 20 + 7}
    [reason] = [o.reason for o in lab.settled if o.name == "bad"]
    assert reason.startswith("process 1 of 2")
    assert "a bug" in reason


@pytest.mark.slow
def test_a_process_that_is_killed_fails_its_stage_and_nothing_is_left(
    lab: Lab, execute: Any
) -> None:
    plan = lab.plan({"dead": teams.team(1, ends={"0": "death", "1": "death"})})
    assert execute(plan, local()) == {"dead": "failed"}
    [outcome] = lab.settled
    assert "SIGKILL" in outcome.reason


@pytest.mark.slow
def test_an_interrupted_launcher_stops_all_processes(lab: Lab, execute: Any) -> None:
    plan = lab.plan({"a": teams.team(1, steps=1000, pause=0.2)})
    [node] = plan.nodes.values()
    run = lab.store.run(node.kind, node.key)

    def interrupt() -> None:
        while not run.metrics():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    from alignlab.errors import Interrupted

    with pytest.raises(Interrupted):
        execute(plan, local())
    assert not run.live
    assert run.record["error"] is None


def test_cores_and_gpus_are_divided_by_processes(lab: Lab, monkeypatch: Any) -> None:
    monkeypatch.setattr("alignlab.plan.locate", teams.locate)
    plan = lab.plan({str(i): teams.team(i) for i in range(4)})
    assert local("auto").width(plan, gpus=0, cores=8) == 4
    assert local("auto").width(plan, gpus=0, cores=2) == 1
    assert local("auto").width(plan, gpus=4, cores=2) == 2  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="3 stages at a time of 2 processes with a GPU each, and"):
        local(3).width(plan, gpus=4, cores=2)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="a stage of 2 processes"):
        local("auto").width(plan, gpus=1, cores=2)  # type: ignore[call-arg]


def test_more_nodes_than_this_one_are_refused_with_the_command(lab: Lab, monkeypatch: Any) -> None:
    monkeypatch.setattr("alignlab.plan.locate", teams.locate)
    plan = lab.plan({"a": teams.team(1)})
    with pytest.raises(ConfigError, match="torchrun --nnodes 2 --nproc_per_node 4"):
        launch_of({"kind": "local", "jobs": 1, "default": {"nodes": 2, "processes": 4}}).check(plan)


def test_processes_see_their_place_and_their_gpus(lab: Lab, monkeypatch: Any) -> None:
    """The environment that torchrun would give, without starting anything heavy."""
    import queue

    code = (
        "import os; print(*[os.environ[n] for n in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', "
        "'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'CUDA_VISIBLE_DEVICES')])"
    )
    monkeypatch.setattr("alignlab.launch.processes.PROGRAM", (sys.executable, "-c", code))
    monkeypatch.setattr("alignlab.plan.locate", teams.locate)
    [node] = lab.plan({"a": teams.team(1)}).nodes.values()
    from alignlab.launch.task import Task

    logs = lab.root / "logs"
    logs.mkdir(parents=True)
    events: Any = queue.SimpleQueue()
    processes = Processes(2, {"CUDA_VISIBLE_DEVICES": "4,5"}, logs, events)
    task = Task.of(node, lab.place())
    processes.give(task)
    assert events.get(timeout=30)[:1] == ("line",)
    assert events.get(timeout=30) == ("ended", processes, 0)
    assert (logs / f"{task.run}.log").read_text() == "0 0 2 2 127.0.0.1 4,5\n"
    assert (logs / f"{task.run}.rank1.log").read_text() == "1 1 2 2 127.0.0.1 4,5\n"
