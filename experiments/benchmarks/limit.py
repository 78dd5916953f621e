"""How close a training step comes to what this machine's plain matrix product reaches.

``python experiments/benchmarks/limit.py --models smollm2,reviews_lm --adapters lora,full``

The share is the arithmetic of the *necessary* tokens (a shared prompt once, no padding, the
vocabulary head on completion tokens only) over what a large product of the same number format would
do in the time of the step: forward, backward and AdamW. One process per model and adapter; writes
``limit.json`` and ``limit.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from make_case import MODELS  # noqa: E402 (after the path)
from table import machine  # noqa: E402

PROMPT, COMPLETION = 120, 60
TOKENS = (256, 512, 1024, 2048, 4096)
ABOUT = 1024  # tokens where something else varies


def shapes() -> list[dict[str, Any]]:
    """What is varied: tokens per step, share of the prompt, completions per prompt."""
    found = [shape("tokens", t, PROMPT, COMPLETION, 2) for t in TOKENS]
    for share in (0.1, 0.5, 0.75, 0.9):
        prompt = round(2 * COMPLETION * share / (1 - share))
        found.append(shape("prompt share", ABOUT, prompt, COMPLETION, 2))
    found += [shape("completions", ABOUT, PROMPT, COMPLETION, k) for k in (1, 2, 4, 9, 16)]
    return found


def shape(varied: str, tokens: int, prompt: int, completion: int, count: int) -> dict[str, Any]:
    """One row before it is measured; at least one whole group."""
    group = prompt + count * completion
    groups = max(1, round(tokens / group))
    return {
        "varied": varied,
        "groups": groups,
        "prompt": prompt,
        "completion": completion,
        "completions": count,
        "tokens": groups * group,
        "prompt_share": prompt / group,
        "tokens_one_row_per_completion": groups * count * (prompt + completion),
    }


def peak(dtype: Any, device: Any) -> float:
    """FLOP/s of a plain matrix product: the best of three sizes, each the best of ten."""
    import torch

    best = 0.0
    for rows, inner, columns in ((1024, 2048, 2048), (2048, 2048, 2048), (4096, 1024, 4096)):
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(inner, columns, device=device).to(dtype)
        seconds = min(timed(lambda a=a, b=b: a @ b, device) for _ in range(10))
        best = max(best, 2.0 * rows * inner * columns / seconds)
    return best


def timed(work: Any, device: Any) -> float:
    """Seconds of one call."""
    import torch

    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def necessary(row: Mapping[str, Any], config: Any, total: int, trained: int) -> float:
    """FLOPs that no implementation of this step can do without.

    Products with weights: 2 per parameter and token forward, 2 backward to the activations, 2 for
    each trained parameter. The head counts for completion tokens, the embedding for none.
    Attention: 4 per pair of positions, hidden unit and layer forward, twice that backward.
    """
    hidden, vocabulary, layers = config.hidden_size, config.vocab_size, config.num_hidden_layers
    tables = hidden * vocabulary * (1 if config.tie_word_embeddings else 2)
    full = trained >= total
    body = (total - tables) if full else (total - trained - tables)
    targets = row["groups"] * row["completions"] * row["completion"]
    head = hidden * vocabulary
    weights = row["tokens"] * (4.0 * body + 2.0 * (body if full else trained))
    if not full:
        weights += row["tokens"] * 4.0 * trained
    weights += targets * head * (6.0 if full else 4.0)
    prompt, own, count = row["prompt"], row["completion"], row["completions"]
    pairs = row["groups"] * (prompt**2 / 2 + count * (prompt * own + own**2 / 2))
    return weights + 12.0 * pairs * hidden * layers


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Time every shape on one model."""
    import numpy as np
    import torch

    from alignlab.data.group import NONE, TokenGroup
    from alignlab.data.pack import flatten
    from alignlab.models.backbone import Backbone
    from alignlab.models.load import Adapter, BackboneConfig

    torch.set_num_threads(job["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lora = job["adapter"] == "lora"
    backbone = Backbone.load(
        BackboneConfig(
            path=MODELS[job["model"]],
            revision=None,
            adapter=Adapter(
                rank=16 if lora else None, alpha=32.0, dropout=0.0, target_modules="all-linear"
            ),
            dtype="auto",
            layout="auto",
            gradient_checkpointing=False,
        ),
        Path(job["cache"]),
        device,
        seed=0,
    )
    backbone.add("policy", source=None, trainable=True)
    backbone.train_mode(True)
    parameters = list(backbone.trainable_parameters("policy").values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, foreach=True)
    total, trained = backbone.parameter_counts("policy")
    with backbone.view("policy") as view:
        config = view.model.config
    highest = config.vocab_size
    draw = np.random.default_rng(0)

    def ids(count: int) -> Any:
        return draw.integers(4, highest, count).astype(np.int32)

    def step(batch: Any) -> None:
        with backbone.view("policy") as view:
            (-view.logps(batch).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    top = peak(torch.bfloat16, device)
    rows = []
    for row in shapes():
        groups = [
            TokenGroup(
                prompt=ids(max(1, row["prompt"])),
                completions=tuple(ids(row["completion"]) for _ in range(row["completions"])),
                verdict=NONE,
                row=n,
                id=str(n),
            )
            for n in range(row["groups"])
        ]
        batch = flatten(groups).to(device)
        step(batch)
        seconds = [timed(lambda batch=batch: step(batch), device) for _ in range(job["repeats"])]
        middle = statistics.median(seconds)
        flops = necessary(row, config, total, trained)
        rows.append(
            {
                **row,
                "seconds": middle,
                "spread": [min(seconds), max(seconds)],
                "tokens_per_second": row["tokens"] / middle,
                "necessary_flops": flops,
                "share": flops / middle / top,
            }
        )
    return {
        "model": job["model"],
        "adapter": job["adapter"],
        "threads": job["threads"],
        "dtype": backbone.dtype_name,
        "peak_gflops": top / 1e9,
        "peak_fp32_gflops": peak(torch.float32, device) / 1e9,
        "repeats": job["repeats"],
        "rows": rows,
        "linear": linearity([r for r in rows if r["varied"] == "tokens"]),
        "load_before": job["load"],
        "measured": time.strftime("%Y-%m-%d %H:%M"),
    }


def linearity(rows: Sequence[Mapping[str, Any]]) -> float:
    """Exponent of cost in tokens, fitted through log seconds from 512 tokens on; 1 is linear."""
    points = [(math.log(r["tokens"]), math.log(r["seconds"])) for r in rows if r["tokens"] > 400]
    slope, _ = statistics.linear_regression(*zip(*points, strict=True))
    return slope


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The table for people."""
    parts = ["# How close to the machine's limit a training step comes\n"]
    for one in found:
        parts.append(
            f"## {one['model']}, {one['adapter']}, {one['dtype']}, {one['threads']} threads\n\n"
            f"Plain product: {one['peak_gflops']:.0f} GFLOP/s in bfloat16, "
            f"{one['peak_fp32_gflops']:.0f} in float32. Cost grows as tokens to the power "
            f"{one['linear']:.2f} (512 to {TOKENS[-1]} tokens). {one['repeats']} repeats.\n\n"
            "| varied | prompts | K | prompt + completion | tokens | as rows | s | tokens/s | "
            "share |"
            "\n"
            "|---|---|---|---|---|---|---|---|---|"
        )
        parts[-1] += "".join(
            f"\n| {r['varied']} | {r['groups']} | {r['completions']} | {r['prompt']} + "
            f"{r['completion']} | {r['tokens']} | {r['tokens_one_row_per_completion']} | "
            f"{r['seconds']:.2f} ({r['spread'][0]:.2f}–{r['spread'][1]:.2f}) | "
            f"{r['tokens_per_second']:.0f} | {100 * r['share']:.0f} % |"
            for r in one["rows"]
        )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure in a process per model and adapter, and bring limit.json and limit.md up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="smollm2,reviews_lm")
    parser.add_argument("--adapters", default="lora,full")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "benchmarks" / "cache")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(measure(json.loads(args.job))))
        return
    file = args.out / "limit.json"
    found = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    for model in args.models.split(","):
        for adapter in args.adapters.split(","):
            job = {
                "model": model,
                "adapter": adapter,
                "threads": args.threads,
                "repeats": args.repeats,
                "cache": str(args.cache),
                "load": round(os.getloadavg()[0], 2),
            }
            done = subprocess.run(
                [sys.executable, __file__, "--job", json.dumps(job)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            one = json.loads(done.stdout.splitlines()[-1])
            found = [f for f in found if (f["model"], f["adapter"]) != (model, adapter)] + [one]
            print(markdown([one]), flush=True)
    found.sort(key=lambda f: (f["model"], f["adapter"]))
    command = " ".join(["python", "experiments/benchmarks/limit.py", *sys.argv[1:]])
    content = {"machine": machine(), "command": command, "rows": found}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (args.out / "limit.md").write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
