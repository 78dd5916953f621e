"""A store in the format of the run folders: two seeds, eight methods, one missing run."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GOOD = [
    "wonderful",
    "moving",
    "honest",
    "brilliant",
    "warm",
    "superb",
    "charming",
    "great",
    "delightful",
    "fine",
]
BAD = ["dull", "awful", "tired", "clumsy", "flat", "boring", "weak", "hollow", "messy", "poor"]
PLAIN = [
    "the",
    "film",
    "a",
    "story",
    "with",
    "an",
    "actor",
    "and",
    "his",
    "scene",
    "that",
    "runs",
    "through",
    "every",
    "long",
    "quiet",
    "act",
]
OPENINGS = [
    "This movie",
    "I saw the",
    "When I first",
    "The acting in",
    "It is <b>not</b> a",
    "Having & seen",
]


@dataclass(frozen=True)
class FakeStore:
    """The two places of a store that a report reads."""

    root: Path

    @property
    def studies(self) -> Path:
        return self.root / "studies"


# label, kind, gold shift, audit share of it, KL, length factor
METHODS = {
    "dpo": ("DPO", "preference", 0.52, 0.8, 9.0, 1.05),
    "ipo": ("IPO (mean)", "preference", 0.40, 0.8, 6.0, 1.0),
    "kto": ("KTO", "preference", 0.50, 0.7, 8.0, 1.0),
    "orpo": ("ORPO", "preference", 0.12, 0.9, 2.0, 0.95),
    "ppo": ("PPO", "ppo", 0.62, 0.0, 14.0, 1.3),
    "grpo": ("GRPO", "grpo", 0.57, 0.6, 11.0, 1.1),
}
ENV = {
    "git": {"commit": "0123abc", "dirty": False, "diff_sha256": None},
    "python": "3.11.9",
    "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
    "hardware": {
        "host": "lab",
        "cpu": "Test CPU",
        "cpus": 2,
        "memory_bytes": 24 * 2**30,
        "gpus": [],
    },
    "command": ["alignlab", "run"],
    "earlier": [],
}


def write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(
    root: Path, kind: str, key: str, *, label: str, inputs: dict[str, str], **fields
) -> str:
    name = f"{kind}-{key}"
    folder = root / name
    config = fields.pop("config", {})
    curves = fields.pop("curves", [])
    samples = fields.pop("samples", [])
    done = fields.pop("done", True)
    record = {
        "name": label,
        "kind": kind,
        "key": key,
        "label": label,
        "inputs": inputs,
        "study": "demo",
        "seconds": 42.5,
        "tokens_trained": 120_000,
        "tokens_sampled": 0,
        "flops": 3.2e12,
        "peak_memory_bytes": 900 * 2**20,
        "params_total": 3_000_000,
        "params_trained": 3_000_000,
        "updates": len(curves),
        "threads": 1,
        "dtype": "float32",
        "layout": "grouped",
        "warnings": [],
        "summary": {},
        **fields,
    }
    write_json(folder / "record.json", record)
    write_json(folder / "config.json", config)
    write_json(folder / "env.json", ENV)
    write_lines(folder / "metrics.jsonl", curves)
    if samples:
        write_lines(folder / "samples.jsonl", samples)
    if done:
        (folder / "DONE").write_text("{}", encoding="utf-8")
    return name


def curves(generator: np.random.Generator, extra: str | None) -> list[dict]:
    rows = []
    for step in range(1, 41):
        row = {
            "step": step,
            "time": step * 1.0,
            "split": "train",
            "loss": float(0.3 + 0.4 * np.exp(-step / 10) + 0.02 * generator.normal()),
        }
        if extra:
            row[extra] = float(1.5 * (1 - np.exp(-step / 12)) + 0.05 * generator.normal())
        rows.append(row)
    return rows


def text(generator: np.random.Generator, gold: float, length: int) -> str:
    mood = GOOD if gold > 0 else BAD
    words = [
        str(generator.choice(mood if generator.random() < 0.3 else PLAIN)) for _ in range(length)
    ]
    return " " + " ".join(words) + ". <script>alert('x')</script> & done."


def samples(
    seed: int,
    shift: float,
    audit: float,
    kl: float,
    factor: float,
    prompts: int,
    proxy: float | None = None,
) -> list[dict]:
    """Rows of an evaluation; ``proxy`` is the proxy's own gain where it is not that of gold."""
    gain = 1.2 * shift if proxy is None else proxy
    rows = []
    for index in range(prompts):
        shared = np.random.default_rng(index)
        own = np.random.default_rng(zlib.crc32(f"{seed} {shift} {index}".encode()))
        base = shared.normal(0.1, 0.25)
        gold = float(np.clip(base + shift + 0.25 * own.normal(), -1, 1))
        tokens = int(np.clip(30 * factor + 6 * own.normal(), 4, 48))
        rows.append(
            {
                "prompt_id": f"r{index:03d}",
                "prompt": OPENINGS[index % len(OPENINGS)] + f" {index}",
                "sample": 0,
                "completion": text(own, gold, tokens),
                "tokens": tokens,
                "finished": bool(own.random() > 0.04),
                "gold": gold,
                "audit": float(base + audit * shift + 0.2 * own.normal()),
                "proxy": float(2 * (base + gain) + 0.5 * own.normal()),
                "kl": float(kl + 0.3 * kl * own.normal()) if kl else 0.0,
            }
        )
    return rows


