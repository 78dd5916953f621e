"""TRL's side: its real trainers through their documented arguments. One process, one answer.

``python peer.py JOB.json ANSWER.json``. Knows nothing of alignlab: it reads the folder of a case
(`cases`), so it also runs in an environment that has only TRL (PPO: an older one).

A job's ``options`` say how TRL is set up. ``{"default": true}`` is TRL as it ships: bf16 autocast
over float32 weights, gradient checkpointing, eight rows per device, no precomputed reference. Else:

- ``dtype``: ``float32``; ``amp`` = bf16 autocast over float32 weights; ``bfloat16`` = bf16 autocast
  over bf16 weights (adapters stay float32);
- ``rows``: rows of a micro-batch (the rest of an update is accumulated);
- ``attention``: ``sdpa`` or ``eager``; ``packing``: SFT's strategy, or ``padding_free``;
- ``cache``: cache implementation of generation.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import measure
from cases import Case, fixed_completions, load, words

Rows = Sequence[Mapping[str, Any]]
PATTERN = re.compile(r"t\d*[05]\b")  # the reward of GRPO, as in ours.py


def main(job: Mapping[str, Any], answer: Path) -> None:
    """Do what ``job`` says and write the answer."""
    folder = Path(job["case"])
    case, rows = load(folder)
    import torch

    torch.set_num_threads(job["threads"])
    if case.work == "sampling":
        generate(job, folder, case, rows, answer)
    elif case.work == "grpo" and job["mode"] == "parity":
        fixed_rollouts(job, folder, case, rows, answer)
    elif case.work == "ppo":
        import peer_ppo

        peer_ppo.main(job, folder, case, rows, answer)
    else:
        TRAININGS[case.work](job, folder, case, rows, answer)


def torch_dtype(job: Mapping[str, Any]) -> Any:
    """Number format of the weights as loaded."""
    import torch

    pure = job["options"].get("dtype") == "bfloat16" and job["mode"] != "parity"
    return torch.bfloat16 if pure else torch.float32


def load_model(job: Mapping[str, Any], folder: Path, case: Case, *, head: bool = False) -> Any:
    """The policy both sides start from, as a person would load it for TRL."""
    import transformers
    from peft import PeftModel

    source = folder / "store" / "sft-000000" / "model"
    base = folder / "model" if case.adapter == "lora" else source
    kind = "AutoModelForSequenceClassification" if head else "AutoModelForCausalLM"
    more: dict[str, Any] = {"num_labels": 1} if head else {}
    if attention := job["options"].get("attention"):
        more["attn_implementation"] = attention
    model = getattr(transformers, kind).from_pretrained(base, dtype=torch_dtype(job), **more)
    if case.adapter == "lora" and not head:
        return PeftModel.from_pretrained(model, str(source), is_trainable=True)
    if head:
        model = with_head(model, source, case)
    return model


def with_head(model: Any, source: Path, case: Case) -> Any:
    """A sequence classifier with the case's adapter and the weights of its scalar head.

    alignlab's head also has a bias, which starts at zero and cancels in every difference of two
    scores.
    """
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    weight = load_file(source / "head.safetensors")["linear.weight"]
    with torch.no_grad():
        model.score.weight.copy_(weight)
    if case.adapter == "full":
        return model
    config = LoraConfig.from_pretrained(str(source))
    config.inference_mode, config.task_type = False, "SEQ_CLS"
    config.modules_to_save = ["score"]
    model = get_peft_model(model, config)
    state = load_file(source / "adapter_model.safetensors")
    state["base_model.model.score.weight"] = weight
    loaded: Any = set_peft_model_state_dict(model, state)
    missing = [name for name in loaded.missing_keys if "lora_" in name]
    if missing or loaded.unexpected_keys:
        raise SystemExit(f"the adapter does not fit: {missing or loaded.unexpected_keys}")
    return model


def tokenizer_of(folder: Path) -> Any:
    """The case's tokenizer of words."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "model")


def arguments(job: Mapping[str, Any], case: Case, rows: int, scratch: str) -> dict[str, Any]:
    """Arguments that every trainer of a job gets; ``rows`` are the rows of one update."""
    import torch

    options = job["options"]
    default = bool(options.get("default"))
    per_device = min(int(options.get("rows") or 8), rows)
    if rows % per_device:
        raise SystemExit(f"{per_device} rows per device do not divide an update of {rows}")
    shared = {
        "output_dir": scratch,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,  # the losses are needed
        "max_steps": job.get("updates") or case.updates,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": rows // per_device,
        "learning_rate": options.get("learning_rate", case.learning_rate),
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": case.seed,
        "train_sampling_strategy": "sequential",  # the same rows in the same update
    }
    if not default:
        shared |= {"bf16": options["dtype"] != "float32", "gradient_checkpointing": False}
        shared |= {"dataloader_pin_memory": False}
    if job["mode"] == "parity":
        shared |= {"bf16": False, "gradient_checkpointing": False}
    return shared


