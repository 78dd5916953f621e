"""What experiments/plan_accuracy measured is still within 15 % of what a plan states."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "plan_accuracy"
MEASURED = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))

# Stated too low, and named in the README: what is not explained yet.
OPEN = {("smollm2-full-bfloat16-512", kind) for kind in ("grpo", "evaluate")}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("work")
    row = {"prompt": "A film", "completion": " that one sees twice."}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    sys.path.insert(0, str(FOLDER))
    try:
        yield folder
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("accuracy_cases", "peaks", "estimate"):
            sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MEASURED))
def test_estimates_are_within_fifteen_percent_of_what_was_measured(name: str, work: Path) -> None:
    from accuracy_cases import cases
    from estimate import estimate

    [case] = [case for case in cases() if case.name == name]
    stated = estimate(case, work)
    for kind, found in MEASURED[name].items():
        if (name, kind) in OPEN:
            continue
        assert stated[kind]["total"] == pytest.approx(found["peak"], rel=0.15), kind


def test_results_are_those_of_the_measurements() -> None:
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    rows = {(row["case"], row["stage"]): row["peak"] for row in results["rows"]}
    measured = {
        (c, k): found["peak"] for c, kinds in MEASURED.items() for k, found in kinds.items()
    }
    assert rows == measured
    beyond = {(r["case"], r["stage"]) for r in results["rows"] if abs(r["error"]) > 0.15}
    assert beyond <= OPEN  # no other estimate may get worse unnoticed
