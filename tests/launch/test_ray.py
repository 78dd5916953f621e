"""Stages on a real Ray: a cluster of two machines in one, and one started for the command."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import teams
import toys
from lab import Lab
from test_ray_room import STATED

from alignlab.errors import ConfigError, Interrupted
from alignlab.launch.launcher import launch_of
from alignlab.launch.task import Outcome

pytest.importorskip("ray", reason="ray is not installed: pip install 'alignlab[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.scale]
PROGRAM = (str(teams.HERE / "team_program.py"),)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one machine with two CPUs, as others would have started it."""
    patch = pytest.MonkeyPatch()
    home = tempfile.mkdtemp(prefix="ray")  # short: it holds sockets
    patch.setenv("HOME", home)  # Ray writes a token there
    patch.setenv("RAY_TMPDIR", home)
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("PYTHONPATH", os.pathsep.join([str(toys.ROOT), str(teams.HERE)]))
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    yield found
    found.shutdown()
    patch.undo()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def bench(lab: Lab, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("alignlab.plan.locate", teams.locate)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(toys.ROOT), str(teams.HERE)]))
    return Bench(lab, cluster.address)


class Bench:
    """Executes plans on a cluster."""

    def __init__(self, lab: Lab, address: str | None) -> None:
        self.lab, self.address = lab, address

    def execute(self, stages: dict[str, Any], note: Any = None, **given: Any) -> dict[str, Outcome]:
        launch: Any = launch_of({**STATED, "address": self.address, **given})
        plan = self.lab.plan(stages)
        launch.check(plan)
        outcomes = launch.execute(
            plan,
            self.lab.place(),
            note=note or self.lab.notes.append,
            settled=self.lab.settled.append,
            program=PROGRAM,
        )
        return {outcome.name: outcome for outcome in outcomes}


def test_a_graph_with_every_end(bench: Bench) -> None:
    stages = {
        "a": toys.toy(1),
        "b": toys.toy(10, left="a"),
        "c": toys.toy(100, left="a"),
        "d": toys.toy(1000, left="b", right="c"),
        "broken": toys.toy(5, left="a", end="trouble"),
        "child": toys.toy(6, left="broken"),
        "killed": toys.toy(7, left="a", end="death"),
        "diverged": toys.toy(8, left="a", end="divergence"),
    }
    found = bench.execute(stages)
    assert {name: outcome.status for name, outcome in found.items()} == {
        "a": "done",
        "b": "done",
        "c": "done",
        "d": "done",
        "broken": "failed",
        "child": "blocked",
        "killed": "failed",
        "diverged": "failed",
    }
    plan = bench.lab.plan(stages)
    assert bench.lab.total(plan, "d") == 1000 + (10 + 1) + (100 + 1)
    assert found["diverged"].error_kind == "diverged"
    assert "the toy is broken" in found["broken"].reason
    assert "broken" in found["child"].reason
    assert "SIGKILL (often: out of memory)" in found["killed"].reason
    logs = bench.lab.root / "studies/s/logs"
    assert "from step 0" in (logs / f"{found['d'].run}.log").read_text()
    assert str(logs / f"{found['killed'].run}.log") in found["killed"].reason
    assert bench.lab.settled[0].name == "a"
    # What is done is done, and what failed is tried again.
    assert bench.execute({name: stages[name] for name in "abcd"})["d"].status == "cached"


