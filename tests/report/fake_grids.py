"""Grids, judgements, benchmarks and searches for the fake study, in the formats of their stages.

The truth of a grid is known: gold is a hump in d = √KL (Gao et al. 2022), proxy keeps rising.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
from fake_study import METHODS, curves, samples, write_run

# method → field that is swept, its letter in labels, values, KL = scale · (0.1 / value)^power,
# α and β of gold = d (α − β log d)
GRIDS = {
    "dpo": ("objective.beta", "beta", (0.02, 0.05, 0.3, 1.0), 9.0, 1.0, 0.34, 0.125),
    "ipo": ("objective.beta", "beta", (0.05, 0.3, 1.0), 6.0, 0.8, 0.27, 0.090),
    "ppo": ("kl_coef", "β", (0.01, 0.03, 0.3, 1.0), 14.0, 0.9, 0.36, 0.145),
    "grpo": ("kl_coef", "β", (0.02, 0.3), 11.0, 0.9, 0.31, 0.105),
}
BEST_OF = {2: (0.12, 0.1), 4: (0.21, 0.1), 16: (0.38, 0.1)}  # gold shift, audit share
DIVERGED = ("ppo", 0.01)  # on the last seed
TASKS = {"copy": ("exact_match", 0.8), "pairs": ("accuracy", 0.6), "held_out": ("nll", 3.0)}
TRIALS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)


def _noise(*parts: object) -> float:
    return float(np.random.default_rng(zlib.crc32(repr(parts).encode())).normal())


def truth(method: str, value: float) -> tuple[float, float]:
    """KL and gold shift of a point of a grid, without noise."""
    _, _, _, scale, power, alpha, beta = GRIDS[method]
    kl = scale * (0.1 / value) ** power
    d = math.sqrt(kl)
    return kl, d * (alpha - beta * math.log(d))


def _score(seed: int, stages: dict[str, str], policy: str, split: str = "test") -> dict:
    return {
        "kind": "evaluate",
        "seed": seed,
        "inputs": {"policy": policy, "reference": stages["sft"], "reward": stages["reward"]},
        "config": {"seed": seed, "samples": 1, "temperature": 1.0, "split": split},
    }


def write_grids(root: Path, stages: dict[str, str], seed: int, prompts: int, *, last: bool) -> None:
    """One more policy and evaluation per value of `GRIDS` and `BEST_OF`; one of them diverges."""
    tag = f"{seed}a"
    for method, (field, letter, values, *_) in GRIDS.items():
        label, kind, _, audit, _, factor = METHODS[method]
        for value in values:
            kl, shift = truth(method, value)
            shift += 0.02 * _noise(method, value, seed)
            kl *= math.exp(0.06 * _noise(seed, value, method))
            name, key = f"{method},{field}={value:g}", f"{tag}-{method}-{value:g}".replace(".", "")
            config = {
                "seed": seed,
                "epochs": 2.0,
                "objective": {"_target_": f"alignlab.{method}", "beta": 0.1},
                "optimizer": {"learning_rate": 5e-5},
                "inputs": {"reference": "sft"},
            }
            if field == "kl_coef":
                config.pop("objective")
                config["kl_coef"] = value
            else:
                config["objective"]["beta"] = value
            broken = last and (method, value) == DIVERGED
            stages[name] = write_run(
                root,
                kind,
                key,
                label=f"{label} ({letter}={value:g})",
                seed=seed,
                config=config,
                inputs={"reference": stages["sft"], "annotations": stages["annotate"]},
                curves=curves(np.random.default_rng(seed), "margin"),
                reference=stages["sft"],
                done=not broken,
                error="loss is not finite at step 31" if broken else None,
            )
            if broken:
                stages[f"evaluate_{name}"] = f"evaluate-{key}"  # never started
                continue
            stages[f"evaluate_{name}"] = write_run(
                root,
                key=key,
                label=f"{label} ({letter}={value:g})",
                samples=samples(seed, shift, audit, kl, factor, prompts, proxy=kl**0.5 * 0.22),
                summary={"reference_nll": 3.1 + 0.02 * kl, "reference_gold": 0.31},
                **_score(seed, stages, stages[name]),
            )
    for n, (shift, audit) in BEST_OF.items():
        stages[f"evaluate_bon,best_of={n}"] = write_run(
            root,
            key=f"{tag}-bon-{n}",
            label=f"best of {n}",
            samples=samples(seed, shift, audit, 0.0, 1.0, prompts),
            best_of=n,
            summary={"reference_gold": 0.31},
            **_score(seed, stages, stages["sft"]),
        )


def write_judgements(root: Path, stages: dict[str, str], seed: int) -> None:
    """A judge run per evaluation, against the SFT model's answers; the judge likes length."""
    own = stages["evaluate_sft"]
    for name, run in list(stages.items()):
        if not _tested(root, name, run) or run == own:
            continue
        both = zip(_rows(root / run), _rows(root / own), strict=True)
        rows = [_judged(a, b, seed) for a, b in both]
        wins = [row["win"] for row in rows]
        stages[name.replace("evaluate_", "judge_", 1)] = write_run(
            root,
            "judge",
            run.partition("-")[2],
            label="judge",
            seed=seed,
            inputs={"samples": run, "opponent": own},
            samples=rows,
            judge={"name": "reviews_lm judge", "fingerprint": "5f1c0de0"},
            consistency=sum(row["consistent"] for row in rows) / len(rows),
            repeat_agreement=0.97,
            calls=2 * len(rows),
            cache_hits=0,
            cost_usd=0.0,
            summary={
                "win_rate": sum(wins) / len(wins),
                "lc_win_rate": sum(wins) / len(wins) - 0.02,
                "ties": sum(w == 0.5 for w in wins) / len(wins),
            },
        )


