"""Techniques in two processes, with ZeRO as far as they allow it, compute what one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from equivalence_checks import TOLERANCE
from scale_cases import Alone, Case, differences, together
from stage_fixtures import make_chain
from stage_lab import Lab

# AdaLoRA's penalty counts once and its ranks are dealt out alike; four-bit bases are not shared
# out; the others are sharded as far as is said to work.
CASES = (
    Case("adalora", "sft"),
    Case("qlora", "dpo"),
    Case("dora", "dpo", {}, {"zero": 2}),
    Case("pissa", "sft", {}, {"zero": 2}),
    Case("vera", "sft", {}, {"zero": 2}),
    Case("lora_plus", "dpo", {}, {"zero": 3}),
)

# At 16 times the rate of A, with the large rates of these tests, rounding grows to 4e-4 between one
# process and two that share nothing; at twice, weights agree to 1e-6 with ZeRO 3 too.
MORE = {"adalora": ["adapter.initial_rank=6"], "lora_plus": ["adapter.ratio=2"]}

pytestmark = [pytest.mark.slow, pytest.mark.scale]


@pytest.mark.conformance(
    "equivalence",
    "AdaLoRA, QLoRA; DoRA, PiSSA, VeRA at ZeRO 2; LoRA+ at ZeRO 3",
    "two processes end in the weights of one, to 1e-6",
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_are_one(case: Case, tmp_path: Path, record_property: Any) -> None:
    more = MORE.get(case.chain, [])
    named = (f"adapter={case.chain}", "adapter.rank=4", "adapter.dropout=0", *more)
    lab = Lab.make(tmp_path, *named, "reward@gold=matches", "gold.pattern=a")
    chains = {case.chain: make_chain(lab)}
    most, wrong = differences(
        Alone(chains), together(tmp_path / "two", chains, [case], 2), TOLERANCE
    )
    assert wrong == []
    record_property("measured", f"largest difference {most:.0e}")
