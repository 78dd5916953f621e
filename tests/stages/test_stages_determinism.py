"""The same configuration and seed give the same bits: again, in another store and process."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equivalence_cases import METHODS, method, train
from stage_fixtures import make_chain
from stage_lab import Chain, Lab
from two_processes import described, start

from alignlab.run import Run, Store

pytestmark = pytest.mark.slow

STAGES = ("pretrain", *METHODS, "annotate", "evaluate")
WITH_ADAPTERS = ("sft", "reward", "dpo", "kto", "ppo", "grpo", "annotate", "evaluate")
CLOCKS = ("time", "tokens_per_second")


def content(run: Run) -> dict[str, Any]:
    """All that a run holds but times: files by their bytes."""
    apart = {"DONE", "record.json", "metrics.jsonl"}
    if run.kind == "pretrain":
        apart.add("view.json")  # names the base model, which is a folder of this very run
    files = {
        path.relative_to(run.path).as_posix(): path.read_bytes()
        for path in sorted(run.path.rglob("*"))
        if path.is_file() and path.name not in apart
    }
    lines = [{k: v for k, v in row.items() if k not in CLOCKS} for row in run.metrics()]
    return {**files, "metrics.jsonl": lines, "record.json": run.record}


def elsewhere(lab: Lab, folder: Path) -> Chain:
    """The lab's configurations on a store of their own, with a chain made there."""
    return make_chain(Lab(Store(folder), lab.configs, lab.engine))


@pytest.mark.long
@pytest.mark.conformance(
    "determinism",
    "pretraining, SFT, annotation, reward model, every objective, PPO, GRPO and relatives, "
    "evaluation",
    "the same configuration and seed give the same files bit for bit, in another store and process",
)
def test_every_stage_again_in_another_store_and_process(
    chain: Chain, lora_chain: Chain, tmp_path: Path
) -> None:
    """The other process hashes strings by another seed, and does the stages in another order."""
    there = {
        "full": elsewhere(chain.lab, tmp_path / "full"),
        "lora": elsewhere(lora_chain.lab, tmp_path / "lora"),
    }
    here = {"full": chain, "lora": lora_chain}
    for name, of in here.items():
        # Reference log-probs that another token budget left here would be others in the last bit.
        shutil.rmtree(of.lab.store.cache / "reference", ignore_errors=True)
        for mine, theirs in zip(runs_of(of), runs_of(there[name]), strict=True):
            assert content(mine) == content(theirs), mine.name
    cases = [
        *({"chain": "full", "method": name} for name in STAGES),
        *({"chain": "lora", "method": name} for name in WITH_ADAPTERS),
    ]
    for number, case in enumerate(cases):
        case["key"] = f"again{number:03d}"
    plan = {"chains": {name: described(of) for name, of in there.items()}, "token_budget": 4096}
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    start(tmp_path, {**plan, "cases": cases[::-1]}, processes=1, PYTHONHASHSEED=seed)
    for case in cases:
        of, name = here[case["chain"]], case["method"]
        stage, inputs = method(of, name)
        perturb_global_state(case["key"])
        mine = of.lab.run(stage, inputs, of.lab.store.run(stage.kind, case["key"]))
        theirs = there[case["chain"]].lab.store.run(stage.kind, case["key"])
        assert theirs.verify() == []
        assert content(mine) == content(theirs), case


def runs_of(chain: Chain) -> tuple[Run, ...]:
    return (chain.sft, chain.annotations, chain.reward)


def perturb_global_state(text: str) -> None:
    """What ran before must not matter."""
    torch.manual_seed(len(text) + 12345)
    np.random.seed(len(text) + 7)  # noqa: NPY002
    random.seed(text)


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "grpo"])
def test_another_seed_gives_other_weights(chain: Chain, name: str) -> None:
    """So the comparisons above can fail."""
    stage, inputs = method(chain, name)
    one = train(chain.lab, stage, inputs)
    other = train(chain.lab, replace(stage, seed=stage.seed + 1), inputs)
    assert one.differs(other) > 1e-3


@pytest.mark.conformance(
    "determinism",
    "SFT, reward model, DPO, PPO",
    "one thread or two: weights to 1e-6",
)
@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo"])
def test_the_number_of_threads_changes_only_rounding(
    chain: Chain, name: str, record_property: Any
) -> None:
    stage, inputs = method(chain, name)
    one = train(chain.lab, stage, inputs)
    try:
        two = train(chain.lab, stage, inputs, threads=2)
        assert torch.get_num_threads() == 2
    finally:
        chain.lab.engine.workers()  # one thread again
    assert torch.get_num_threads() == 1
    record_property("measured", f"largest difference {one.differs(two):.0e}")
    assert one.differs(two) < 1e-6


@pytest.mark.conformance(
    "determinism",
    "SFT, DPO, PPO, GRPO",
    "engine.deterministic=true, which refuses kernels that are not, gives the same bits",
)
@pytest.mark.parametrize("name", ["sft", "dpo", "ppo", "grpo"])
def test_no_kernel_in_use_is_nondeterministic(chain: Chain, name: str) -> None:
    stage, inputs = method(chain, name)
    one = train(chain.lab, stage, inputs)
    try:
        strict = train(chain.lab, stage, inputs, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        chain.lab.engine.workers()
    assert one.differs(strict) == 0
