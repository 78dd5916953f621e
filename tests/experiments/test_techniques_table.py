"""The table of fine-tuning techniques: what is shown of a row, and gold at equal KL by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).resolve().parents[2] / "experiments" / "techniques" / "run.py"


@pytest.fixture(scope="module")
def techniques() -> ModuleType:
    spec = importlib.util.spec_from_file_location("techniques_run", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def score(kl: float, gold: float) -> dict[str, float]:
    return {"kl": kl, "gold": gold, "reward_accuracy": 0.5}


def test_gold_at_equal_kl_by_hand(techniques: ModuleType) -> None:
    tried = [score(16, 0.9), score(1, 0.2), score(4, 0.4)]  # √KL 4, 1, 2; any order
    assert techniques.gold_at(2.25, tried) == pytest.approx(0.3)  # half way between 1 and 2
    assert techniques.gold_at(9.0, tried) == pytest.approx(0.65)  # half way between 2 and 4
    assert techniques.gold_at(4.0, tried) == pytest.approx(0.4)
    assert techniques.gold_at(17.0, tried) is None  # beyond what was tried
    assert techniques.gold_at(0.5, tried) is None
    assert techniques.gold_at(1.0, []) is None
    assert techniques.gold_at(0.0, [score(-0.01, 0.1), score(1, 0.2)]) == pytest.approx(0.1)


def test_rates_are_chosen_within_the_budget(techniques: ModuleType) -> None:
    def answer(kl: float, gold: float, accuracy: float) -> dict[str, dict[str, dict[str, float]]]:
        found = {"validation_accuracy": accuracy}
        return {"reward": {"summary": found}, "evaluate": {"summary": {"gold": gold, "kl": kl}}}

    worked = {1e-4: answer(2, 0.3, 0.55), 3e-4: answer(9, 0.5, 0.6), 1e-3: answer(30, 0.9, 0.58)}
    assert techniques.chosen(worked) == {"reward": 3e-4, "preference": 3e-4}
    drifted = {1e-4: answer(12, 0.3, 0.55), 1e-3: answer(30, 0.9, 0.58)}
    assert techniques.chosen(drifted) == {"reward": 1e-3, "preference": 1e-4}


def test_a_row_shows_what_was_measured(techniques: ModuleType) -> None:
    row = {
        "technique": "lora",
        "trained": 1234567,
        "share": 0.234,
        "gold": [0.25, 0.35],
        "tried": {"0.001": score(4, 0.4), "0.003": score(6.25, 0.6)},
        "peak_mib": 1234.5,
        "tokens_per_second": 9876.5,
        "rates": {"reward": 0.003, "preference": 0.001},
    }
    *_, shown, refused = techniques.table([row, {"technique": "x", "refused": "why"}]).splitlines()
    cells = [cell.strip() for cell in shown.strip("|").split("|")]
    between = 0.4 + 0.2 * (5**0.5 - 2) / 0.5
    assert cells[:7] == ["lora", "1,234,567", "23 %", "–", "–", "0.30 (0.25–0.35)", "–"]
    assert cells[7:] == [f"{between:.2f}", "1234", "9,876", "0.003, 0.001"]
    assert refused.startswith("| x | not measured: why |")
    assert refused.count("|") == shown.count("|")
    assert techniques.percent(0.000068) == "0.0068 %"
    assert techniques.percent(1.0) == "100 %"
