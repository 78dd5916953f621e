"""What every script of TRL's study needs: its settings, models and places."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OFFLINE = ("dpo", "ipo", "kto", "orpo")
STEPS = ("sft", "annotate", "reward", *OFFLINE, "grpo", "ppo", "evaluate")
POLICIES = ("sft", *OFFLINE, "ppo", "grpo")


class Job:
    """One step's settings and places."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.folder = Path(given["folder"])
        self.step: str = given["step"]
        self.base: str = given["base"]
        self.size: Mapping[str, Any] = given["size"]
        self.rates: Mapping[str, float] = given["rates"]
        self.new_tokens: int = given["new_tokens"]
        self.dtype: str = given["dtype"]  # amp or float32
        self.rows: int = given["rows"]  # of a micro-batch
        self.noise: tuple[float, float] = tuple(given["noise"])  # of the annotator, and its flips
        self.kl: Mapping[str, float] = given["kl"]
        self.seed: int = given["seed"]

    def read(self, name: str) -> list[dict[str, Any]]:
        """Rows of a JSON lines file of the study."""
        lines = (self.folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write such a file."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def path(self, name: str) -> str:
        """Model folder of a step."""
        return str(self.folder / name)

    def arguments(self, batch: int, **more: Any) -> dict[str, Any]:
        """Arguments of every trainer; ``batch`` rows per optimizer step."""
        rows = math.gcd(min(self.rows, batch), batch)
        return {
            "output_dir": str(self.folder / f"{self.step}-state"),
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_steps": 50,
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": batch // rows,
            "learning_rate": self.rates[self.step],
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "adam_beta1": 0.9,
            "adam_beta2": 0.95,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "bf16": self.dtype == "amp",
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "seed": self.seed,
            **more,
        }


def language_model(path: str) -> Any:
    """A policy in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def scalar_model(path: str) -> Any:
    """A reward model or critic in float32."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        path, dtype=torch.float32, num_labels=1
    )
    return model


def tokenizer_of(job: Job) -> Any:
    """The tokenizer, padded on the left for sampling."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def finish(job: Job, trainer: Any) -> None:
    """Save what was trained."""
    trainer.save_model(job.path(job.step))
