"""TRL's real trainers beside our real stages: one tiny Llama, the same rows, the same optimizer.

Both sides train for real: ours through `Lab.run` (a whole stage and its run folder), TRL's through
``trainer.train()``. What each optimizer step saw is read by a hook of torch's own optimizers, so
that gradients are taken at the same point on both sides: summed, clipped, about to be applied.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stage_lab import Caught, Lab, weights
from torch import Tensor

from alignlab.data.group import TokenGroup
from alignlab.data.order import step_rows
from alignlab.run import Run

WORDS = ["<pad>", "<bos>", "<eos>", *[f"w{n}" for n in range(29)]]
STEPS = 5


def tokenizer() -> Any:
    """One token per word; like Llama's, it starts a text with BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(WORDS[:3])
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def make_base(folder: Path) -> None:
    """A random two-layer Llama, far enough from uniform that a wrong formula shows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def write_pairs(path: Path, rows: int = 40, *, prompts: bool = True) -> None:
    """Pairs of unlike lengths; every prompt is another one, or (for ORPO) every prompt is empty."""
    source = random.Random(3)

    def words(most: int) -> str:
        return " ".join(f"w{source.randrange(29)}" for _ in range(source.randint(1, most)))

    lines = [
        {
            "prompt": f"w{n % 29} w{n // 29} {words(4)}" if prompts else "",
            "chosen": f" w{n % 29} {words(6)}",
            "rejected": f" w{n // 29} {words(6)}",
        }
        for n in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@dataclass
class Training:
    """What a training did, step by step, whoever did it."""

    start: dict[str, Tensor] = field(default_factory=dict)  # weights before the first step
    gradients: list[dict[str, Tensor]] = field(default_factory=list)  # of every step, clipped
    end: dict[str, Tensor] = field(default_factory=dict)  # weights after the last step
    logs: list[dict[str, float]] = field(default_factory=list)  # one line per step

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.logs]

    @property
    def norms(self) -> list[float]:
        """Norms of the gradients before clipping."""
        return [line["grad_norm"] for line in self.logs]


@contextmanager
def watched(named: Callable[[], Mapping[str, Tensor]]) -> Iterator[Training]:
    """Watch every optimizer step inside the block; ``named`` are the parameters by their names."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    seen = Training()

    def look(*_: Any) -> None:
        found = named()
        seen.start = seen.start or copies(found)
        seen.gradients.append({n: p.grad.clone() for n, p in found.items() if p.grad is not None})

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
    seen.end = copies(named())


def copies(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in named.items()}


def train_ours(
    lab: Lab, stage: Any, inputs: Mapping[str, Run], caught: Caught, view: str = "policy"
) -> Training:
    with watched(lambda: caught.backbone.trainable_parameters(view)) as training:
        run = lab.run(stage, inputs, log_every=1)
    training.logs = run.metrics("train")
    saved = {name.split("/")[-1]: value for name, value in weights(run).items()}
    for name, value in training.end.items():  # what the next stage reads is what was trained
        assert torch.equal(saved[name.removeprefix("head.")], value)
    return training


def train_theirs(trainer: Any) -> Training:
    with watched(lambda: dict(trainer.model.named_parameters())) as training:
        trainer.train()
    training.logs = [line for line in trainer.state.log_history if "loss" in line]
    return training


def arguments(stage: Any, folder: Path, steps: int = STEPS, **more: Any) -> dict[str, Any]:
    """A stage's optimizer as `TrainingArguments`: AdamW, constant rate, rows in the given order."""
    o = stage.optimizer
    assert (o.schedule, o.warmup, o.weight_decay, o.ema) == ("constant", 0, 0, None)
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "max_steps": steps,
        "learning_rate": o.learning_rate,
        "adam_beta1": o.betas[0],
        "adam_beta2": o.betas[1],
        "adam_epsilon": o.eps,
        "weight_decay": 0.0,
        "max_grad_norm": o.max_grad_norm,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "train_sampling_strategy": "sequential",
        **more,
    }


def in_order(work: Any, steps: int = STEPS) -> list[list[TokenGroup]]:
    """The groups of every optimizer step of an offline work."""
    rows = (step_rows(s, work.batch, len(work.groups), work.seed) for s in range(steps))
    return [[work.groups[row] for row in step] for step in rows]


def text(ids: Sequence[int] | np.ndarray) -> str:
    """Words of the ids, without BOS, EOS and padding."""
    return " ".join(WORDS[int(i)] for i in ids if i > 2)


def causal(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
