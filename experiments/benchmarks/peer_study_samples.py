"""Scripts of TRL's study that sample: annotation and evaluation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from peer_study_setup import POLICIES, Job, language_model, scalar_model, tokenizer_of

ROWS = 256  # decoded together, as alignlab's sampling.batch


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
