"""AdaLoRA's ranks in the weights that are kept: the last ones, the best ones, moving averages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from stage_lab import Lab, weights

STOPPING = {"metric": "nll", "mode": "min", "patience": 4, "min_delta": 0.0}
BUDGET = 2 * 14  # ranks that remain of 6 each in 14 matrices
SETTINGS = ("rank=2", "initial_rank=6", "every=1", "warmup=0.1", "final=0.5")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    named = ["adapter=adalora", *(f"adapter.{setting}" for setting in SETTINGS)]
    return Lab.make(
        tmp_path_factory.mktemp("adalora"), *named, "reward@gold=matches", "gold.pattern=a"
    )


@pytest.mark.slow
@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("stopping", [None, STOPPING], ids=["last", "best"])
def test_what_is_kept_has_the_ranks_that_were_dealt_out(
    averaged: bool, stopping: Any, lab: Lab
) -> None:
    """An average remembers values of ranks that were set to zero since, and must lose them."""
    changes = {"early_stopping": stopping, "optimizer__ema": 0.9 if averaged else None}
    stage = lab.stage("sft", steps=10, evaluate_every=5 if stopping else 0, **changes)
    run = lab.run(stage, {})
    kept = json.loads((run.model_dir / "ranks.json").read_text(encoding="utf-8"))
    values = [value for name, value in weights(run).items() if "lora_E" in name]
    assert len(kept) == len(values) == 14
    assert sum(kept.values()) == sum(int((v != 0).sum()) for v in values) == BUDGET
    assert len(set(kept.values())) > 1  # dealt out, and not the same everywhere
    assert run.record.get("best_step") in ((5, 10) if stopping else (None,))
