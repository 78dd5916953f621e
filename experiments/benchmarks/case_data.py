"""Rows of a case before they are tokens: dialogues, problems, reviews, or ids drawn at random."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cases import Case

if TYPE_CHECKING:
    from alignlab.data.group import PromptGroup, TokenGroup


def data_for(work: str, model: str) -> str:
    """Which data a work uses: long dialogues and problems for a real model, passages for small."""
    if model == "tiny":
        return "random"
    if model == "reviews_lm":
        return "reviews"
    return {"sft": "mixed", "grpo": "gsm8k", "sampling": "gsm8k", "ppo": "reviews"}.get(work, "hh")


def texts(case: Case, data_dir: Path | None) -> Iterator[PromptGroup]:
    """Rows of the data that the case names."""
    from alignlab.data.group import DEMONSTRATION, PromptGroup
    from alignlab.data.transcript import split_pair

    if case.data == "hh":
        for row in _lines(data_dir, "hh-rlhf", "harmless-base*.jsonl*"):
            prompt, chosen, rejected = split_pair(row["chosen"], row["rejected"])
            if chosen.strip() and rejected.strip() and chosen != rejected:
                yield PromptGroup(prompt, (chosen, rejected), id=prompt)
        return
    reviews = _reviews() if case.data in ("reviews", "mixed") else iter(())
    problems: Iterator[PromptGroup] = iter(())
    if case.data in ("gsm8k", "mixed"):
        problems = (
            PromptGroup(
                f"Question: {row['question']}\nAnswer:", (f" {row['answer']}",), DEMONSTRATION
            )
            for row in _lines(data_dir, "gsm8k", "train.jsonl*")
        )
    if case.data != "mixed":
        yield from reviews
        yield from problems
        return
    yield from (group for both in zip(reviews, problems, strict=False) for group in both)


def _reviews() -> Iterator[PromptGroup]:
    from alignlab.data.sources.reviews import Reviews
    from alignlab.stages.sft import demonstrations

    source = Reviews(
        prompt_words=8,
        completion_min_words=8,
        completion_words=40,
        sft_share=0.5,
        limit=dict.fromkeys(
            ("pretrain", "pretrain_validation", "sft", "preference", "validation", "test")
        ),
    )
    yield from demonstrations(source.load("sft"))


def _lines(data_dir: Path | None, name: str, pattern: str) -> Iterator[dict[str, Any]]:
    """Rows of a JSON lines file under ``data_dir``/name, gzipped or not."""
    found = sorted((data_dir / name).glob(pattern)) if data_dir else []
    if not found:
        raise SystemExit(
            f"This work needs {name}/{pattern} under --data-dir (now: {data_dir}). HH-RLHF is "
            "Anthropic/hh-rlhf, GSM8K openai/grade-school-math; or use --model reviews_lm, whose "
            "data come with a package."
        )
    opener = gzip.open if found[0].suffix == ".gz" else open
    with opener(found[0], "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def random_groups(case: Case, rows: int) -> list[TokenGroup]:
    """Groups of two short completions, ids without meaning."""
    from alignlab.data.group import DEMONSTRATION, TokenGroup

    draw = np.random.default_rng(case.seed)

    def ids(low: int, high: int) -> np.ndarray:
        return draw.integers(30, 259, draw.integers(low, high)).astype(np.int32)

    return [
        TokenGroup(
            prompt=ids(8, 40),
            completions=tuple(np.append(ids(3, 16), 2).astype(np.int32) for _ in range(2)),
            verdict=DEMONSTRATION,
            row=row,
            id=str(row),
        )
        for row in range(rows)
    ]
