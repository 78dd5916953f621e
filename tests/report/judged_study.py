"""Judge runs for the fake study: judges whose taste is planted, written as run folders."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from fake_study import METHODS, write_run


def judge_rows(seed: int, method: str, quality: float, length: float, longer: float, n: int) -> Any:
    """Rows of one judge run: P(win) = σ(quality + length · tanh(Δ / 10)); a few inconsistent."""
    source = np.random.default_rng(zlib.crc32(f"{seed}{method}".encode()))
    rows = []
    for index in range(n):
        delta = float(10 * (longer + source.normal()))
        chance = 1 / (1 + np.exp(-quality - length * np.tanh(delta / 10)))
        better = "win" if source.random() < chance else "loss"
        forward, backward = better, better
        if source.random() < 0.2:  # the first position wins
            forward, backward = "win", "loss"
        same = forward == backward
        win = {"win": 1.0, "loss": 0.0}[forward] if same else 0.5
        rows.append(
            {
                "prompt_id": f"r{index:03d}",
                "sample": 0,
                "prompt": f"prompt {index}",
                "completion": "<b>one</b>",
                "opponent_completion": "two",
                "win": win,
                "forward": forward,
                "backward": backward,
                "consistent": same,
                "asked": True,
                "tokens": 40 + delta,
                "opponent_tokens": 40,
                "gold": win + 0.1 * source.normal(),
                "opponent_gold": 0.5,
            }
        )
    return rows


TASTES = {"dpo": (1.0, 0.0, 1.0), "ppo": (0.0, 3.0, 1.2)}  # quality, length, longer
SENTINELS = {
    "asked": 32,
    "identical": {"tie": 1.0, "first": 0.0, "second": 0.0, "none": 0.0},
    "verbose": {"wins": 0.0, "ties": 0.5, "losses": 0.5},
}


def write_judgements(
    root: Path, study: str = "demo", *, prompts: int = 200, rows: Any = judge_rows, **record: Any
) -> None:
    """Judge DPO and PPO of a written study against SFT, for every seed."""
    path = root / "studies" / study / "study.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for job in content["jobs"]:
        for method, taste in TASTES.items():
            seed = job["seed"]
            job["stages"][f"judge_{method}"] = write_run(
                root,
                "judge",
                f"{seed}a-{method}",
                label=METHODS[method][0],
                inputs={
                    "samples": job["stages"][f"evaluate_{method}"],
                    "opponent": job["stages"]["evaluate_sft"],
                },
                seed=seed,
                samples=rows(seed, method, *taste, prompts),
                **{
                    "judge": {"name": "a <judge>", "fingerprint": "f1", "deterministic": False},
                    "repeat_agreement": 0.95,
                    "matches": prompts,
                    "sentinels": SENTINELS,
                    "calls": 400,
                    "cache_hits": 10,
                    "cost_usd": 0.25,
                    "judge_tokens_in": 1000,
                    "judge_tokens_out": 400,
                    **record,
                },
            )
    path.write_text(json.dumps(content), encoding="utf-8")
