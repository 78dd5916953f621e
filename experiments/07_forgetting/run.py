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

from equal_gain import curves, forgotten_at  # noqa: E402 (after the path)
from plane import MERGED, TRAINED, draw  # noqa: E402

from alignlab.run import Store  # noqa: E402

START = "evaluate"  # the stage that evaluates the model that all training starts from
FAMILIES = list(dict.fromkeys([*TRAINED, *MERGED]))
GAINS = (0.15, 0.25)  # gold, at which methods are compared
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
    return sorted(rows, key=place)


def place(row: Mapping[str, Any]) -> tuple[int, float]:
    """Methods as the figure has them, each from what it forgets least on."""
    known = FAMILIES.index(row["method"]) if row["method"] in FAMILIES else len(FAMILIES)
    return known, float(row["forgotten"][0])


def at_equal_gain(
    seeds: Mapping[int, Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, list[float | None]]]:
    """What each method forgets at each of `GAINS`, with intervals over the seeds.

    Only methods that reach the gain with every seed have a number there.
    """
    found: dict[str, dict[str, list[float | None]]] = defaultdict(dict)
    by_seed = []
    for stages in seeds.values():
        start = stages[START]
        points = {
            name.removeprefix("evaluate_"): (
                s["gold"] - start["gold"],
                s["reference_nll"] - start["reference_nll"],
            )
            for name, s in stages.items()
            if name != START
        }
        by_seed.append(curves(points))
    for method in by_seed[0]:
        for gain in GAINS:
            read = [forgotten_at(c[method], gain) if method in c else None for c in by_seed]
            values = [value for value in read if value is not None]
            if len(values) == len(by_seed):
                found[method][f"{gain:g}"] = interval(values)
    return dict(found)


def equal_gain_table(found: Mapping[str, Mapping[str, Sequence[float | None]]]) -> str:
    """The same as lines of a README's table, the least forgetting first."""
    heads = [f"forgotten at a gain of {gain:g}" for gain in GAINS]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (1 + len(GAINS)) + "|"]
    last = f"{GAINS[-1]:g}"

    def least(method: str) -> float:
        return float((found[method].get(last) or [float("inf")])[0] or 0.0)

    for method in sorted(found, key=least):
        cells = [cell(found[method].get(f"{gain:g}")) for gain in GAINS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: Sequence[float | None] | None) -> str:
    """Mean and interval."""
    if values is None:
        return "not reached"
    mean, low, high = values
    return f"{mean:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


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
    equal = at_equal_gain(seeds)
    found = {
        "seeds": list(seeds),
        "start": start,
        "rows": rows,
        "at_equal_gain": equal,
        "undominated": undominated(rows),
    }
    text = json.dumps(found, indent=1)
    (options.to / "results.json").write_text(text + "\n", encoding="utf-8")
    draw(rows, options.to / "plane.png")
    print(f"{table(rows)}\n\n{equal_gain_table(equal)}")
    print("\nnot dominated:", ", ".join(found["undominated"]))


if __name__ == "__main__":
    main()
