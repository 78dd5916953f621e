"""The demo's study as scripts for TRL: one step, one process, as a person would write them.

``python peer_study.py JOB.json``. A step reads what earlier steps left in the job's folder and
leaves a model folder or a file there. SFT, annotation by sampling, reward model, four offline
methods, GRPO, PPO (TRL 1.9), evaluation. Text comes from files that alignlab's data wrote.
"""

from __future__ import annotations

import json
import math
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

from peer_study_samples import annotate, evaluate
from peer_study_setup import Job, finish, language_model, scalar_model, tokenizer_of


def sft(job: Job) -> None:
    """Demonstrations, completion-only loss, padding-free batches."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    size = job.size["sft"]
    trainer = SFTTrainer(
        model=language_model(job.base),
        args=SFTConfig(
            **job.arguments(size["batch"], num_train_epochs=size["epochs"]),
            completion_only_loss=True,
            max_length=None,
        ),
        train_dataset=Dataset.from_list(job.read("sft_rows")[: size["rows"]]),
        processing_class=tokenizer_of(job),
    )
    trainer.train()
    finish(job, trainer)


def reward(job: Job) -> None:
    """All pairs of every ranking."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    size = job.size["reward"]
    data = [
        {"prompt": row["prompt"], "chosen": better, "rejected": worse}
        for row in job.read("annotated")
        for better, worse in combinations(row["ranked"], 2)
    ]
    pairs = math.comb(job.size["annotate"]["completions"], 2)
    trainer = RewardTrainer(
        model=scalar_model(job.path("sft")),
        args=RewardConfig(**job.arguments(size["batch"] * pairs, num_train_epochs=size["epochs"])),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer_of(job),
    )
    trainer.train()
    finish(job, trainer)


def offline(job: Job) -> None:
    """DPO, IPO, KTO or ORPO on the best and the worst of every ranking."""
    from datasets import Dataset

    size = job.size["preference"]
    rows = job.read("annotated")
    pairs = [
        {"prompt": r["prompt"], "chosen": r["ranked"][0], "rejected": r["ranked"][-1]} for r in rows
    ]
    epochs = {"num_train_epochs": size["epochs"]}
    model, tokenizer = language_model(job.path("sft")), tokenizer_of(job)
    trainer: Any
    if job.step == "kto":
        from trl import KTOConfig, KTOTrainer

        data = [
            {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
            for p in pairs
            for side in ("chosen", "rejected")
        ]
        settings = job.arguments(2 * size["batch"], **epochs)
        trainer = KTOTrainer(
            model=model,
            args=KTOConfig(**settings, beta=job.kl["kto"], precompute_ref_log_probs=True),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
        )
    elif job.step == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        settings = job.arguments(size["batch"], **epochs)
        trainer = ORPOTrainer(
            model=model,
            args=ORPOConfig(**settings, beta=job.kl["orpo"], max_length=128),
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
        )
    else:
        from trl import DPOConfig, DPOTrainer

        settings = job.arguments(size["batch"], **epochs)
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                **settings,
                beta=job.kl[job.step],
                loss_type=["sigmoid" if job.step == "dpo" else "ipo"],
                precompute_ref_log_probs=True,
            ),
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
        )
    trainer.train()
    finish(job, trainer)


def grpo(job: Job) -> None:
    """Against the learned reward."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    size = job.size["grpo"]
    prompts = [{"prompt": row["prompt"]} for row in job.read("prompts")[: size["prompts"]]]
    batch = size["rollout_batch"] * size["group"]
    trainer = GRPOTrainer(
        model=language_model(job.path("sft")),
        reward_funcs=scalar_model(job.path("reward")),
        args=GRPOConfig(
            **job.arguments(batch, max_steps=size["iterations"]),
            num_generations=size["group"],
            max_completion_length=job.new_tokens,
            beta=job.kl["grpo"],
            loss_type="grpo",
            scale_rewards="group",
            temperature=1.0,
            top_p=1.0,
            top_k=0,
        ),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer_of(job),
        reward_processing_classes=tokenizer_of(job),
    )
    trainer.train()
    finish(job, trainer)


def ppo(job: Job) -> None:
    """Policy, reference, reward model and critic, with TRL 1.9."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    size = job.size["ppo"]
    tokenizer = tokenizer_of(job)
    tokenizer.padding_side = "left"
    prompts = [row["prompt"] for row in job.read("prompts")[: size["prompts"]]]
    data = [{"input_ids": tokenizer(text)["input_ids"]} for text in prompts]
    batch = size["rollout_batch"]
    rows = min(job.rows, batch // size["minibatches"])
    settings = job.arguments(batch)
    settings |= {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": batch // rows,
    }
    trainer = PPOTrainer(
        args=PPOConfig(
            **settings,
            num_mini_batches=size["minibatches"],
            num_ppo_epochs=size["ppo_epochs"],
            total_episodes=size["iterations"] * batch,
            num_sample_generations=0,
            local_rollout_forward_batch_size=batch,
            response_length=job.new_tokens,
            stop_token="eos",
            temperature=1.0,
            kl_coef=job.kl["ppo"],
            missing_eos_penalty=1.0,
        ),
        processing_class=tokenizer,
        model=language_model(job.path("sft")),
        ref_model=language_model(job.path("sft")),
        reward_model=scalar_model(job.path("reward")).eval(),
        value_model=scalar_model(job.path("reward")),
        train_dataset=Dataset.from_list(data),
        eval_dataset=Dataset.from_list(data[:1]),
    )
    trainer.train()
    finish(job, trainer)


def main() -> None:
    """Do one step."""
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(given["threads"])
    torch.manual_seed(given["seed"])
    job = Job(given)
    {"sft": sft, "annotate": annotate, "reward": reward, "grpo": grpo, "ppo": ppo}.get(
        job.step, evaluate if job.step == "evaluate" else offline
    )(job)


if __name__ == "__main__":
    main()
