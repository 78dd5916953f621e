"""The benchmark: alignlab against TRL on the same weights and token ids. See README.md.

``python experiments/benchmarks/run.py --works dpo,kto --model smollm2 --data-dir DIR``

Every measurement is a fresh process. Per repeat each side runs once, in alternating order. A ratio
is given only where the losses agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import table  # noqa: E402 (after the path)
import tuning  # noqa: E402
from cases import EXTRA, WORKS, Case, load, size_of  # noqa: E402
from parity import strict_parity, timed_parity  # noqa: E402
from processes import SIDES, Lab, rate  # noqa: E402

UNITS = {
    "reward_k4": "comparisons/s",
    "reward_k9": "comparisons/s",
    "kto": "completions/s",
    "grpo": "completions/s",
    "sft": "tokens of the loss/s",
    "sampling": "sampled tokens/s",
    "ppo": "episodes/s",
}
NOT_HERE = "study"


def measure(args: argparse.Namespace, lab: Lab, work: str, earlier: Mapping[str, Any]) -> Any:
    """Everything about one work: parity, tuning, repeats; one row of results.json."""
    folder = make_case(args, lab, work)
    case, _ = load(folder)
    lab.say(f"{case.name}: {json.dumps(case.facts)}")
    if work == "ppo" and not lab.trl19:
        lab.say("  --trl19-python is not given: TRL 1.16 has no PPO, so only ours is measured.")
    options, tried = tuning.guess(case), list(earlier.get("tuning", []))
    if args.tune:

        def speed(candidate: tuning.Options) -> float | None:
            updates = None if case.work in ("sampling", "sft") else min(3, case.updates)
            return rate(lab.run(folder, "trl_tuned", candidate, mode="tune", updates=updates))

        options, tried = tuning.search(case, speed)
    elif tried:
        options = earlier["tuned_options"]
    parity = strict_parity(lab, make_case(args, lab, work, parity=True), case, options)
    runs = timed_runs(args, lab, folder, options)
    return compile_row(case, options, tried, parity, runs, lab)


def make_case(args: argparse.Namespace, lab: Lab, work: str, *, parity: bool = False) -> Path:
    """Make the folder of a case in a process of its own; returns it.

    The case of the float32 comparison has fewer rows: reference log-probs are computed for all.
    """
    size = size_of(work, args.model)
    batch, updates = args.batch or size.batch, args.updates or size.updates
    if parity:
        updates = min(updates, args.parity_updates)
        batch = min(batch, 16) if work == "sampling" else batch
    job = {
        "root": str(lab.scratch / ("parity" if parity else "cases")),
        "work": work,
        "model": args.model,
        "adapter": args.adapter,
        "cache": str(args.cache or lab.scratch / "cache"),
        "data_dir": str(args.data_dir) if args.data_dir else None,
        "size": {**vars(size), "batch": batch, "updates": updates},
        "seed": args.seed,
    }
    made = lab.process([sys.executable, str(HERE / "make_case.py")], job, f"{work} case")
    if failed := made.get("failed"):
        raise SystemExit(f"{work}: the case could not be made: {failed}")
    return Path(made["folder"])


def timed_runs(
    args: argparse.Namespace, lab: Lab, folder: Path, options: tuning.Options
) -> dict[str, list[dict[str, Any]]]:
    """All repeats, the sides one after the other, the order turned round every time."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    chosen = {"ours": {}, "trl_tuned": options, "trl_default": {"default": True}}
    sides = SIDES if lab.trl19 or not folder.name.startswith("ppo-") else SIDES[:1]
    for repeat in range(args.repeats):
        for side in sides if repeat % 2 == 0 else sides[::-1]:
            if side == "trl_default" and repeat >= args.default_repeats:
                continue
            runs[side].append(lab.run(folder, side, chosen[side]))
    return runs


