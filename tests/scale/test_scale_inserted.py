"""Soft prompts and inserted modules in two processes, also with ZeRO, compute what one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from equivalence_checks import TOLERANCE
from scale_cases import Alone, Case, differences, together
from stage_fixtures import make_chain
from stage_lab import Lab

CASES = (
    Case("prefix", "ppo"),
    Case("prefix", "sft", {}, {"zero": 3}),
    Case("prompt", "dpo", {}, {"zero": 3}),
    Case("ptuning", "dpo", {}, {"zero": 3}),
    Case("houlsby", "dpo", {}, {"zero": 2}),
    Case("ia3", "sft", {}, {"zero": 2}),
)

pytestmark = [pytest.mark.slow, pytest.mark.scale]


@pytest.mark.conformance(
    "equivalence",
    "prefix; prefix, prompt, P-tuning at ZeRO 3; Houlsby, (IA)³ at ZeRO 2",
    "two processes end in the weights of one, to 1e-6",
)
def test_two_processes_are_one_for_what_is_inserted(tmp_path: Path, record_property: Any) -> None:
    chains = {}
    for name in dict.fromkeys(case.chain for case in CASES):
        more = ["adapter.tokens=5"] if name in ("prefix", "prompt", "ptuning") else []
        if name != "houlsby":  # at 10 to 100 times the large rates of these tests rounding grows
            more.append("adapter.rate=1")
        named = (f"adapter={name}", *more, "reward@gold=matches", "gold.pattern=a")
        (tmp_path / name).mkdir()
        chains[name] = make_chain(Lab.make(tmp_path / name, *named))
    most, wrong = differences(
        Alone(chains), together(tmp_path / "two", chains, CASES, 2), TOLERANCE
    )
    assert wrong == []
    record_property("measured", f"largest difference {most:.0e}")
