"""TRL's side of GRPO, and `generate` of transformers."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
from cases import Case, fixed_completions, words
from peer_setup import Rows, arguments, clock, load_model, tokenizer_of, torch_dtype

PATTERN = re.compile(r"t\d*[05]\b")  # the reward of GRPO, as in ours.py


def grpo_trainer(
    job: Mapping[str, Any], folder: Path, case: Case, rows: Rows, scratch: str, callbacks: list[Any]
) -> Any:
    """``GRPOTrainer`` with the loss of the GRPO paper and no KL term."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def score(completions: list[str], **_: Any) -> list[float]:
        return [float(bool(PATTERN.search(text))) for text in completions]

    size = case.batch * case.group
    options = job["options"]
    settings = arguments(job, case, size, scratch)
    settings.pop("train_sampling_strategy")  # it has a sampler of its own
    more: dict[str, Any] = {}
    if options.get("cache"):
        more["cache_implementation"] = options["cache"]
    return GRPOTrainer(
        model=load_model(job, folder, case),
        reward_funcs=score,
        args=GRPOConfig(
            **settings,
            **more,
            shuffle_dataset=False,
            num_generations=case.group,
            max_completion_length=case.new_tokens,
            beta=0.0,
            epsilon=0.2,
            loss_type="grpo",
            scale_rewards="group",
            temperature=1.0,
            top_p=1.0,
            top_k=0,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": words(rows[r]["prompt"], case.eos)} for order in case.order for r in order]
        ),
        processing_class=tokenizer_of(folder),
        callbacks=callbacks,
    )


def grpo(job: Mapping[str, Any], folder: Path, case: Case, rows: Rows, answer: Path) -> None:
    """Rollout, score, update."""
    record = measure.Record()
    import trl

    _ = trl.GRPOTrainer
    record.imported()
    lengths: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        trainer = grpo_trainer(job, folder, case, rows, scratch, [clock(record)])
        trainer.train()
        lengths = [
            log["completions/mean_length"]
            for log in trainer.state.log_history
            if "completions/mean_length" in log
        ]
    size = case.batch * case.group
    record.facts["tokens_sampled"] = round(sum(lengths) * size)
    record.losses = []  # of other samples: not to be compared
    record.write(answer, float(size))


def fixed_rollouts(
    job: Mapping[str, Any], folder: Path, case: Case, rows: Rows, answer: Path
) -> None:
    """GRPO's loss on the completions, advantages and old log-probs that alignlab's side used."""
    record = measure.Record()
    import torch

    record.imported()
    fixed = json.loads((folder / "fixed.json").read_text(encoding="utf-8"))
    given = fixed_completions(case, rows)
    prompts = [prompt for prompt, completions in given for _ in completions]
    completions = [c for _, part in given for c in part]

    def padded(values: Sequence[Sequence[float]], fill: float, *, left: bool = False) -> Any:
        width = max(map(len, values))
        lines = []
        for value in values:
            space = [fill] * (width - len(value))
            lines.append([*space, *value] if left else [*value, *space])
        return torch.tensor(lines)

    batch = {
        "prompt_ids": padded(prompts, case.pad, left=True),
        "prompt_mask": padded([[1] * len(p) for p in prompts], 0, left=True),
        "completion_ids": padded(completions, case.pad),
        "completion_mask": padded([[1] * len(c) for c in completions], 0),
        "old_per_token_logps": padded(fixed["old"], 0.0),
        "advantages": torch.tensor(fixed["advantages"]),
        "num_items_in_batch": torch.tensor(sum(map(len, completions))),
    }
    whole = {**job, "options": {**job["options"], "rows": case.batch * case.group}}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = grpo_trainer(whole, folder, case, rows, scratch, [])
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, batch)
    record.step(float(loss))
    record.write(answer, 1.0)


def generate(job: Mapping[str, Any], folder: Path, case: Case, rows: Rows, answer: Path) -> None:
    """``generate`` of transformers in batches of 32, longest prompts first; greedy for parity."""
    record = measure.Record()
    import torch
    from transformers import AutoModelForCausalLM

    record.imported()
    options, parity = job["options"], job["mode"] == "parity"
    model = load_model(job, folder, case) if case.adapter == "lora" else None
    if model is None:
        source = folder / "store" / "sft-000000" / "model"
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch_dtype(job))
    elif options.get("merged"):
        model = model.merge_and_unload()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.eval().to(device)
    size = int(options.get("batch", 32))
    prompts = [row["prompt"] for row in rows]
    order = list(range(len(prompts)))
    if not options.get("default"):
        order.sort(key=lambda i: -len(prompts[i]))
    more = {"cache_implementation": options["cache"]} if options.get("cache") else {}
    if not parity:
        more |= {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    reduced = options.get("dtype") == "amp" and not parity
    autocast = torch.autocast(device, torch.bfloat16, enabled=reduced)

    def run(chosen: Sequence[int]) -> dict[int, list[int]]:
        found = {}
        for first in range(0, len(chosen), size):
            part = chosen[first : first + size]
            width = max(len(prompts[i]) for i in part)
            ids = torch.full((len(part), width), case.pad)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(part):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            with torch.no_grad(), autocast:
                out = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=case.new_tokens,
                    eos_token_id=list(case.stop),
                    pad_token_id=case.pad,
                    **({"do_sample": False} | more),
                )
            for i, line in zip(part, out[:, width:].tolist(), strict=True):
                end = next((n + 1 for n, x in enumerate(line) if x in case.stop), len(line))
                found[i] = line[:end]
        return found

    torch.manual_seed(case.seed)
    if not parity:
        run(order[:4])
        record.step(items=0.0)
    sampled = run(order)
    tokens = sum(map(len, sampled.values()))
    record.step(items=float(tokens))
    record.facts |= {"dtype": options.get("dtype", "float32"), "tokens_sampled": tokens}
    if parity:
        record.facts["sampled_ids"] = [sampled[i] for i in range(len(prompts))]
    record.write(answer)
