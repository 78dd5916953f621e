"""Measured and estimated peaks of SFT by what is trained; see README.md.

python experiments/plan_accuracy/techniques.py [dora prefix …]   a table, each in its own process
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from accuracy_cases import Case
from estimate import LIBRARIES
from peaks import executed, forked, preload, rows_of, share_cache

from alignlab.capacity.device import allocation
from alignlab.capacity.memory import Setting, peak
from alignlab.compose import compose_all
from alignlab.launch.task import Place
from alignlab.plan import Plan
from alignlab.run import Store

HERE = Path(__file__).resolve().parent
NAMES = ("lora", "dora", "prefix", "houlsby", "qlora")
BUDGET = 4096
MB = 1e6


def main() -> None:
    """Measure every technique in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if asked.one:
        print(json.dumps(measured(asked.names[0], asked.dtype, asked.work.resolve())))
        return
    print("| `adapter=` | measured (MB) | estimated | |\n|---|---|---|---|")
    for name in asked.names:
        words = [sys.executable, "-W", "ignore", str(Path(__file__)), name, "--one"]
        words += ["--dtype", asked.dtype, "--work", str(asked.work)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found, estimated = json.loads(done.stdout.splitlines()[-1])
        error = f"{estimated / found - 1:+.0%}"
        print(f"| `{name}` | {found / MB:.0f} | {estimated / MB:.0f} | {error} |", flush=True)


def measured(name: str, dtype: str, work: Path) -> tuple[int, int]:
    """Peak bytes of the process and of the plan."""
    (with_bitsandbytes if name == "qlora" else preload)()
    case = Case("reviews_lm", name, dtype, BUDGET)
    jobs = case.jobs(rows_of(work))[:1]
    store = Store(work / f"{case.name}-sft")
    shutil.rmtree(store.root, ignore_errors=True)
    share_cache(work, store)
    config = compose_all(jobs)[0]
    plan = Plan.from_configs([config], store, jobs)
    node = next(node for node in plan.nodes.values() if node.kind == "sft")
    place = Place(
        store=str(store.root),
        study="plan-accuracy",
        engine=config["engine"],
        tracking=config["tracking"],
    )
    if forked(partial(executed, node, place)):
        sys.exit(f"{case.name} failed; its error stands above.")
    record = store.run(node.kind, node.key).record
    before = json.loads((store.root / "runs.json").read_text())[node.run]
    assert node.estimate.workload is not None
    estimated = peak(node.estimate.workload, Setting(BUDGET), allocation(True, dtype)).total
    return int(record["peak_memory_bytes"]) - max(0, before - LIBRARIES), estimated


def with_bitsandbytes() -> None:
    """Import what `preload` does, and bitsandbytes."""
    import accelerate
    import bitsandbytes
    import peft
    import torch
    import transformers

    assert all((accelerate, bitsandbytes, peft, torch, transformers))


if __name__ == "__main__":
    main()
