"""Measured peaks beside those that ``alignlab plan`` states; see README.md.

python experiments/plan_accuracy/run.py                measures what is missing, then compares
python experiments/plan_accuracy/run.py --compare      compares what has been measured
python experiments/plan_accuracy/run.py --only lora    measures cases whose names have a word
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MEASURED, RESULTS, README = HERE / "measured.json", HERE / "results.json", HERE / "README.md"
BEGIN, END = "<!-- measured and estimated: written by run.py -->", "<!-- end -->"
MB = 1e6


def main() -> None:
    """Measure, estimate, and write both down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder of the runs")
    parser.add_argument("--only", default="", help="a word in the names of the cases to measure")
    parser.add_argument("--compare", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not asked.compare:
        measure_all(asked.work.resolve(), asked.only)
    compare(asked.work.resolve())


def measure_all(work: Path, only: str) -> None:
    """Measure cases one after another, and keep each as soon as it is there."""
    from accuracy_cases import cases
    from peaks import measure, preload

    preload()
    for case in cases():
        known = read(MEASURED)
        if only in case.name and len(known.get(case.name, {})) < 7:
            known[case.name] = measure(case, work)
            MEASURED.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def compare(work: Path) -> None:
    """Estimate what was measured; write results.json and the table of the README."""
    from accuracy_cases import cases
    from estimate import estimate, peak_of

    measured, rows = read(MEASURED), []
    for case in cases():
        if case.name not in measured:
            continue
        estimated = estimate(case, work)
        for kind, found in measured[case.name].items():
            parts = estimated[kind]
            peak = peak_of(found)
            error = parts["total"] / peak - 1
            rows.append({"case": case.name, "stage": kind, **found, "peak": peak,
                         "estimate": parts, "error": round(error, 4)})  # fmt: skip
    errors = [abs(row["error"]) for row in rows]
    summary = {
        "stages": len(rows),
        "worst": max(errors),
        "median": statistics.median(errors),
        "within_15_percent": sum(e <= 0.15 for e in errors) / len(errors),
    }
    RESULTS.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")
    text = README.read_text(encoding="utf-8")
    head, tail = text[: text.index(BEGIN)], text[text.index(END) :]
    README.write_text(f"{head}{BEGIN}\n{table(rows, summary)}\n{tail}", encoding="utf-8")
    print(table(rows, summary))


def table(rows: list[dict[str, Any]], summary: dict[str, float]) -> str:
    """One row a case, one column a stage: measured / estimated MB and the error."""
    kinds = list(dict.fromkeys(row["stage"] for row in rows))
    lines = [
        f"{summary['stages']} stages; worst error {summary['worst']:.1%}, median "
        f"{summary['median']:.1%}, within 15 %: {summary['within_15_percent']:.0%}.",
        "",
        "| measured → estimated (MB) | " + " | ".join(kinds) + " |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        found = {row["stage"]: row for row in rows if row["case"] == case}
        lines.append(f"| {case} | " + " | ".join(cell(found.get(kind)) for kind in kinds) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any] | None) -> str:
    """One stage of one case."""
    if row is None:
        return ""
    return f"{row['peak'] / MB:.0f} → {row['estimate']['total'] / MB:.0f} ({row['error']:+.0%})"


def read(file: Path) -> dict[str, Any]:
    """A JSON object, empty before there is a file."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


if __name__ == "__main__":
    main()
