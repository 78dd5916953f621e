"""Images in several processes: the weights of one, and what is frozen stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import stage_lab
from equivalence_cases import method
from scale_cases import WHOLE, largest_apart
from test_vision_stages import Lab
from two_processes import described, start
from vision_lab import make_llava

# Stage and changes by name; with all weights the tower and its connector are trained too.
CASES: dict[str, list[tuple[str, int, dict[str, Any]]]] = {
    "lora": [("sft", 0, {"batch": 3}), ("dpo", 2, {"batch": 3})],
    "full": [("sft", 2, {"batch": 3}), ("dpo", 0, {"batch": 3})],
}


def chain_of(folder: Path, model: Path, adapter: str) -> stage_lab.Chain:
    """SFT and annotation on rows with and without pictures, as the lab of texts has them."""
    sees = ["backbone.vision=all"] if adapter == "full" else []
    made = Lab.make(folder, model, f"adapter={adapter}", *sees)
    configs = {**made.stages, "dpo": made.stages["preference"]}
    lab = stage_lab.Lab(made.store, configs, made.engine)
    sft = lab.run(lab.stage("sft", steps=2), {})
    annotated = lab.run(lab.stage("annotate"), {"policy": sft})
    return stage_lab.Chain(lab, sft, annotated, sft)


@pytest.mark.scale
@pytest.mark.conformance(
    "equivalence",
    "vision-language: SFT and DPO with LoRA and all weights, without ZeRO and at ZeRO 2",
    "two processes end in the weights of one, to 1e-6",
)
def test_two_processes_that_see_are_one(tmp_path: Path, record_property: Any) -> None:
    llava = make_llava(tmp_path / "llava")
    chains, cases, runs = {}, [], []
    for adapter, stages in CASES.items():
        (tmp_path / adapter).mkdir()
        chain = chain_of(tmp_path / adapter, llava, adapter)
        chains[adapter] = described(chain)
        for kind, zero, changes in stages:
            stage, inputs = method(chain, kind, **changes, steps=3)
            alone = chain.lab.run(stage, inputs, token_budget=WHOLE)
            key = f"{kind}two"
            runs.append((f"{adapter} {kind}", alone, chain.lab.store.run(stage.kind, key)))
            stated = {"chain": adapter, "method": kind, "key": key, "engine": {"zero": zero}}
            cases.append({**stated, "changes": {**changes, "steps": 3}})
    start(tmp_path / "two", {"chains": chains, "cases": cases, "token_budget": 120}, 2)
    record_property("measured", f"largest difference {largest_apart(runs):.0e}")
