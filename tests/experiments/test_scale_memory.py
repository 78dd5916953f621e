"""The recorded memory of ZeRO's stages keeps its form and arithmetic; one row is measured again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.scale

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "scale_memory"


def check(results: dict[str, Any]) -> None:
    """Elements follow the table of the README, and no tensor is larger than what it counts."""
    rows = results["rows"]
    keys = [(row["model"], row["training"], row["allocator"], row["zero"]) for row in rows]
    assert len(keys) == len(set(keys)) > 0
    for row in rows:
        total, trained, of = row["params_total"], row["params_trained"], row["processes"]
        zero, held = row["zero"], row["elements"]
        close = {"rel": 0.03, "abs": 2_000}  # shares are filled up, and small vectors stay whole
        assert held["parameters"] == pytest.approx(total / (of if zero == 3 else 1), **close)
        assert held["gradients"] == pytest.approx(trained / (of if zero >= 2 else 1), **close)
        assert held["optimizer"] == pytest.approx(2 * trained / (of if zero else 1), **close)
        assert held["master_weights"] == pytest.approx(trained / of if zero else 0, **close)
        states = held["parameters"] + held["optimizer"] + held["master_weights"]
        assert row["tensor_bytes"] > 0.97 * 4 * states
        assert row["peak_in_steps"] > row["tensor_bytes"]


def test_recorded_memory_follows_the_arithmetic() -> None:
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    check(results)
    assert {row["zero"] for row in results["rows"]} == {0, 1, 2, 3}
    assert {row["training"] for row in results["rows"]} == {"full", "lora"}


@pytest.mark.slow
def test_memory_is_measured_again(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "run.py"), "--models", "reviews_lm", "--zero", "3"]
    command += ["--training", "lora", "--scratch", str(tmp_path / "s"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    check(json.loads((tmp_path / "results.json").read_text(encoding="utf-8")))