def clock(record: measure.Record) -> Any:
    """A callback that notes the end of every optimizer step, its loss and gradient norm."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            record.step()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                record.losses.append(float(logs["loss"]))
                record.norms.append(float(logs["grad_norm"]))

    return Clock()


def reference_options(job: Mapping[str, Any]) -> dict[str, Any]:
    """Reference log-probs before training where TRL is tuned; as it ships, in every step."""
    return {} if job["options"].get("default") else {"precompute_ref_log_probs": True}


def pairs(job: Mapping[str, Any], folder: Path, case: Case, rows: Rows, answer: Path) -> None:
    """DPO and IPO: ``DPOTrainer``."""
    record = measure.Record()
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    record.imported()
    data = [
        {
            "prompt": words(rows[r]["prompt"], case.eos),
            "chosen": " " + words(rows[r]["completions"][0], case.eos),
            "rejected": " " + words(rows[r]["completions"][1], case.eos),
        }
        for order in case.order
        for r in order
    ]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DPOTrainer(
            model=load_model(job, folder, case),
            args=DPOConfig(
                **arguments(job, case, case.batch, scratch),
                **reference_options(job),
                beta=case.beta,
                loss_type=["sigmoid" if case.work == "dpo" else case.work],
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer_of(folder),
            callbacks=[clock(record)],
        )
        same = zip(trainer.train_dataset, (r for o in case.order for r in o), strict=True)
        for theirs, row in same:
            same_ids(theirs["prompt_ids"] + theirs["chosen_ids"], rows[row], 0)
            same_ids(theirs["prompt_ids"] + theirs["rejected_ids"], rows[row], 1)
        trainer.train()
    record.write(answer, float(case.batch))


def same_ids(theirs: Sequence[int], row: Mapping[str, Any], completion: int) -> None:
    """Stop unless the trainer's token ids are the case's."""
    if list(theirs) != [*row["prompt"], *row["completions"][completion]]:
        raise SystemExit("the trainer's token ids are not the case's: nothing can be compared")


def simpo(job: Mapping[str, Any], folder: Path, case: Case, rows: Rows, answer: Path) -> None:
    """SimPO: ``CPOTrainer`` of ``trl.experimental``."""
    record = measure.Record()
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    record.imported()
    data = [
        {
            "prompt": words(rows[r]["prompt"], case.eos),
            "chosen": " " + words(rows[r]["completions"][0], case.eos),
            "rejected": " " + words(rows[r]["completions"][1], case.eos),
        }
        for order in case.order
        for r in order
    ]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = CPOTrainer(
            model=load_model(job, folder, case),
            args=CPOConfig(
                **arguments(job, case, case.batch, scratch),
                loss_type="simpo",
                beta=2.0,
                simpo_gamma=1.0,
                cpo_alpha=0.0,
                max_length=1024,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer_of(folder),
            callbacks=[clock(record)],
        )
        trainer.train()
    record.write(answer, float(case.batch))


def reward(job: Mapping[str, Any], folder: Path, case: Case, rows: Rows, answer: Path) -> None:
    """``RewardTrainer`` on all pairs of every ranking, as rows of their own."""
    record = measure.Record()
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    record.imported()
    data, sizes = [], []
    for order in case.order:
        before = len(data)
        for r in order:
            prompt, completions = rows[r]["prompt"], rows[r]["completions"]
            ranked = sorted(range(len(completions)), key=lambda i, r=r: ranks_of(case, r)[i])
            data += [
                {"chosen_ids": prompt + completions[a], "rejected_ids": prompt + completions[b]}
                for a, b in combinations(ranked, 2)
            ]
        sizes.append(len(data) - before)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = RewardTrainer(
            model=load_model(job, folder, case, head=True),
            args=RewardConfig(**arguments(job, case, sizes[0], scratch)),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer_of(folder),
            callbacks=[clock(record)],
        )
        if len(trainer.train_dataset) != len(data):
            raise SystemExit("the trainer dropped rows: nothing can be compared")
        trainer.train()
    record.write(answer, float(sizes[0]))


def ranks_of(case: Case, row: int) -> list[int]:
    """Ranks of a row's completions, as `cases` drew them."""
    import numpy as np

    completions = 4 if case.work == "reward_k4" else 9
    return np.random.default_rng([case.seed, row]).permutation(completions).tolist()


