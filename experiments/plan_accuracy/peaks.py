"""Measured peaks: every stage in a process of its own, forked from one that has the libraries."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accuracy_cases import Case

from alignlab.compose import compose, compose_all
from alignlab.launch.execute import execute, peak_memory
from alignlab.launch.task import Place, Task
from alignlab.plan import Node, Plan
from alignlab.run import Store
from alignlab.spec import build, parse


def preload() -> None:
    """Import what stages import, so that a fork has it; nothing is computed here.

    Without bitsandbytes, which peft imports where it is installed: 45 MB that no stage here uses.
    """
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # to importlib: not installed
    import accelerate
    import peft
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    assert all((accelerate, peft, torch, transformers, AutoModelForCausalLM))


def measure(case: Case, work: Path) -> dict[str, dict[str, object]]:
    """Run what is missing of a case, the first stage of every kind; return what each took."""
    jobs = case.jobs(rows_of(work))
    store = Store(work / case.name)
    share_cache(work, store)
    configs = compose_all(jobs)
    plan = Plan.from_configs(configs, store, jobs)
    place = Place(
        store=str(store.root),
        study="plan-accuracy",
        engine=configs[0]["engine"],
        tracking=configs[0]["tracking"],
    )
    first = {node.kind: node.run for node in reversed(plan.nodes.values())}
    wanted = [node for node in plan.nodes.values() if first[node.kind] == node.run]
    warm_up(configs[0], store)
    for node in wanted:
        if node.cached:
            continue
        began = time.monotonic()
        code = forked(partial(executed, node, place))
        seconds = time.monotonic() - began
        print(f"{case.name} {node.name} ({node.kind}): exit {code}, {seconds:.0f} s", flush=True)
        if code:
            sys.exit(f"{case.name} {node.name} failed; its error stands above.")
    found = {}
    known = json.loads((store.root / "runs.json").read_text())
    for node in wanted:
        record = store.run(node.kind, node.key).record
        found[node.kind] = {
            "peak": int(record["peak_memory_bytes"]),
            "before": known[node.run],
            "seconds": record["seconds"],
        }
    return found


def rows_of(work: Path) -> Path:
    """A small file of demonstrations: what is measured is the model, not a data set."""
    file = work / "rows.jsonl"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        forked(partial(write_rows, file))  # reading all reviews would make this process larger
    return file


def write_rows(file: Path) -> int:
    """Write 400 prompts with long answers; return 0."""
    found = build(parse(compose(["data=reviews"])["data"], "data")).load("sft")[:400]
    lines = [
        {"prompt": one.prompt, "completion": f"{one.completions[0]} {more.completions[0]}"}
        for one, more in zip(found, reversed(found), strict=True)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return 0


def share_cache(work: Path, store: Store) -> None:
    """One cache of models and classifiers for all cases."""
    shared = work / "cache"
    shared.mkdir(parents=True, exist_ok=True)
    store.root.mkdir(parents=True, exist_ok=True)
    if not store.cache.exists():
        store.cache.symlink_to(shared)


def warm_up(config: Mapping[str, Any], store: Store) -> None:
    """Let the rewards make what they keep: a classifier is trained at its first use, and once."""

    def score() -> int:
        os.environ["ALIGNLAB_RUNS"] = str(store.root)
        for name in ("gold", "audit"):
            build(parse(config[name], name)).score(["A film"], [" to see."], [{}])
        return 0

    if forked(score):
        sys.exit("the rewards cannot score; the error stands above.")


def executed(node: Node, place: Place) -> int:
    """Execute one stage in this process; return 0 if it is done."""
    before = peak_memory()
    outcome = execute(Task.of(node, place), lambda text: print(text, file=sys.stderr))
    note(Path(place.store) / "runs.json", node.run, before)
    return 0 if outcome.status in ("done", "cached") else 1


def forked(work: Callable[[], int]) -> int:
    """Do ``work`` in a fork of this process; return its exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work()
        except BaseException as error:  # the parent shall not go on in two processes
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def note(file: Path, run: str, before: int) -> None:
    """Keep the bytes that a process had before its stage."""
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, run: before}, indent=1))
