"""Anchors in two processes, with and without ZeRO, against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from equivalence_checks import assert_lines_equal, model_difference
from scale_cases import WHOLE, Case
from stage_lab import Chain
from test_stages_anchor import anchor
from two_processes import described, start

from alignlab.run import Run

ANCHORS: dict[str, dict[str, Any]] = {
    "l2sp": {"weight": 3.0},
    "ewc": {"rows": 5},
    "distill": {},
    "distill_on_policy": {},
}


def cases(chain: Chain, zero: int) -> list[tuple[Case, dict[str, Any]]]:
    found = []
    for name, changes in ANCHORS.items():
        given = {"anchor": anchor(chain.lab, name, **changes)}
        found.append((Case("full", "dpo", {}, {"zero": zero}), given))
    return found


@pytest.mark.scale
@pytest.mark.conformance(
    "equivalence", "anchors", "two processes, with ZeRO 2 too, train as one does"
)
def test_two_processes_hold_the_policy_as_one_does(chain: Chain, tmp_path: Path) -> None:
    from equivalence_cases import method

    planned, runs = [], []
    for zero in (0, 2):
        for number, (case, given) in enumerate(cases(chain, zero)):
            stage, inputs = method(chain, case.method, **given)
            key = f"anchored{zero}{number}"
            stated = {"chain": "full", "method": case.method, "changes": given, "key": key}
            planned.append({**stated, "engine": {"zero": zero}})
            alone = (
                chain.lab.run(stage, inputs, token_budget=WHOLE) if not zero else runs[number][0]
            )
            runs.append((alone, chain.lab.store.run(stage.kind, key)))
    plan = {"chains": {"full": described(chain)}, "cases": planned, "token_budget": 90}
    start(tmp_path, plan, processes=2)
    for alone, together in runs:
        together = Run(together.path)
        assert together.done
        assert alone.metrics("train")[-1]["anchor"] > 1e-6
        assert model_difference(alone, together) < 2e-6
        assert_lines_equal(alone, together)
