"""What both sides are given: the same weights, the same token ids in the same order, one folder.

A case is made once (`make_case.py`), by alignlab's own tokenisation, and then read by processes
that do not know of each other. Token ids travel as words (``t17 t5 <eos>``) with a tokenizer of one
word per id, so that trainers which insist on text get exactly these ids, whatever they do with it.

::

    <case>/case.json      sizes, hyperparameters, and which rows every optimizer step sees
      groups.jsonl        {"prompt": ids, "completions": [ids, …]}, the rows
      model/              the base model with the tokenizer of words
      store/              alignlab's view of the same: an SFT run (adapter and scalar head, or all
                          weights) and an annotate run, both finished
      rows.jsonl          prompt and completion as words, for stages that read text
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAIRWISE = ("dpo", "ipo", "simpo")
ONLINE = ("grpo", "ppo")
WORKS = ("dpo", "reward_k4", "reward_k9", "kto", "sft", "grpo", "sampling", "ppo", "study")
EXTRA = ("ipo", "simpo")
MAX_PROMPT, MAX_COMPLETION = 512, 256  # conf/tokens/dialogue.yaml


@dataclass(frozen=True)
class Size:
    """How much of a work is done: prompt groups per update, updates (the first is not timed)."""

    batch: int
    updates: int
    new_tokens: int = 0  # of every sampled completion, at most
    group: int = 1  # sampled completions per prompt


SIZES: dict[str, dict[str, Size]] = {
    "smollm2": {
        "dpo": Size(8, 6),
        "reward_k4": Size(4, 5),
        "reward_k9": Size(2, 4),
        "kto": Size(4, 6),
        "sft": Size(32, 5),
        "grpo": Size(4, 4, new_tokens=64, group=8),
        "sampling": Size(192, 2, new_tokens=128),
        "ppo": Size(64, 3, new_tokens=48),
    },
    "reviews_lm": {
        "dpo": Size(32, 8),
        "reward_k4": Size(16, 8),
        "reward_k9": Size(8, 8),
        "kto": Size(32, 8),
        "sft": Size(64, 8),
        "grpo": Size(16, 6, new_tokens=48, group=8),
        "sampling": Size(128, 2, new_tokens=64),
        "ppo": Size(64, 4, new_tokens=48),
    },
    "tiny": {
        "dpo": Size(4, 4),
        "reward_k4": Size(2, 4),
        "reward_k9": Size(2, 4),
        "kto": Size(4, 4),
        "sft": Size(8, 4),
        "grpo": Size(2, 3, new_tokens=12, group=8),
        "sampling": Size(12, 2, new_tokens=24),
        "ppo": Size(8, 3, new_tokens=12),
    },
}


@dataclass(frozen=True)
class Case:
    """Everything that both sides must agree on; ``case.json`` holds exactly this."""

    work: str
    model: str
    adapter: str  # lora or full
    data: str
    batch: int
    updates: int
    new_tokens: int
    group: int
    seed: int
    eos: int
    pad: int
    stop: list[int]  # ids that end a sampled completion (sampling alone)
    order: list[list[int]]  # rows of every update
    learning_rate: float
    beta: float = 0.1
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Folder name, and the key of the row in results.json."""
        return f"{self.work}-{self.model}-{self.adapter}-{self.data}"


def load(folder: Path) -> tuple[Case, list[dict[str, Any]]]:
    """Read a case and its rows. Needs nothing but the standard library and numpy."""
    case = Case(**json.loads((folder / "case.json").read_text(encoding="utf-8")))
    with (folder / "groups.jsonl").open(encoding="utf-8") as file:
        return case, [json.loads(line) for line in file]


def fixed_completions(
    case: Case, rows: Sequence[Mapping[str, Any]]
) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts of the first update, each with G completions of the data, of differing lengths."""
    pool = [row["completions"][0] for row in rows]
    given = []
    for place, row in enumerate(case.order[0]):
        parts = [pool[(place * case.group + k) % len(pool)] for k in range(case.group)]
        shortened = [
            [*part[: case.new_tokens - 1][: 3 + 5 * k], case.eos] for k, part in enumerate(parts)
        ]
        given.append((rows[row]["prompt"], shortened))
    return given


def words(ids: Sequence[int], eos: int) -> str:
    """Token ids as words; the tokenizer of the case's model folder reads them back."""
    return " ".join("<eos>" if i == eos else f"t{i}" for i in ids)


def size_of(work: str, model: str) -> Size:
    """Size of a work; the relatives of DPO have DPO's."""
    return SIZES[model]["dpo" if work in EXTRA else work]