def rates_of(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Rates of the repeats that did not fail, by side."""
    return {s: [r for r in map(rate, found) if r is not None] for s, found in runs.items()}


def at_its_best(runs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Count TRL's defaults as its tuned side where they beat what the search found."""
    found = {s: statistics.median(r) for s, r in rates_of(runs).items() if r}
    tuned, default = found.get("trl_tuned"), found.get("trl_default")
    if tuned is None or default is None or default <= tuned:
        return dict(runs), []
    note = (
        f"TRL's defaults were faster than the options that the search chose ({default:.3g} against "
        f"{tuned:.3g}), so they stand as tuned"
    )
    return {**runs, "trl_tuned": runs["trl_default"]}, [note]


def compile_row(
    case: Case,
    options: tuning.Options,
    tried: Sequence[Mapping[str, Any]],
    strict: Mapping[str, Any],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    lab: Lab,
) -> dict[str, Any]:
    """One row of results.json."""
    runs, swapped = at_its_best(runs)
    rates = rates_of(runs)
    middle = {s: statistics.median(r) if r else None for s, r in rates.items()}
    timed = timed_parity(runs)
    passed = bool(strict.get("passed")) and all(p["passed"] for p in timed.values())
    good = {s: [r for r in found if "failed" not in r] for s, found in runs.items()}

    def of(name: str, choose: Any = statistics.median) -> dict[str, float]:
        return {s: round(choose([r[name] for r in g]), 2) for s, g in good.items() if g}

    ratio = middle["ours"] / middle["trl_tuned"] if middle["ours"] and middle["trl_tuned"] else None
    notes = swapped + [
        f"{side} failed: {r['failed']}" for side, g in runs.items() for r in g if "failed" in r
    ]
    if LOAD > 0.5:
        notes.append(f"the machine was not idle before it (load {LOAD})")
    if not tried:
        notes.append("tuned TRL is a guess: run with --tune")
    if case.work == "ppo" and not lab.trl19:
        notes.append("TRL 1.16 has no PPO and no older one was given: only alignlab was measured")
    return {
        "work": case.work,
        "model": case.model,
        "adapter": case.adapter,
        "data": case.data,
        "unit": UNITS.get(case.work, "pairs/s"),
        "ours": middle["ours"],
        "trl_tuned": middle["trl_tuned"],
        "trl_default": middle["trl_default"],
        "ratio": ratio if passed else None,
        "spread": {s: [min(r), max(r)] for s, r in rates.items() if r},
        "repeats": {s: len(r) for s, r in rates.items()},
        "parity": {"passed": passed, "strict": strict, "timed": timed},
        "peak_memory": {
            "unit": "MiB",
            **of("peak_mb", max),
            "imports": of("imports_mb", max),
        },
        "process_seconds": of("process_seconds"),
        "dtype": next((r["dtype"] for r in good["ours"] if "dtype" in r), None),
        "tuned_options": {"default": True} if swapped else options,
        "tuning": list(tried),
        "size": {
            "batch": case.batch,
            "updates": case.updates,
            "group": case.group,
            "new_tokens": case.new_tokens,
            **case.facts,
        },
        "tokens_sampled": {
            s: round(statistics.mean([r["tokens_sampled"] for r in g]))
            for s, g in good.items()
            if g and "tokens_sampled" in g[0]
        },
        "threads": lab.threads,
        "load_before": LOAD,
        "measured": time.strftime("%Y-%m-%d %H:%M"),
        "runs": {s: [slim(r) for r in found] for s, found in runs.items()},
        "notes": notes,
    }


def slim(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a process's answer."""
    return {k: v for k, v in answer.items() if k != "sampled_ids"}


LOAD = round(os.getloadavg()[0], 2)  # of the last minute, before this benchmark began


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the works asked for and bring the files in --out up to date."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    args.scratch.mkdir(parents=True, exist_ok=True)
    memory = int(0.85 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    lab = Lab(
        args.scratch.resolve(), args.threads, args.trl19_python, memory, args.quiet, args.layout
    )
    file = args.out / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": []}
    if LOAD > 0.5:
        lab.say(f"The machine is not idle (load {LOAD}): these numbers are not to be trusted.")
    for work in args.works:
        key = (work, args.model, args.adapter)
        same = [r for r in results["rows"] if (r["work"], r["model"], r["adapter"]) == key]
        row = measure(args, lab, work, same[0] if same else {})
        kept = [r for r in results["rows"] if (r["work"], r["model"], r["adapter"]) != key]
        results = {
            "machine": table.machine(),
            "command": " ".join(["python", "experiments/benchmarks/run.py", *sys.argv[1:]]),
            "rows": sorted([*kept, row], key=order_of),
        }
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        table.write(args.out, results)
    lab.say(table.text(results))


def order_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Rows by model, adapter and the order of the works."""
    return (row["model"], row["adapter"], [*WORKS, *EXTRA].index(row["work"]))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [w for w in chain(WORKS, EXTRA) if w != NOT_HERE]
    parser.add_argument("--works", default=",".join(w for w in WORKS if w != NOT_HERE))
    parser.add_argument("--model", default="smollm2", choices=["smollm2", "reviews_lm", "tiny"])
    parser.add_argument("--adapter", default="lora", choices=["lora", "full"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--default-repeats", type=int, default=1, help="of TRL as it ships")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tune", action="store_true", help="look for TRL's fastest options first")
    parser.add_argument("--parity-updates", type=int, default=2, help="updates compared in float32")
    parser.add_argument("--updates", type=int, help="updates per run; the first is not timed")
    parser.add_argument("--batch", type=int, help="prompt groups per update")
    parser.add_argument("--data-dir", type=Path, help="folder with hh-rlhf/ and gsm8k/")
    parser.add_argument("--trl19-python", help="python of an environment with trl==1.9.0, for ppo")
    parser.add_argument("--cache", type=Path, help="where base models are made; --scratch/cache")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--scratch", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--layout", default="auto", help="of alignlab's batch; on a GPU also flex")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one repeat of few updates: a trial")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args(argv)
    args.works = [w.strip() for w in args.works.split(",") if w.strip()]
    for work in args.works:
        if work not in known:
            parser.error(f"no work '{work}'; there are {', '.join(known)}")
    if args.quick:
        args.repeats, args.default_repeats = 1, min(1, args.default_repeats)
        args.updates = args.updates or 3
        if args.out == HERE:
            parser.error("--quick is a trial: give it an --out of its own")
    return args


if __name__ == "__main__":
    main()
