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
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import measure
from cases import Case, load, words
from peer_online import fixed_rollouts, generate, grpo
from peer_setup import Rows, arguments, clock, load_model, tokenizer_of


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


def reference_options(job: Mapping[str, Any]) -> dict[str, Any]:
    """Reference log-probs before training where TRL is tuned; as it ships, in every step."""
    return {} if job["options"].get("default") else {"precompute_ref_log_probs": True}


def pairs(job: Mapping[str, Any], folder: Path, case: Case, rows: Rows, answer: Path) -> None:
    """DPO and IPO: ``DPOTrainer``."""
    record = measure.Record()
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    record.imported()
    data = pairs_as_words(case, rows)
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


def pairs_as_words(case: Case, rows: Rows) -> list[dict[str, str]]:
    """Pairs in the order of training, written with the words of the case's tokenizer."""
    return [
        {
            "prompt": words(rows[r]["prompt"], case.eos),
            "chosen": " " + words(rows[r]["completions"][0], case.eos),
            "rejected": " " + words(rows[r]["completions"][1], case.eos),
        }
        for order in case.order
        for r in order
    ]


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
    data = pairs_as_words(case, rows)
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
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
