"""A study of many methods, each with a policy and an evaluation per seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake_study import FakeStore, curves, samples, write_json, write_run


def write_many(root: Path, *, methods: int, seeds: int, prompts: int = 20) -> FakeStore:
    """SFT and ``methods`` preference methods whose gold shifts and KL are spread evenly."""
    jobs = []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        sft = write_run(root, "sft", f"{seed}", label="SFT", inputs={}, seed=seed)
        stages = {"sft": sft}
        for number in range(methods + 1):
            name = f"m{number:02d}" if number else "sft"
            policy = sft
            if number:
                policy = write_run(
                    root, "preference", f"{seed}{name}", label=f"Method {number:02d}", seed=seed,
                    inputs={"reference": sft}, curves=curves(generator, "margin"),
                    config={"seed": seed, "objective": {"beta": 0.01 * number}},
                )  # fmt: skip
                stages[name] = policy
            share = number / methods
            rows = samples(seed, share, 0.5, 12 * share, 1.0 + 0.2 * share, prompts)
            stages[f"evaluate_{name}"] = write_run(
                root, "evaluate", f"{seed}{name}", samples=rows, seed=seed,
                label=f"Method {number:02d}" if number else "SFT",
                inputs={"policy": policy, "reference": sft}, config={"seed": seed, "samples": 1},
            )  # fmt: skip
        jobs.append({"seed": seed, "stages": stages})
    write_json(root / "studies" / "many" / "study.json", {"name": "many", "jobs": jobs})
    return FakeStore(root)
