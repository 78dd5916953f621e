"""What may start and what is blocked: strict inputs, tolerant ones, and failures that count."""

from __future__ import annotations

import json

import pytest
from lab import Lab
from toys import toy

from alignlab.commands.study import _exit_code
from alignlab.commands.text import plan_table
from alignlab.graph import counted
from alignlab.launch.board import Board
from alignlab.launch.task import Outcome
from alignlab.plan import Plan

KINDS = ["inprocess", "local"]


def named(plan: Plan) -> dict[str, str]:
    return {node.name: run for run, node in plan.nodes.items()}


def settle(board: Board, plan: Plan, name: str, status: str) -> list[str]:
    """Settle a stage; return the names of those that this blocks."""
    run = named(plan)[name]
    board.start(run)
    return [o.name for o in board.settle(Outcome(run, name, status))[1:]]  # type: ignore[arg-type]


def ready(board: Board) -> list[str]:
    return [node.name for node in board.ready()]


def search(**ends: str) -> dict:
    """A search of trials t1, t2 …, each with an evaluation, and what comes after the choice."""
    trials = {name: toy(i, end=end) for i, (name, end) in enumerate(ends.items(), start=1)}
    scores = {f"e{name}": toy(10 + i, left=name) for i, name in enumerate(ends)}
    chosen = toy(100, any=[*trials, *scores])
    return {**trials, **scores, "select": chosen, "after": toy(1000, left="select")}


def test_a_tolerant_role_waits_until_every_stage_behind_it_is_settled(lab: Lab) -> None:
    plan = lab.plan({"a": toy(1), "b": toy(2), "select": toy(3, any=["a", "b"])})
    board = Board(plan)
    assert sorted(ready(board)) == ["a", "b"]
    assert settle(board, plan, "a", "done") == []
    assert ready(board) == ["b"]  # one is done, but the other may still be
    assert settle(board, plan, "b", "failed") == []
    assert ready(board) == ["select"]


def test_it_is_blocked_when_every_stage_behind_it_failed(lab: Lab) -> None:
    plan = lab.plan(search(t1="well", t2="well"))
    board = Board(plan)
    assert settle(board, plan, "t1", "failed") == ["et1"]
    assert settle(board, plan, "t2", "failed") == ["et2", "select", "after"]
    assert board.finished
    assert "t2" in board.outcomes[named(plan)["after"]].reason


def test_a_trial_that_is_done_saves_it_whatever_failed_before(lab: Lab) -> None:
    plan = lab.plan(search(t1="well", t2="well"))
    board = Board(plan)
    assert settle(board, plan, "t1", "failed") == ["et1"]
    assert settle(board, plan, "t2", "done") == []
    assert settle(board, plan, "et2", "done") == []
    assert ready(board) == ["select"]


def test_a_stage_with_a_strict_and_a_tolerant_input_needs_both(lab: Lab) -> None:
    stages = {
        "base": toy(1),
        "a": toy(2),
        "b": toy(3),
        "both": toy(4, left="base", any=["a", "b"]),
        "same": toy(5, left="a", any=["a", "b"]),
    }
    plan = lab.plan(stages)
    board = Board(plan)
    settle(board, plan, "b", "done")
    assert settle(board, plan, "a", "failed") == ["same"]  # strict in one role is strict
    assert settle(board, plan, "base", "failed") == ["both"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_study_with_a_trial_that_diverged_is_complete(lab: Lab, kind: str) -> None:
    stages = search(t1="well", t2="divergence")
    plan = lab.plan(stages)
    status = {"t1": "done", "t2": "failed", "et1": "done", "et2": "blocked"}
    assert lab.execute(plan, kind) == {**status, "select": "done", "after": "done"}
    # t1 = 1, its evaluation 10 + 1, the choice 100 + 1 + 11, and 1000 + 112 after it
    assert lab.total(plan, "after") == 1112
    record = lab.store.run(*named(plan)["t2"].split("-")).record
    assert (record["error_kind"], record["error"]) == ("diverged", "the loss is not finite.")
    assert _exit_code(lab.settled, plan) == 0

    again = lab.plan(stages)
    assert again.pending() == []
    assert again.counted() == {named(plan)["t2"], named(plan)["et2"]}
    counted_ones = {"t2": "counted", "et2": "counted"}
    cached = dict.fromkeys(("t1", "et1", "select", "after"), "cached")
    assert lab.execute(again, kind) == {**cached, **counted_ones}
    assert "nothing to do" in plan_table(again)
    assert "counted" in plan_table(again)
    assert len(json.loads(json.dumps(again.to_json()))["stages"]) == 6


@pytest.mark.slow
def test_a_trial_that_failed_otherwise_is_something_to_mend(lab: Lab) -> None:
    plan = lab.plan(search(t1="well", t2="bug"))
    lab.execute(plan, "inprocess")
    record = lab.store.run(*named(plan)["t2"].split("-")).record
    assert record["error_kind"] == "failed"
    assert _exit_code(lab.settled, plan) == 1


@pytest.mark.slow
def test_divergence_that_nobody_counts_is_a_failure(lab: Lab) -> None:
    plan = lab.plan({"a": toy(1, end="divergence"), "b": toy(2, left="a")})
    lab.execute(plan, "inprocess")
    assert _exit_code(lab.settled, plan) == 1


@pytest.mark.slow
def test_a_refusal_is_told_from_a_failure(lab: Lab) -> None:
    plan = lab.plan({"a": toy(1, end="mistake"), "b": toy(2, end="trouble")})
    lab.execute(plan, "inprocess")
    kinds = {run.record["name"]: run.record["error_kind"] for run in lab.store.runs()}
    assert kinds == {"a": "refused", "b": "failed"}


def test_what_a_stage_that_is_not_done_waits_for_is_not_counted(lab: Lab) -> None:
    plan = lab.plan({**search(t1="well", t2="well"), "other": toy(7, left="t2")})
    runs = named(plan)
    done = {runs["t1"], runs["et1"], runs["select"]}
    assert counted(plan.nodes, done) == {runs["et2"]}  # `other` needs t2, and nothing needs `after`
    assert counted(plan.nodes, set()) == set()
    assert counted(plan.nodes, {*done, runs["other"]}) == {runs["et2"]}  # strict: t2 is missing
