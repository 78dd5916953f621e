"""The ZeRO stages that techniques say they train under, where no other test has them.

And what is drawn or smoothed in training: a row's noise is its own, whichever process has the row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scale_cases import BUDGET, WHOLE, largest_apart
from stage_lab import Lab
from two_processes import start

from alignlab import typed

STAGES = {
    "rslora": 3,
    "olora": 2,
    "last_layers": 3,
    "layernorm": 3,
    "head_only": 3,
    "pfeiffer": 2,
    "lora": 2,
    "full": 3,
}
NOISY = {"neftune_alpha": 15.0, "label_smoothing": 0.2}
CHANGES = {"lora": NOISY, "full": NOISY}  # of the SFT stage


@pytest.mark.scale
@pytest.mark.conformance(
    "equivalence",
    "rsLoRA, last layers, norms, head at ZeRO 3; OLoRA, Pfeiffer at ZeRO 2;"
    " noise on embeddings and smoothed labels with LoRA at ZeRO 2, all weights at ZeRO 3",
    "two processes end in the weights of one, to 1e-6",
)
def test_techniques_are_shared_out_as_they_say(tmp_path: Path, record_property: Any) -> None:
    chains, cases, runs = {}, [], []
    for name, zero in STAGES.items():
        rank = ["adapter.rank=4"] if name in ("rslora", "olora", "lora") else []
        changes = {"steps": 3, **CHANGES.get(name, {})}
        (tmp_path / name).mkdir()
        named = (f"adapter={name}", *rank, "reward@gold=matches", "gold.pattern=a")
        lab = Lab.make(tmp_path / name, *named)
        alone = lab.run(lab.stage("sft", batch=7, **changes), {}, token_budget=WHOLE)
        runs.append((name, alone, lab.store.run("sft", "two")))
        chains[name] = {
            "store": str(lab.store.root),
            "configs": lab.configs,
            "engine": typed.to_mapping(lab.engine),
            "runs": [str(alone.path)] * 3,  # of which this training reads nothing
        }
        stated = {"chain": name, "method": "sft", "key": "two", "engine": {"zero": zero}}
        cases.append({**stated, "changes": changes})
    plan = {"chains": chains, "cases": cases, "token_budget": BUDGET}
    start(tmp_path / "two", plan, 2, patience=900)
    record_property("measured", f"largest difference {largest_apart(runs):.0e}")