def kto(job: Mapping[str, Any], folder: Path, case: Case, rows: Rows, answer: Path) -> None:
    """``KTOTrainer``, whose micro-batch is the whole update.

    Its KL point pairs every prompt with the completion before it in the micro-batch, alignlab's
    with those of the next prompt of the step. So the prompts go in backwards, first with their
    chosen and then with their rejected completions: both then average the same log-ratios.
    """
    record = measure.Record()
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    record.imported()
    data = [
        {
            "prompt": words(rows[r]["prompt"], case.eos),
            "completion": " " + words(rows[r]["completions"][c], case.eos),
            "label": c == 0,
        }
        for order in case.order
        for c in (0, 1)
        for r in reversed(order)
    ]
    size = 2 * case.batch
    whole = {**job, "options": {**job["options"], "rows": size}}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = KTOTrainer(
            model=load_model(job, folder, case),
            args=KTOConfig(
                **arguments(whole, case, size, scratch), **reference_options(job), beta=case.beta
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer_of(folder),
            callbacks=[clock(record)],
        )
        trainer.train()
    record.write(answer, float(size))


def sft(job: Mapping[str, Any], folder: Path, case: Case, rows: Rows, answer: Path) -> None:
    """``SFTTrainer``: padded, padding-free, or packed.

    Packing puts rows together as it likes, so single updates cannot be compared: then the losses,
    weighted by their tokens, must have the same mean over the whole epoch at a learning rate of
    zero (the runner asks for that).
    """
    record = measure.Record()
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    record.imported()
    data = [
        {
            "input_ids": rows[r]["prompt"] + rows[r]["completions"][0],
            "completion_mask": [0] * len(rows[r]["prompt"]) + [1] * len(rows[r]["completions"][0]),
        }
        for order in case.order
        for r in order
    ]
    strategy = job["options"].get("packing")
    more: dict[str, Any] = {"completion_only_loss": True}
    size = case.batch
    if strategy == "padding_free":
        more |= {"padding_free": True, "max_length": None}
    elif strategy:
        length = int(job["options"].get("length", 1024))
        longest = max(len(row["input_ids"]) for row in data)
        more |= {"packing": True, "packing_strategy": strategy, "max_length": max(length, longest)}
    with tempfile.TemporaryDirectory() as scratch:
        settings = arguments(job, case, size, scratch)
        if strategy and strategy != "padding_free":
            total = sum(len(row["input_ids"]) for row in data)
            bins = -(-total // more["max_length"])
            settings["per_device_train_batch_size"] = 1
            settings["gradient_accumulation_steps"] = max(1, -(-bins // case.updates))
            settings |= {"max_steps": -1, "num_train_epochs": 1}
        trainer = SFTTrainer(
            model=load_model(job, folder, case),
            args=SFTConfig(**settings, **more),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer_of(folder),
            callbacks=[clock(record)],
        )
        counts = trained_tokens(trainer)
        trainer.train()
    per_update = settings["gradient_accumulation_steps"]
    record.items = [
        float(sum(counts[u * per_update : (u + 1) * per_update])) for u in range(len(record.ends))
    ]
    record.facts["tokens_trained"] = sum(counts)
    record.facts["epoch_loss"] = sum(
        loss * n for loss, n in zip(record.losses, record.items, strict=True)
    ) / max(sum(record.items), 1)
    record.facts["same_rows_per_update"] = not strategy or strategy == "padding_free"
    record.write(answer)


def trained_tokens(trainer: Any) -> list[int]:
    """Count the tokens of the loss in every micro-batch, as the trainer forwards it."""
    counts: list[int] = []
    compute = trainer.compute_loss

    def counting(model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
        counts.append(int((inputs["labels"][:, 1:] != -100).sum()))
        return compute(model, inputs, *args, **named)

    trainer.compute_loss = counting
    return counts


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
    autocast = torch.autocast(device, torch.bfloat16, enabled=options.get("dtype") == "amp")

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


TRAININGS = {
    "dpo": pairs,
    "ipo": pairs,
    "simpo": simpo,
    "reward_k4": reward,
    "reward_k9": reward,
    "kto": kto,
    "sft": sft,
    "grpo": grpo,
}

if __name__ == "__main__":
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
