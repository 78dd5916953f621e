"""Sharded training is the same training: every method at ZeRO 1, 2 and 3, in two processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from equivalence_cases import PREFERENCE
from equivalence_checks import TOLERANCE
from scale_cases import UNEVEN, Alone, Case, differences, sharded, together
from stage_lab import Chain, objective

from alignlab.objectives.declaration import Declaration, declaration
from alignlab.spec import function, parse

pytestmark = [pytest.mark.slow, pytest.mark.scale]

CLAIM = "two processes at ZeRO 2 and 3, full and LoRA, end in the weights of one, to 1e-6"
EVERY = (
    "one of every form (what it takes, with and without a reference): two processes at ZeRO 3 with"
    " all parameters end in the weights of one, to 1e-6"
)
# The objectives differ in their arithmetic, which shards know nothing of: one of each kind stands
# for all. Stage 1 is stage 2 but for the gradients, which tests/engine compares.
OF_EACH_KIND = ("sft", "reward", "dpo", "kto", "ppo", "grpo")
MEASURED = {"zero": 3, "token_budget": "auto"}
SHARED_UNEVEN = UNEVEN[1::2]


@pytest.mark.conformance("equivalence", "SFT", CLAIM)
@pytest.mark.conformance("equivalence", "reward models, K completions and pairs", CLAIM)
@pytest.mark.conformance("equivalence", "every preference objective", EVERY)
@pytest.mark.conformance("equivalence", "DPO and KTO", CLAIM)
@pytest.mark.conformance("equivalence", "PPO", CLAIM)
@pytest.mark.conformance("equivalence", "GRPO", CLAIM)
def test_two_processes_at_every_stage_are_one(
    chain: Chain, lora_chain: Chain, tmp_path: Path, record_property: Any
) -> None:
    chains = {"full": chain, "lora": lora_chain}
    cases = [
        Case("full", "sft", {}, {"zero": 1}),
        *(case for case in sharded(2, OF_EACH_KIND) if case.chain == "full"),
        Case("lora", "ppo", {}, {"zero": 2}),
        *sharded(3, OF_EACH_KIND),
        *(Case("full", name, {}, {"zero": 3}) for name in (*forms(), "ppo_ptx")),
        *(replace(case, engine={"zero": 3}) for case in SHARED_UNEVEN),
        Case("full", "sft", {}, MEASURED),
        Case("lora", "ppo", {}, MEASURED),
    ]
    runs = together(tmp_path, chains, cases, 2)
    largest, wrong = differences(Alone(chains), runs, TOLERANCE)
    assert wrong == []
    record_property("measured", f"largest difference {largest:.0e}")
    for case, run in runs:
        if case.method == "sft" and case.engine in ({"zero": 1}, {"zero": 2}, {"zero": 3}):
            assert_shares(run.record, case.engine["zero"])


def forms() -> list[str]:
    """The first objective of every form that is not among the kinds anyway."""
    found: dict[Declaration, str] = {}
    for name in sorted(PREFERENCE, key=lambda name: name not in OF_EACH_KIND):
        found.setdefault(declaration(function(parse(objective(name), name))), name)
    return [name for name in found.values() if name not in OF_EACH_KIND]


def assert_shares(record: dict[str, Any], zero: int) -> None:
    """Of n trained of N weights: each of two processes holds what its stage says, in elements."""
    held, total, trained = record["sharding"], record["params_total"], record["params_trained"]
    close = {"rel": 0.03, "abs": 64}  # shares are filled up, and small vectors stay whole
    assert held["stage"] == zero
    assert held["processes"] == 2
    assert held["optimizer"] == pytest.approx(2 * trained / 2, **close)
    assert held["gradients"] == pytest.approx(trained / (1 if zero == 1 else 2), **close)
    assert held["parameters"] == pytest.approx(total / (2 if zero == 3 else 1), **close)
