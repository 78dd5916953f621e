"""The whole study: one alignlab command against the same done with TRL scripts one after another.

``python experiments/benchmarks/study.py --trl19-python /path/to/trl19/bin/python``

The demo's study with one seed: SFT, annotation, reward model, six methods, best of n, evaluation.
The same texts, numbers of rows, updates, episodes and samples on both sides (`peer_study.py`);
samples differ, so the policies' rewards are given beside the seconds instead of losses. Afterwards
the alignlab command again, which finds everything in the store.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from peer_study_setup import STEPS  # noqa: E402 (after the path)
from table import machine  # noqa: E402

COMMAND = ["run", "experiment=sentiment_demo", "launch=local", "seed=0", "study=bench"]
MEASURES = ("gold", "proxy", "kl")
METHODS = ("sft", "dpo", "ipo", "kto", "orpo", "ppo", "grpo", "best_of_n")


def environment(threads: int, **more: str) -> dict[str, str]:
    """Variables of a measured process."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cpu",
        **more,
    }


def timed(command: list[str], log: Path, variables: Mapping[str, str]) -> float:
    """Wall seconds of a process; stop with the end of its log when it fails."""
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=dict(variables))
    if done.returncode:
        last = log.read_text(encoding="utf-8")[-2000:]
        raise SystemExit(f"{' '.join(command)} failed:\n{last}\nsee {log}")
    return time.perf_counter() - began


def texts(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the rows that both sides use, as alignlab's data gives them."""
    from alignlab import spec
    from alignlab.stages.sft import demonstrations

    source = spec.build(spec.parse(config["data"], "data"))
    rows = {
        "sft_rows": [
            {"prompt": g.prompt, "completion": g.completions[0]}
            for g in demonstrations(source.load("sft"))
        ],
        "prompts": [{"prompt": g.prompt} for g in source.load("preference")],
        "test": [{"prompt": g.prompt} for g in source.load("test")],
    }
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def theirs(args: argparse.Namespace, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Every step with TRL: seconds, and what the policies reached."""
    from alignlab.models.load import resolve

    stages = config["stages"]
    names = {"sft": "sft", "reward": "reward", "ppo": "ppo", "grpo": "grpo"}
    rates = {
        step: stages[names.get(step, step)]["optimizer"]["learning_rate"]
        for step in STEPS
        if step in stages and "optimizer" in stages[step]
    }
    texts(folder, config)
    annotator = config["annotator"]
    job = {
        "folder": str(folder),
        "base": str(resolve(config["backbone"]["path"], args.scratch / "cache")),
        "size": config["size"],
        "rates": rates,
        "new_tokens": config["tokens"]["max_completion"],
        "dtype": args.dtype,
        "rows": args.rows,
        "noise": [annotator["noise"], annotator["flip"]],
        "kl": {
            "dpo": stages["dpo"]["objective"]["beta"],
            "ipo": stages["ipo"]["objective"]["tau"],
            "kto": stages["kto"]["objective"]["beta"],
            "orpo": stages["orpo"]["objective"]["weight"],
            "ppo": stages["ppo"]["kl_coef"],
            "grpo": stages["grpo"]["kl_coef"],
        },
        "seed": 0,
        "threads": args.threads,
    }
    seconds = {}
    for step in STEPS:
        file = folder / "job.json"
        file.write_text(json.dumps({**job, "step": step}), encoding="utf-8")
        python = args.trl19_python if step == "ppo" else sys.executable
        command = [python, str(HERE / "peer_study.py"), str(file)]
        seconds[step] = timed(command, folder / f"{step}.log", environment(args.threads))
        print(f"  TRL {step}: {seconds[step]:.0f} s", flush=True)
    lines = (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    reached = {row["policy"]: row for row in map(json.loads, lines)}
    return {"seconds": sum(seconds.values()), "steps": seconds, "policies": reached}


def ours(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The command twice, and what the policies reached."""
    variables = environment(args.threads, ALIGNLAB_RUNS=str(folder))
    del variables["OMP_NUM_THREADS"]  # as a person starts it: the launcher divides the cores
    command = [sys.executable, "-m", "alignlab", *COMMAND]
    first = timed(command, folder / "first.log", variables)
    print(f"  alignlab: {first:.0f} s", flush=True)
    again = timed(command, folder / "again.log", variables)
    print(f"  alignlab again: {again:.1f} s", flush=True)
    records = [json.loads(f.read_text(encoding="utf-8")) for f in folder.glob("*/record.json")]
    steps = {r["name"]: r["seconds"] for r in records}
    reached = {
        r["name"].removeprefix("evaluate_"): {k: r["summary"].get(k) for k in MEASURES}
        for r in records
        if r["kind"] == "evaluate"
    }
    return {"seconds": first, "again": again, "steps": steps, "policies": reached}


def markdown(found: Mapping[str, Any]) -> str:
    """The result for people."""
    a, b = found["ours"], found["trl"]
    lines = [
        "# One study: alignlab's command against TRL scripts one after another\n",
        f"`{found['command']}`\n",
        f"alignlab {a['seconds']:.0f} s, TRL {b['seconds']:.0f} s (sum of its scripts): "
        f"**{found['ratio']:.2f} times**. The same command again: {a['again']:.1f} s.\n",
        "| step | alignlab, s in its own process | TRL, s of the script |",
        "|---|---|---|",
    ]
    for step, seconds in b["steps"].items():
        own = a["steps"].get(step)
        if step == "evaluate":
            own = sum(s for name, s in a["steps"].items() if name.startswith("evaluate_"))
        lines.append(f"| {step} | {own:.0f} | {seconds:.0f} |")
    lines += ["", "| policy | gold, ours / TRL | proxy | KL, nats |", "|---|---|---|---|"]
    for name in METHODS:
        cells = [
            f"{number(a['policies'].get(name, {}).get(k))} / {number(b['policies'][name][k])}"
            for k in MEASURES
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def number(value: float | None) -> str:
    """Two digits, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def main() -> None:
    """Measure both sides and write study.json and study.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--trl19-python", required=True, help="environment with trl==1.9.0, for PPO"
    )
    parser.add_argument("--dtype", default="amp", choices=["amp", "float32"], help="of TRL")
    parser.add_argument("--rows", type=int, default=64, help="TRL's rows per micro-batch")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scratch", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    from alignlab.compose import compose

    load = round(os.getloadavg()[0], 2)
    config = compose(COMMAND[1:])
    folders = [args.scratch / "study" / side for side in ("ours", "trl")]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    own, peer = ours(args, folders[0]), theirs(args, folders[1], config)
    found = {
        "machine": machine(),
        "command": " ".join(["python", "experiments/benchmarks/study.py", *sys.argv[1:]]),
        "measured": time.strftime("%Y-%m-%d %H:%M"),
        "load_before": load,
        "threads": args.threads,
        "trl_options": {"dtype": args.dtype, "rows": args.rows},
        "ratio": peer["seconds"] / own["seconds"],
        "ours": own,
        "trl": peer,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1) + "\n"
    (args.out / "study.json").write_text(text, encoding="utf-8")
    (args.out / "study.md").write_text(markdown(found), encoding="utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
