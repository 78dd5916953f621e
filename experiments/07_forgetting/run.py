"""What was forgotten for what was gained, of every method of the study. See README.md.

``python experiments/07_forgetting/run.py [--store DIR]`` reads the finished evaluations of
``experiment=forgetting`` and writes results.json and plane.png beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from plane import draw  # noqa: E402 (after the path)

from alignlab.run import Store  # noqa: E402

START = "evaluate"  # the stage that evaluates the model that all training starts from
MEASURES = {"forgotten": "reference_nll", "gained": "gold", "audit": "audit", "kl": "kl"}


def evaluations(store: Store, study: str) -> dict[int, dict[str, dict[str, float]]]:
    """Summaries of the study's finished evaluations, by seed and stage name."""
    found: dict[int, dict[str, dict[str, float]]] = defaultdict(dict)
    for run in store.runs():
        record = run.record
        if run.done and run.kind == "evaluate" and record.get("study") == study:
            found[int(record["seed"])][str(record["name"])] = dict(run.summary())
    return {seed: stages for seed, stages in sorted(found.items()) if START in stages}


def rows_of(seeds: Mapping[int, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """One row per method and strength: differences to the start, means over the seeds.

    Intervals are Student's t over the seeds, at 95 %; there is none for one seed.
    """
    names = [n for n in dict.fromkeys(n for s in seeds.values() for n in s) if n != START]
    rows = []
    for name in names:
        whole = [s for s in seeds.values() if name in s]
        family, _, strength = name.removeprefix("evaluate_").partition(",")
        row: dict[str, Any] = {"method": family, "strength": strength, "seeds": len(whole)}
        for measure, key in MEASURES.items():
            row[measure] = interval([s[name][key] - s[START][key] for s in whole])
        rows.append(row)
    return rows


def interval(values: Sequence[float]) -> list[float | None]:
    """Mean, and the ends of its interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return [round(mean, 4), None, None]
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return [round(x, 4) for x in (mean, mean - half, mean + half)]


def undominated(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Methods with a point than which no other forgets less and gains more, by their means."""
    points = [(r["forgotten"][0], r["gained"][0]) for r in rows]
    return [
        " ".join(filter(None, (row["method"], row["strength"])))
        for row, (x, y) in zip(rows, points, strict=True)
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as lines of a README's table."""

    def cell(values: Sequence[float | None]) -> str:
        mean, low, high = values
        return f"{mean:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")

    lines = ["| method | strength | forgotten, nats per token | gained, gold | audit | KL, nats |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        cells = [cell(row[name]) for name in MEASURES]
        lines.append(f"| {row['method']} | {row['strength'] or '–'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the runs, write numbers and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default=os.environ.get("ALIGNLAB_RUNS", "runs"))
    parser.add_argument("--study", default="forgetting")
    parser.add_argument("--to", type=Path, default=HERE, help="folder for the files")
    options = parser.parse_args()
    seeds = evaluations(Store(Path(options.store)), options.study)
    if not seeds:
        raise SystemExit(f"no finished evaluation of {options.study} in {options.store}")
    rows = rows_of(seeds)
    start = {key: [s[START][key] for s in seeds.values()] for key in MEASURES.values()}
    found = {"seeds": list(seeds), "start": start, "rows": rows, "undominated": undominated(rows)}
    text = json.dumps(found, indent=1)
    (options.to / "results.json").write_text(text + "\n", encoding="utf-8")
    draw(rows, options.to / "plane.png")
    print(table(rows))
    print("\nnot dominated:", ", ".join(found["undominated"]))


if __name__ == "__main__":
    main()
