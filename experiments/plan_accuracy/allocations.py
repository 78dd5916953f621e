"""Where the counted bytes end and the allocator begins: one forward and backward pass of a reward.

python experiments/plan_accuracy/allocations.py [--work DIR]

For each model, adapter and number format: bytes that the plan counts for activations, the most that
torch has allocated at a time (its profiler), and what the process grew by. The last again with
``MALLOC_MMAP_THRESHOLD_=1048576``, by which glibc hands every large block back at once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from accuracy_cases import Case
from peaks import rows_of

from alignlab.capacity.activations import Arithmetic, layer_bytes
from alignlab.compose import compose_all
from alignlab.launch.execute import peak_memory
from alignlab.plan import Plan
from alignlab.run import Store
from alignlab.stages.estimate import model_of

HERE = Path(__file__).resolve().parent
SIZES = {"reviews_lm": (56, 72), "smollm2": (10, 48)}  # rows, tokens of a row
MB = 1e6


def main() -> None:
    """Measure every combination in processes of their own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--one", nargs=3, help="a model, an adapter and a number format")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measured(Case(*asked.one, 0), asked.work)))
        return
    print("| MB | counted | torch | process | with blocks handed back |\n|---|---|---|---|---|")
    for one in itertools.product(SIZES, ("full", "lora"), ("float32", "bfloat16")):
        plain, back = (ask(one, asked.work, more) for more in ({}, HANDED_BACK))
        cells = (plain["counted"], plain["torch"], plain["process"], back["process"])
        print(f"| {' '.join(one)} | " + " | ".join(f"{x / MB:.0f}" for x in cells) + " |")


HANDED_BACK = {"MALLOC_MMAP_THRESHOLD_": "1048576"}


def ask(one: tuple[str, ...], work: Path, more: dict[str, str]) -> dict[str, float]:
    """Numbers of one combination from a process of its own, with ``more`` in its environment."""
    words = [sys.executable, "-W", "ignore", str(Path(__file__)), "--work", str(work), "--one"]
    done = subprocess.run(
        [*words, *one], env={**os.environ, **more}, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(case: Case, work: Path) -> dict[str, float]:
    """Bytes counted and taken by a second pass of the same batch."""
    import numpy as np

    from alignlab.data.group import TokenGroup
    from alignlab.data.pack import flatten
    from alignlab.models.backbone import Backbone

    jobs = case.jobs(rows_of(work))
    plan = Plan.from_configs(compose_all(jobs), Store(work / case.name), jobs)
    [stage] = {
        node.run: node.stage for node in plan.nodes.values() if node.kind == "reward"
    }.values()
    config: Any = stage.backbone  # type: ignore[attr-defined]
    backbone = Backbone.load(config, work / "cache")
    backbone.add("reward", source=None, trainable=True, head=True)
    backbone.train_mode(True)
    rows, length = SIZES[case.backbone]
    tokens = np.arange(5, 5 + length)
    part = length // 3
    group = TokenGroup(prompt=tokens[:part], completions=(tokens[part:],), row=0, id="", verdict=())
    batch = flatten([group] * rows)

    def step() -> None:
        with backbone.view("reward") as view:
            view.scores(batch).sum().backward()
        for parameter in backbone.trainable_parameters("reward").values():
            parameter.grad = None

    model = model_of(config, work / "cache")
    each = layer_bytes(model, Arithmetic(case.dtype == "bfloat16", True), length)
    before = peak_memory()
    step()
    step()
    grown = peak_memory() - before
    return {
        "counted": each * model.dimensions.layers * rows * length,
        "torch": allocated_by(step),
        "process": grown,
    }


def allocated_by(step: Any) -> int:
    """Most bytes that torch has allocated at a time in ``step``; before its gradients come."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = seen.profiler.kineto_results.events()
    back = min(e.start_ns() for e in events if e.name().startswith("autograd::engine"))
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    forward = itertools.accumulate(size for at, size in moves if at < back)
    return max(forward)


if __name__ == "__main__":
    main()