def _tested(root: Path, name: str, run: str) -> bool:
    """Whether a stage is a finished evaluation on the test prompts."""
    return (
        name.startswith("evaluate_") and ",trial=" not in name and (root / run / "DONE").is_file()
    )


def _rows(folder: Path) -> list[dict]:
    text = (folder / "samples.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _judged(own: dict, other: dict, seed: int) -> dict:
    words = {1: "win", 0: "tie", -1: "loss"}
    lead = own["gold"] - other["gold"] + 0.01 * (own["tokens"] - other["tokens"])
    seen = [lead + 0.15 * _noise(own["completion"], seed, side) for side in (0, 1)]
    sides = [0 if abs(s) < 0.03 else int(math.copysign(1, s)) for s in seen]
    win = 0.5 if sides[0] != sides[1] else (1 + sides[0]) / 2
    return {
        "prompt_id": own["prompt_id"],
        "sample": own["sample"],
        "prompt": own["prompt"],
        "completion": own["completion"],
        "opponent_completion": other["completion"],
        "win": win,
        "forward": words[sides[0]],
        "backward": words[sides[1]],
        "consistent": sides[0] == sides[1],
        "tokens": own["tokens"],
        "opponent_tokens": other["tokens"],
    }


def write_benchmarks(root: Path, stages: dict[str, str], seed: int) -> None:
    """A benchmark run per policy, SFT too, which forgets with its KL; one of the reward model."""
    for name, run in list(stages.items()):
        policy = name.removeprefix("evaluate_")
        if not _tested(root, name, run) or "bon" in name:
            continue
        found = [row["kl"] for row in _rows(root / run)]
        rows = [
            {"task": task, "metric": metric, "item": f"{task}-{i}", "value": value}
            for task, (metric, base) in TASKS.items()
            for i in range(40)
            for value in [_item(task, base, sum(found) / len(found), i, seed)]
        ]
        stages[f"benchmark_{policy}"] = write_run(
            root,
            "benchmark",
            run.partition("-")[2],
            label="benchmark",
            seed=seed,
            inputs={"policy": stages[policy]},
            samples=rows,
            summary=_means(rows),
        )
    rows = [
        {
            "task": task,
            "item": f"{task}-{i}",
            "value": float(margin > 0),
            "margin": margin,
            "probability": 1 / (1 + math.exp(-margin)),
            "chosen_tokens": 20 + i % 7,
            "rejected_tokens": 20 + i % 5,
        }
        for task, lead in (("sentiment", 0.9), ("length", 0.1))
        for i in range(60)
        for margin in [lead + _noise(task, i, seed)]
    ]
    stages["reward_benchmark"] = write_run(
        root,
        "reward_benchmark",
        f"{seed}a",
        label="reward benchmark",
        seed=seed,
        inputs={"reward": stages["reward"]},
        samples=rows,
        summary={f"{k.partition('/')[0]}/accuracy": v for k, v in _means(rows).items()},
    )


def _item(task: str, base: float, kl: float, item: int, seed: int) -> float:
    shared = _noise(task, item)
    if task == "held_out":
        return base + 0.4 * shared + 0.02 * kl + 0.02 * _noise(task, item, seed, kl)
    return float(base - 0.008 * kl + 0.3 * shared + 0.05 * _noise(task, item, seed, kl) > 0.5)


def _means(rows: list[dict]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(f"{row['task']}/{row.get('metric', '')}", []).append(row["value"])
    return {key: sum(values) / len(values) for key, values in found.items()}


def write_search(root: Path, stages: dict[str, str], method: str, seed: int, prompts: int) -> str:
    """Trials of ``method`` over learning rates, and the select run; the highest rate diverges."""
    label, kind, shift, audit, kl, factor = METHODS[method]
    tag, inputs, trials = f"{seed}a", {}, []
    objective = {"_target_": f"alignlab.{method}", "beta": 0.1}
    for number, rate in enumerate(TRIALS, 1):
        name, key = f"{method},trial={number}", f"{tag}-{method}-trial{number}"
        broken = rate == TRIALS[-1]
        reached = shift - 0.12 * math.log10(rate / 1e-4) ** 2
        inputs[f"trial/{number}"] = stages[name] = write_run(
            root,
            kind,
            key,
            label=f"{label} (beta=0.1)",
            seed=seed,
            config={
                "seed": seed,
                "epochs": 2.0,
                **({"kl_coef": 0.1} if kind in ("ppo", "grpo") else {"objective": objective}),
                "optimizer": {"learning_rate": rate},
                "inputs": {"reference": "sft"},
            },
            inputs={"reference": stages["sft"], "annotations": stages["annotate"]},
            reference=stages["sft"],
            done=not broken,
            error="loss is not finite at step 7" if broken else None,
        )
        inputs[f"score/{number}"] = stages[f"evaluate_{name}"] = f"evaluate-{key}"
        rows: list[dict] = []
        if not broken:
            rows = samples(seed, reached, audit, kl, factor, min(prompts, 20))
            for row in rows:
                row["prompt_id"] = row["prompt_id"].replace("r", "v")
            score = _score(seed, stages, stages[name], "validation")
            write_run(root, key=key, label=f"{label} (beta=0.1)", samples=rows, **score)
        trials.append(
            {
                "run": stages[name],
                "evaluation": stages[f"evaluate_{name}"],
                "settings": {"optimizer.learning_rate": rate},
                "value": sum(r["gold"] for r in rows) / len(rows) if rows else None,
                "status": "diverged" if broken else "done",
                "tokens": 120_000,
                "flops": 3.2e12,
                "seconds": 42.5,
            }
        )
    best = max((t for t in trials if t["value"] is not None), key=lambda t: t["value"])
    return write_run(
        root,
        "select",
        f"{tag}-{method}",
        label=f"{label} (beta=0.1)",
        seed=seed,
        inputs=inputs,
        chosen=best["run"],
        metric="gold",
        trials=trials,
    )
