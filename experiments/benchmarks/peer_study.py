"""The demo's study as scripts for TRL: one step, one process, as a person would write them.

``python peer_study.py JOB.json``. A step reads what earlier steps left in the job's folder and
leaves a model folder or a file there. SFT, annotation by sampling, reward model, four offline
methods, GRPO, PPO (TRL 1.9), evaluation. Text comes from files that alignlab's data wrote.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

OFFLINE = ("dpo", "ipo", "kto", "orpo")
STEPS = ("sft", "annotate", "reward", *OFFLINE, "grpo", "ppo", "evaluate")
POLICIES = ("sft", *OFFLINE, "ppo", "grpo")
ROWS = 256  # decoded together, as alignlab's sampling.batch


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


def generate(job: Job, model: Any, prompts: Sequence[str], count: int) -> list[list[str]]:
    """``count`` samples of every prompt, in batches of `ROWS`, longest prompts first."""
    import torch

    tokenizer = tokenizer_of(job)
    tokenizer.padding_side = "left"
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found: dict[int, list[str]] = {}
    width = max(1, ROWS // count)
    for first in range(0, len(order), width):
        part = order[first : first + width]
        inputs = tokenizer(
            [prompts[i] for i in part],
            return_tensors="pt",
            padding=True,
            return_token_type_ids=False,
        )
        with (
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16, enabled=job.dtype == "amp"),
        ):
            out = model.generate(
                **inputs,
                max_new_tokens=job.new_tokens,
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                num_return_sequences=count,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        for place, i in enumerate(part):
            found[i] = texts[place * count : (place + 1) * count]
    return [found[i] for i in range(len(prompts))]


def vader(texts: Sequence[str]) -> list[float]:
    """Gold reward of texts."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(text)["compound"] for text in texts]


def annotate(job: Job) -> None:
    """Samples of the SFT model, ranked by the gold reward with noise."""
    size = job.size["annotate"]
    prompts = [row["prompt"] for row in job.read("prompts")][: size["prompts"]]
    samples = generate(job, language_model(job.path("sft")), prompts, size["completions"])
    draw = random.Random(job.seed)
    noise, flip = job.noise
    rows = []
    for prompt, texts in zip(prompts, samples, strict=True):
        gumbel = [-math.log(-math.log(draw.random())) for _ in texts]
        seen = [s + noise * g for s, g in zip(vader(texts), gumbel, strict=True)]
        order = sorted(range(len(texts)), key=lambda i: -seen[i])
        if draw.random() < flip:
            order.reverse()
        rows.append({"prompt": prompt, "ranked": [texts[i] for i in order]})
    job.write("annotated", rows)


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


def evaluate(job: Job) -> None:
    """Every policy and best of n on the same prompts: gold, proxy, KL to the SFT model."""
    size = job.size["evaluate"]
    prompts = [row["prompt"] for row in job.read("test")][: size["prompts"]]
    judge, reference = scalar_model(job.path("reward")), language_model(job.path("sft"))
    rows = []
    for name in (*POLICIES, "best_of_n"):
        policy = language_model(job.path("sft" if name == "best_of_n" else name))
        count = size["best_of"] if name == "best_of_n" else 1
        samples = generate(job, policy, prompts, count)
        texts = [text for part in samples for text in part]
        owners = [p for p in prompts for _ in range(count)]
        proxy = scores(job, judge, owners, texts)
        if count > 1:
            best = [
                max(range(i, i + count), key=lambda j: proxy[j])
                for i in range(0, len(texts), count)
            ]
            texts, proxy = [texts[i] for i in best], [proxy[i] for i in best]
        kl = divergence(job, policy, reference, prompts, texts)
        gold = vader(texts)
        rows.append(
            {
                "policy": name,
                "gold": sum(gold) / len(gold),
                "proxy": sum(proxy) / len(proxy),
                "kl": sum(kl) / len(kl),
            }
        )
    job.write("scores", rows)


def padded(job: Job, prompts: Sequence[str], texts: Sequence[str]) -> Any:
    """Batches of token ids with their prompt lengths."""
    import torch

    tokenizer = tokenizer_of(job)
    for first in range(0, len(texts), 64):
        part = list(zip(prompts[first : first + 64], texts[first : first + 64], strict=True))
        starts = [len(tokenizer(p)["input_ids"]) for p, _ in part]
        batch = tokenizer([p + t for p, t in part], return_tensors="pt", padding=True)
        yield batch["input_ids"], batch["attention_mask"], torch.tensor(starts)


def scores(job: Job, judge: Any, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Learned reward of every completion."""
    import torch

    judge.eval()
    judge.config.pad_token_id = tokenizer_of(job).pad_token_id
    found: list[float] = []
    for ids, mask, _ in padded(job, prompts, texts):
        with torch.no_grad():
            found += judge(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
    return found


def divergence(
    job: Job, policy: Any, reference: Any, prompts: Sequence[str], texts: Sequence[str]
) -> list[float]:
    """Log-ratio of policy and reference of every completion, nats."""
    import torch

    found: list[float] = []
    for ids, mask, starts in padded(job, prompts, texts):
        place = torch.arange(ids.shape[1] - 1)[None, :]
        inside = (place >= starts[:, None] - 1) & (mask[:, 1:] > 0)
        total = torch.zeros(len(ids))
        for model, sign in ((policy, 1.0), (reference, -1.0)):
            model.eval()
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            logps = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            total += sign * (logps * inside).sum(-1)
        found += total.tolist()
    return found


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
