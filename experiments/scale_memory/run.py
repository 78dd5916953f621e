"""What a process holds at ZeRO 0, 1, 2 and 3: elements, bytes, and measured peaks. See README.md.

``python experiments/scale_memory/run.py``
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODELS = ("reviews_lm", "smollm2")
SETTINGS = ("full", "lora")
STAGES = (0, 1, 2, 3)
# Blocks from this size on are mapped, and given back when they are freed (glibc).
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
SHOWN = ("parameters", "gradients", "master_weights", "optimizer")


def overrides(model: str, adapter: str, zero: int, args: argparse.Namespace) -> list[str]:
    """One training: a few steps of SFT in float32, so that a number is four bytes everywhere."""
    return [
        "pipeline=sft",
        f"backbone={model}",
        "backbone.dtype=float32",
        f"adapter={adapter}",
        "data=reviews",
        f"data.limit.sft={args.batch * 8}",
        f"size.sft.batch={args.batch}",
        f"size.sft.steps={args.steps}",
        "size.sft.evaluate_every=0",
        "size.sft.evaluate_rows=2",
        "engine.device=cpu",
        "engine.threads=1",
        f"engine.zero={zero}",
        f"engine.token_budget={args.budget}",
        "engine.progress=false",
    ]


def measure(args: argparse.Namespace, model: str, adapter: str, zero: int) -> dict[str, Any]:
    """Fresh processes that train together; the answer of the first of them."""
    folder = args.scratch / f"{model}-{adapter}-{zero}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store = args.scratch / "store"
    key = f"{model.replace('_', '')}{adapter}{zero}"
    shutil.rmtree(store / f"sft-{key}", ignore_errors=True)
    job = {
        "overrides": overrides(model, adapter, zero, args),
        "steps": args.steps,
        "store": str(store),
        "key": key,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        **(RETURNING if args.returning else {}),
        "WORLD_SIZE": str(args.processes),
        "LOCAL_WORLD_SIZE": str(args.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    answer = folder / "answer.json"
    began = time.monotonic()
    with (folder / "log").open("w") as log:
        workers = [
            subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), str(folder / "job.json"), str(answer)],
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log,
                stderr=log,
            )
            for rank in range(args.processes)
        ]
        try:
            codes = [worker.wait() for worker in workers]
        finally:
            for worker in workers:  # where this was stopped, or one of them hangs
                worker.kill()
    if any(codes):
        raise SystemExit(f"{folder.name} failed:\n{(folder / 'log').read_text()[-3000:]}")
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return {**found, "returning": args.returning, "seconds": time.monotonic() - began}


def row(model: str, adapter: str, zero: int, found: dict[str, Any]) -> dict[str, Any]:
    """What one measurement says, the larger number where processes differ."""
    parts = found["processes"]
    total, trained = found["params_total"], found["params_trained"]
    whole = {"parameters": total, "gradients": trained, "optimizer": 2 * trained}
    held = found["sharding"] or {**whole, "master_weights": 0}  # the record says what is shared
    return {
        "model": model,
        "training": adapter,
        "zero": zero,
        "allocator": "returning" if found["returning"] else "default",
        "processes": len(parts),
        "params_total": total,
        "params_trained": trained,
        "elements": {name: held[name] for name in SHOWN},
        **{name: max(part[name] for part in parts) for name in parts[0]},
        "tokens_trained": found["tokens_trained"],
        "seconds": round(found["seconds"], 1),
        "load_before": LOAD,
        "measured": time.strftime("%Y-%m-%d %H:%M"),
    }


def of(found: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is the measurement of."""
    return tuple(found[name] for name in ("model", "training", "allocator", "zero"))


def about() -> dict[str, Any]:
    """Machine and versions."""
    names = ("torch", "deepspeed", "transformers", "peft")
    versions = {name: version(name) for name in names}
    return {"cores": os.cpu_count(), "python": platform.python_version(), **versions}


LOAD = round(os.getloadavg()[0], 2)  # of the last minute, before this began


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as the README shows them."""
    heads = ["model", "training", "ZeRO", "allocator", "weights", "gradients", "master copy"]
    heads += ["moments"]
    heads += ["tensors, MiB", "resident between steps, MiB", "peak in a step, MiB"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for found in rows:
        millions = [f"{found['elements'][name] / 1e6:.2f}" for name in SHOWN]
        names = ("tensor_bytes", "resident_between_steps", "peak_in_steps")
        mebibytes = [f"{found[name] / 2**20:,.0f}" for name in names]
        cells = [found["model"], found["training"], str(found["zero"])]
        cells += [found["allocator"], *millions, *mebibytes]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure every combination and bring results.json up to date."""
    args = parse()
    args.scratch.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    for model in args.models:
        for adapter in args.training:
            for zero in args.zero:
                new = row(model, adapter, zero, measure(args, model, adapter, zero))
                kept = sorted([*(r for r in kept if of(r) != of(new)), new], key=of)
                text = json.dumps({"machine": about(), "rows": kept}, indent=1)
                file.write_text(text + "\n", encoding="utf-8")
                print(table([new]).splitlines()[-1], flush=True)
    print(table(kept))


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--training", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--zero", type=int, nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="prompts of an optimizer step")
    parser.add_argument("--budget", type=int, default=256, help="tokens of a micro-batch")
    parser.add_argument("--returning", action="store_true", help="give freed memory back at once")
    parser.add_argument("--scratch", type=Path, default=ROOT / "runs" / "scale_memory")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    args.scratch = args.scratch.resolve()
    return args


if __name__ == "__main__":
    main()
