"""Executing plans in this process and in workers: the same results, failures that stay local."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from lab import Lab
from toys import toy

from alignlab.errors import ConfigError
from alignlab.launch.board import Board
from alignlab.launch.execute import execute
from alignlab.launch.launcher import Local, launch_of, visible_gpus
from alignlab.launch.task import Task, usable_cores

KINDS = ["inprocess", "local"]
DIAMOND = {
    "a": toy(1),
    "b": toy(10, left="a"),
    "c": toy(100, left="a"),
    "d": toy(1000, left="b", right="c"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_diamond_is_executed_once_and_then_reused(lab: Lab, kind: str) -> None:
    plan = lab.plan(DIAMOND)
    assert lab.execute(plan, kind) == dict.fromkeys("abcd", "done")
    # a = 1, b = 10 + 1, c = 100 + 1, d = 1000 + 11 + 101
    assert [lab.total(plan, name) for name in "abcd"] == [1, 11, 101, 1112]
    again = lab.plan(DIAMOND)
    assert not again.pending()
    assert lab.execute(again, kind) == dict.fromkeys("abcd", "cached")
    assert all(len(run.samples()) == 1 for run in lab.store.runs())  # each ran one time


@pytest.mark.slow
def test_a_stage_shared_by_jobs_runs_once(lab: Lab) -> None:
    jobs = [{"a": toy(1), "b": toy(value, left="a")} for value in (10, 20, 30)]
    plan = lab.plan(*jobs)
    assert len(plan.nodes) == 4
    lab.execute(plan, "local", 2)
    assert len(lab.store.runs()) == 4
    totals = sorted(int(run.summary()["total"]) for run in lab.store.runs())
    assert totals == [1, 11, 21, 31]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("end", "reason", "code"),
    [
        ("mistake", "this toy cannot be had", 2),
        ("trouble", "the toy is broken", 1),
        ("bug", "ZeroDivisionError: a bug", 1),
    ],
)
def test_a_failure_blocks_its_descendants_and_nothing_else(
    lab: Lab, kind: str, end: str, reason: str, code: int
) -> None:
    stages = {
        "bad": toy(1, end=end),
        "child": toy(2, left="bad"),
        "grandchild": toy(3, left="child"),
        "other": toy(4),
        "friend": toy(5, left="other"),
    }
    plan = lab.plan(stages)
    assert lab.execute(plan, kind) == {
        "bad": "failed",
        "child": "blocked",
        "grandchild": "blocked",
        "other": "done",
        "friend": "done",
    }
    by_name = {outcome.name: outcome for outcome in lab.settled}
    assert reason in by_name["bad"].reason
    assert by_name["bad"].exit_code == code
    assert "bad" in by_name["grandchild"].reason
    run = lab.store.run("toy", next(n.key for n in plan.nodes.values() if n.name == "bad"))
    assert not run.done
    assert run.record["error"]
    if end == "bug":
        assert "Traceback" in next((lab.root / "studies/s/logs").glob("*.error.log")).read_text()


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_stage_and_is_replaced(lab: Lab) -> None:
    plan = lab.plan({"dead": toy(1, end="death"), "x": toy(2), "y": toy(3, left="x")})
    assert lab.execute(plan, "local", 1) == {"dead": "failed", "x": "done", "y": "done"}
    [reason] = [o.reason for o in lab.settled if o.name == "dead"]
    assert "SIGKILL" in reason


@pytest.mark.slow
def test_one_worker_executes_many_stages_and_divides_the_cores(lab: Lab) -> None:
    plan = lab.plan({str(i): toy(i, pause=0.02) for i in range(6)})
    lab.execute(plan, "local", 2)
    records = [run.record for run in lab.store.runs()]
    threads = str(max(1, usable_cores() // 2))
    assert {record["env_threads"] for record in records} == {threads}
    assert {str(record["engine_threads"]) for record in records} == {threads}
    assert len({run.record["pid"] for run in lab.store.runs()}) <= 2


@pytest.mark.slow
def test_a_stage_that_nothing_can_run_beside_gets_all_cores(lab: Lab, monkeypatch) -> None:
    monkeypatch.setattr("alignlab.launch.launcher.usable_cores", lambda: 4)
    plan = lab.plan({**DIAMOND, "e": toy(5, left="d")})
    assert {plan.nodes[run].name for run in Board(plan).alone()} == {"a", "d", "e"}
    lab.execute(plan, "local", 2)
    threads = {run.record["name"]: run.record["engine_threads"] for run in lab.store.runs()}
    assert threads == {"a": 4, "b": 2, "c": 2, "d": 4, "e": 4}


@pytest.mark.slow
def test_what_is_done_does_not_take_cores(lab: Lab) -> None:
    lab.execute(lab.plan({name: DIAMOND[name] for name in "ab"}), "inprocess")
    plan = lab.plan({**DIAMOND, "e": toy(5, left="a")})
    assert {plan.nodes[run].name for run in Board(plan).alone()} == set()  # c, d beside e
    plan = lab.plan(DIAMOND)
    assert {plan.nodes[run].name for run in Board(plan).alone()} == {"c", "d"}


@pytest.mark.slow
def test_stages_run_side_by_side(lab: Lab) -> None:
    plan = lab.plan({"a": toy(1, pause=2.5), "b": toy(2, pause=2.5)})
    lab.execute(plan, "local", 2)
    spans = [(run.record["began"], run.record["ended"]) for run in lab.store.runs()]
    assert max(began for began, _ in spans) < min(ended for _, ended in spans)


@pytest.mark.slow
def test_threads_of_the_configuration_are_kept(lab: Lab) -> None:
    lab.execute(lab.plan({"a": toy(1)}), "local", 1, threads=3)
    [run] = lab.store.runs()
    assert run.record["engine_threads"] == 3


@pytest.mark.slow
def test_what_a_stage_prints_goes_to_its_own_log(lab: Lab) -> None:
    plan = lab.plan({"a": toy(1), "b": toy(2, left="a")})
    lab.execute(plan, "local", 1)
    for node in plan.nodes.values():
        log = lab.root / "studies/s/logs" / f"{node.run}.log"
        assert log.read_text() == f"{node.run} from step 0\n"
        assert f"[{node.run}] from step 0" in lab.notes


@pytest.mark.slow
def test_the_record_says_what_was_run_and_what_it_took(lab: Lab, key_of: Callable) -> None:
    plan = lab.plan({"a": toy(1, label="first"), "b": toy(2, left="a", pause=0.05)})
    lab.execute(plan, "inprocess")
    run = lab.store.run("toy", key_of(plan, "b"))
    record = run.record
    assert record["inputs"] == {"left": f"toy-{key_of(plan, 'a')}"}
    assert (record["name"], record["kind"], record["key"]) == ("b", "toy", run.key)
    assert (record["study"], record["seed"], record["error"]) == ("s", 0, None)
    assert 0.05 <= record["seconds"] < 5
    assert record["peak_memory_bytes"] > 10**7
    for name in ("updates", "flops", "tokens_trained", "tokens_sampled", "params_total"):
        assert record[name] == 0
    assert lab.store.run("toy", key_of(plan, "a")).record["label"] == "first"
    config = json.loads((run.path / "config.json").read_text())
    assert config["_target_"] == "toys.Toy"
    assert config["value"] == 2
    assert (run.path / "env.json").is_file()
    assert not run.state_dir.exists()


def test_a_run_whose_input_is_gone_is_not_started(lab: Lab) -> None:
    node = list(lab.plan({"a": toy(1), "b": toy(2, left="a")}).nodes.values())[1]
    with pytest.raises(Exception, match="is not finished"):
        execute(Task.of(node, lab.place()), lab.notes.append)


def test_a_task_survives_its_journey(lab: Lab) -> None:
    node = next(iter(lab.plan({"a": toy(1)}).nodes.values()))
    task = Task.of(node, lab.place())
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_longest_remaining_path_starts_first(lab: Lab) -> None:
    plan = lab.plan({"short": toy(1), "long": toy(2), "end": toy(3, left="long")})
    board = Board(plan)
    assert [node.name for node in board.ready()] == ["long", "short"]
    seconds = {"short": 50.0, "long": 1.0, "end": 1.0}
    slow = {run: replace(n, seconds=seconds[n.name]) for run, n in plan.nodes.items()}
    assert [n.name for n in Board(replace(plan, nodes=slow)).ready()] == ["short", "long"]


def test_width_of_a_plan_bounds_the_jobs(lab: Lab) -> None:
    plan = lab.plan(DIAMOND)
    assert Board(plan).width() == 2
    local = Local(kind="local", jobs="auto")
    assert local.width(plan, gpus=0, cores=8) == 2
    assert local.width(plan, gpus=0, cores=1) == 1
    assert local.width(plan, gpus=1, cores=8) == 1
    assert Local(kind="local", jobs=5).width(plan, gpus=0, cores=1) == 2
    with pytest.raises(ConfigError, match="launch=local"):
        launch_of({"kind": "inprocess", "jobs": 2})


@pytest.mark.parametrize(
    ("stated", "found"), [("", []), ("-1", []), ("0", ["0"]), ("2,3", ["2", "3"])]
)
def test_visible_gpus(stated: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", stated)
    assert visible_gpus() == found


def test_each_worker_sees_one_gpu(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    given: list[dict[str, str]] = []

    class Pool:
        def __init__(self, plan, place, jobs, variables, *_: object) -> None:
            given.extend(dict(variables(slot, 1)) for slot in range(jobs))

        def run(self) -> list:
            return []

    monkeypatch.setattr("alignlab.launch.launcher.Pool", Pool)
    plan = lab.plan({str(i): toy(i) for i in range(5)})
    lab.execute(plan, "local", "auto", device="auto")
    assert [g["CUDA_VISIBLE_DEVICES"] for g in given] == ["4", "7"]
