"""The comparison of data preparation runs end to end on a few rows, and the ids agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "data_speed"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def check(results: dict) -> None:
    """No ratio without equal ids, and every figure that the README speaks of."""
    assert results["machine"]["cores"] > 0
    keys = [(row["rows"], row["processes"]) for row in results["rows"]]
    assert len(keys) == len(set(keys)) > 0
    for row in results["rows"]:
        parity = row["parity"]
        assert parity["passed"]
        assert parity["rows_compared"] > 0
        assert parity["rows_that_differ"] == []
        assert row["ratio"] == pytest.approx(row["alignlab"] / row["trl"])
        for side in ("alignlab", "trl"):
            assert row["peak_memory_mib"][side][0]["anonymous"] > 0
        assert 0 < row["packing"]["efficiency"] <= 1


def test_recorded_results_keep_their_form():
    check(json.loads((FOLDER / "results.json").read_text(encoding="utf-8")))


@pytest.mark.long
@pytest.mark.skipif(
    not (SHARED / "hh-rlhf").is_dir(), reason="needs hh-rlhf/*.jsonl.gz in ../shared/data"
)
def test_both_sides_prepare_the_same_rows(tmp_path):
    command = [sys.executable, str(FOLDER / "run.py"), "--data-dir", str(SHARED)]
    command += ["--rows", "60", "--sample", "60", "--processes", "1", "--tokenizer", "random:tiny"]
    command += ["--scratch", str(tmp_path / "scratch"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    check(results)
    [row] = results["rows"]
    assert row["parity"]["rows_compared"] == 60
    assert row["runs"]["alignlab"][0]["rows"] == row["runs"]["trl"][0]["rows"] == 60
