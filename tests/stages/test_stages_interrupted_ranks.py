"""A signal to one of two processes in the middle of a rollout that they share."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stage_lab import Chain, weight_hashes

from alignlab import typed
from alignlab.launch.outcomes import write_task
from alignlab.launch.task import Place, Task
from alignlab.run import Run

pytestmark = pytest.mark.scale

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def start(task: Task, draw: int) -> list[tuple[int, str]]:
    """Exit code and output of both processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    command = [sys.executable, str(HERE / "interrupted_program.py"), str(write_task(task))]
    both = [
        subprocess.Popen(
            [*command, str(draw)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    return [(process.returncode, text) for process, text in zip(both, said, strict=True)]


def task_of(chain: Chain, key: str) -> tuple[Task, Run]:
    """GRPO whose rollouts take a process 16 rows, 4 at a time."""
    stage, inputs = chain.online(
        "grpo", iterations=3, rollout_batch=8, group=4, sampling__batch=4, updates=2
    )
    config = {"_target_": f"{type(stage).__module__}.GRPO", **typed.to_mapping(stage)}
    place = Place(
        store=str(chain.lab.store.root),
        study="ranks",
        engine=typed.to_mapping(chain.lab.engine),
        tracking={"mode": "disabled", "project": "test", "entity": None},
    )
    parents = {role: run.name for role, run in inputs.items()}
    task = Task(name="grpo", kind="grpo", key=key, config=config, parents=parents, place=place)
    return task, chain.lab.store.run("grpo", key)


def moment(word: str, text: str) -> float:
    found: Any = re.search(rf"{word} at ([\d.]+)", text)
    return float(found[1])


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "GRPO on two processes",
    "a signal to one of them in the middle of a rollout, both stop and go on: bit for bit",
)
def test_both_leave_the_rollout_and_go_on_in_the_same_bits(
    chain: Chain, record_property: Any
) -> None:
    task, whole = task_of(chain, "ranks1")
    straight = start(task, 0)
    assert [code for code, _ in straight] == [0, 0], straight
    draws = [int(re.findall(r"after (\d+) draws", text)[0]) for _, text in straight]

    task, run = task_of(chain, "ranks2")
    stop = draws[1] // 3 + 6  # in the second of three rollouts
    stopped = start(task, stop)
    assert [code for code, _ in stopped] == [85, 85], stopped
    asked = moment("asked", stopped[1][1])
    seconds = [moment("left", text) - asked for _, text in stopped]
    assert max(seconds) < 30, seconds  # of several seconds that the other needs to hear of it
    record_property("measured", f"{max(seconds):.1f} s from the signal to the end of the last")
    assert "after step 2 of 6" in json.dumps(stopped)
    assert {p.name for p in run.state_dir.iterdir()} == {
        "step-00000002",
        "rollout-0.pt",
        "rollout-1.pt",
    }
    again = start(task, 0)
    assert [code for code, _ in again] == [0, 0], again
    first, second = (
        [int(re.findall(r"after (\d+) draws", text)[0]) for _, text in part]
        for part in (stopped, again)
    )
    assert [a + b for a, b in zip(first, second, strict=True)] == draws  # no token drawn twice
    assert weight_hashes(run) == weight_hashes(whole)
