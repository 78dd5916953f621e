"""The number of processes changes speed, never what is computed or counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from equivalence_checks import TOLERANCE
from scale_cases import UNEVEN, Alone, Case, differences, together
from stage_lab import Chain

SHARED = (
    Case("full", "sft", {"batch": {"tokens": 150}}, {"zero": 1}),
    Case("lora", "kto", {"batch": {"tokens": 260}}, {"zero": 2}),
    Case("full", "dpo", {"batch": 1}, {"zero": 3}),
    Case("full", "ppo", {"rollout_batch": 7}, {"zero": 3}),
)

pytestmark = [pytest.mark.slow, pytest.mark.scale]


@pytest.mark.conformance(
    "equivalence",
    "SFT, reward, DPO, KTO, PPO, GRPO",
    "one, two and three processes with unlike shares, and three at ZeRO 1, 2 and 3, end in the same"
    " weights, to 1e-6, and count the same prompts, completions, tokens and updates",
)
def test_one_two_and_three_processes_are_one(
    chain: Chain, lora_chain: Chain, tmp_path: Path, record_property: Any
) -> None:
    chains = {"full": chain, "lora": lora_chain}
    alone = Alone(chains)
    of_three = [*UNEVEN, *SHARED]
    found = [
        differences(alone, together(tmp_path / str(n), chains, cases, n), TOLERANCE)
        for n, cases in ((2, UNEVEN), (3, of_three))
    ]
    assert [line for _, wrong in found for line in wrong] == []
    record_property("measured", f"largest difference {max(most for most, _ in found):.0e}")