def test_a_signal_lets_stages_save_and_the_next_command_goes_on(bench: Bench) -> None:
    stages = {"a": toys.toy(1, steps=400, pause=0.05), "b": toys.toy(2, left="a")}
    [run] = [node.run for node in bench.lab.plan(stages).nodes.values() if node.name == "a"]
    log = bench.lab.root / run / "metrics.jsonl"

    def when_it_runs() -> None:
        while not log.is_file() or log.read_text().count("\n") < 3:
            threading.Event().wait(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=when_it_runs, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"):
        bench.execute(stages)
    assert signal.getsignal(signal.SIGTERM) is before
    state = bench.lab.root / run / "state/step.json"
    assert state.is_file()
    assert any("saves a checkpoint" in note for note in bench.lab.notes)
    quick = {**stages, "a": {**stages["a"]}}
    found = bench.execute(quick)
    assert [found[name].status for name in "ab"] == ["done", "done"]
    assert [row["from"] > 0 for row in bench.lab.store.find(run).samples()] == [False, True]


def test_a_stage_that_was_stopped_by_somebody_else_goes_on(bench: Bench) -> None:
    stages = {"a": toys.toy(1, steps=200, pause=0.05)}
    [run] = bench.lab.plan(stages).nodes
    folder = bench.lab.store.run(*run.split("-", 1))

    def stop_it() -> None:
        while len(folder.metrics()) < 3:
            threading.Event().wait(0.1)
        os.kill(folder.record["pid"], signal.SIGUSR1)

    threading.Thread(target=stop_it, daemon=True).start()
    assert bench.execute(stages)["a"].status == "done"
    assert any("was stopped by somebody else" in note for note in bench.lab.notes)
    assert [row["from"] > 0 for row in folder.samples()] == [False, True]


def test_a_stage_goes_on_elsewhere_when_its_machine_is_lost(bench: Bench, cluster: Any) -> None:
    lost = cluster.add_node(num_cpus=4)
    stages = {"a": toys.toy(1, steps=300, pause=0.05)}
    [run] = bench.lab.plan(stages).nodes
    folder = bench.lab.store.run(*run.split("-", 1))
    came: list[Any] = []

    def lose_it() -> None:
        while len(folder.metrics()) < 3:
            threading.Event().wait(0.1)
        cluster.remove_node(lost, allow_graceful=False)

    def noted(text: str) -> None:
        bench.lab.notes.append(text)
        if "lost its machine" in text:
            came.append(cluster.add_node(num_cpus=4))  # Ray asks for the main thread

    threading.Thread(target=lose_it, daemon=True).start()
    # three CPUs: only the second machine has them
    found = bench.execute(stages, note=noted, toy={"cpus": 3}, retries=1)
    for node in came:
        cluster.remove_node(node)
    assert found["a"].status == "done", found
    assert any("lost its machine" in note for note in bench.lab.notes)


def test_processes_on_two_machines_work_on_one_stage(bench: Bench, cluster: Any) -> None:
    second = cluster.add_node(num_cpus=2)
    # Σ value · (rank + 1) over two processes: 5 · (1 + 2) = 15
    stages = {"a": teams.team(5), "b": toys.toy(100, left="a")}
    stages["b"] = teams.team(1, left="a")
    found = bench.execute(stages, team={"nodes": 2, "processes": 1})
    cluster.remove_node(second)
    assert [found[name].status for name in "ab"] == ["done", "done"], found
    record = bench.lab.store.find(found["b"].run)
    assert record.summary()["total"] == 15 + 1 * (1 + 2)


def test_several_processes_of_one_machine_end_as_one(bench: Bench) -> None:
    stages = {
        "a": teams.team(5),
        "bad": teams.team(7, ends={"1": "divergence"}),
    }
    found = bench.execute(stages, team={"processes": 2}, jobs=1)
    assert found["a"].status == "done", found
    assert bench.lab.store.find(found["a"].run).summary()["total"] == 15
    assert (found["bad"].status, found["bad"].error_kind) == ("failed", "diverged")


def test_what_no_machine_has_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="'a' asks for 64 CPU on 1 machine"):
        bench.execute({"a": toys.toy(1)}, default={"cpus": 64})


def test_ray_is_started_for_the_command_and_ends_with_it(bench: Bench) -> None:
    import ray

    bench.address = None
    assert bench.execute({"a": toys.toy(3)})["a"].status == "done"
    assert not ray.is_initialized()