def write_study(
    root: Path,
    *,
    name: str = "demo",
    seeds: int = 2,
    prompts: int = 60,
    missing: bool = True,
    grids: bool = False,
    judged: bool = False,
    benchmarked: bool = False,
    searched: bool = False,
) -> None:
    """SFT, six methods and best-of-8; one SimPO run never started (``missing``).

    ``grids`` adds β sweeps and more n, of which one run diverges; ``searched`` puts a select run
    behind DPO and PPO; ``judged`` and ``benchmarked`` assess whatever was evaluated.
    """
    import fake_grids

    jobs = []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        tag = f"{seed}a"
        stages = {
            "sft": write_run(
                root,
                "sft",
                tag,
                label="SFT",
                inputs={},
                seed=seed,
                curves=curves(generator, None),
                config={"seed": seed, "epochs": 1.0},
            )
        }
        stages["annotate"] = write_run(
            root,
            "annotate",
            tag,
            label="annotate",
            inputs={"policy": stages["sft"]},
            seed=seed,
            tokens_sampled=200_000,
            tokens_trained=0,
        )
        stages["reward"] = write_run(
            root,
            "reward",
            tag,
            label="reward model",
            seed=seed,
            inputs={"init": stages["sft"], "annotations": stages["annotate"]},
            curves=curves(generator, "accuracy"),
        )
        score = {
            "kind": "evaluate",
            "seed": seed,
            "config": {"seed": seed, "samples": 1, "temperature": 1.0, "split": "test"},
            "summary": {"reference_nll": 3.1 + 0.01 * seed},
        }
        stages["evaluate_sft"] = write_run(
            root,
            key=f"{tag}-sft",
            label="SFT",
            samples=samples(seed, 0.0, 0, 0.0, 1.0, prompts),
            inputs={
                "policy": stages["sft"],
                "reference": stages["sft"],
                "reward": stages["reward"],
            },
            **score,
        )
        stages["evaluate_bon"] = write_run(
            root,
            key=f"{tag}-bon",
            label="best of 8",
            samples=samples(seed, 0.3, 0.7, 0.0, 1.0, prompts),
            inputs={
                "policy": stages["sft"],
                "reference": stages["sft"],
                "reward": stages["reward"],
            },
            best_of=8,
            tokens_sampled=90_000,
            **score,
        )
        for method, (label, kind, shift, audit, kl, factor) in METHODS.items():
            online = kind in ("ppo", "grpo")
            config = {
                "seed": seed,
                "epochs": 2.0,
                "objective": {"_target_": f"alignlab.{method}", "beta": 0.1},
                "optimizer": {"learning_rate": 5e-5},
                "inputs": {"reference": "sft"},
            }
            if online:
                config["kl_coef"] = config.pop("objective")["beta"]
            stages[method] = write_run(
                root,
                kind,
                f"{tag}-{method}",
                label=label,
                seed=seed,
                config=config,
                inputs={"reference": stages["sft"], "annotations": stages["annotate"]},
                curves=curves(generator, "reward" if online else "margin"),
                tokens_sampled=400_000 * online,
                seconds=120.0 if online else 40.0,
                reference=stages["sft"],
            )
            if searched and method in ("dpo", "ppo"):
                stages[method] = fake_grids.write_search(root, stages, method, seed, prompts)
            stages[f"evaluate_{method}"] = write_run(
                root,
                key=f"{tag}-{method}",
                label=f"{label} (beta=0.1)",
                samples=samples(seed, shift + 0.02 * seed, audit, kl, factor, prompts),
                inputs={
                    "policy": stages[method],
                    "reference": stages["sft"],
                    "reward": stages["reward"],
                },
                **score,
            )
        if grids:
            fake_grids.write_grids(root, stages, seed, prompts, last=seed == seeds - 1)
        if judged:
            fake_grids.write_judgements(root, stages, seed)
        if benchmarked:
            fake_grids.write_benchmarks(root, stages, seed)
        if missing and seed == seeds - 1:
            stages["simpo"] = f"preference-{tag}-simpo"
            stages["evaluate_simpo"] = f"evaluate-{tag}-simpo"
        jobs.append({"overrides": [f"seed={seed}"], "seed": seed, "stages": stages})
    write_json(
        root / "studies" / name / "study.json",
        {
            "name": name,
            "created": "2026-11-20T10:00:00",
            "command": "alignlab run -m pipeline=compare seed=0,1",
            "overrides": ["pipeline=compare"],
            "jobs": jobs,
        },
    )
