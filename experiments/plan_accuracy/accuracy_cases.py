"""What is measured: two models, what of them is trained, arithmetic, and token budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One composition of the three pipelines that have all stages between them."""

    backbone: str
    adapter: str
    dtype: str
    budget: int

    @property
    def name(self) -> str:
        """Folder of its runs."""
        return f"{self.backbone}-{self.adapter}-{self.dtype}-{self.budget}"

    def jobs(self, rows: Path) -> list[list[str]]:
        """Overrides of its jobs on a file: SFT, annotation, reward, DPO, PPO, GRPO, evaluation."""
        common = [
            "data=file", f"data.path={rows}", "data.validation=0.1", "data.test=0.1",
            f"backbone={self.backbone}", f"adapter={self.adapter}",
            f"backbone.dtype={self.dtype}", f"engine.token_budget={self.budget}",
            "engine.device=cpu", "engine.threads=1", "engine.progress=false",
            "tracking=disabled", "report=false", *SIZES[self.backbone],
        ]  # fmt: skip
        return [
            [*common, "pipeline=instructgpt"],
            [*common, "pipeline=instructgpt", "stage@stages.policy=grpo"],
            [*common, "pipeline=preference"],
        ]


# A step takes about as many tokens as the larger budget: one micro-batch there, several under the
# smaller one. The second step is the first with optimizer states.
SIZES = {
    "reviews_lm": [
        "tokens.max_prompt=24",
        "tokens.max_completion=48",
        "size.sft={rows:128,batch:57,epochs:1.0,steps:2,evaluate_every:0,evaluate_rows:16}",
        "size.annotate={prompts:64,completions:4}",
        "size.reward={batch:20,epochs:1.0,steps:2}",
        "size.preference={batch:36,epochs:1.0,steps:2}",
        "size.ppo={prompts:64,rollout_batch:57,iterations:1,ppo_epochs:2,minibatches:1}",
        "size.grpo={prompts:64,rollout_batch:20,group:8,iterations:1,updates:2}",
        "size.evaluate={prompts:16,samples:4,best_of:1}",
    ],
    "smollm2": [
        "tokens.max_prompt=16",
        "tokens.max_completion=32",
        "size.sft={rows:32,batch:11,epochs:1.0,steps:2,evaluate_every:0,evaluate_rows:8}",
        "size.annotate={prompts:16,completions:3}",
        "size.reward={batch:5,epochs:1.0,steps:2}",
        "size.preference={batch:7,epochs:1.0,steps:2}",
        "size.ppo={prompts:16,rollout_batch:11,iterations:1,ppo_epochs:2,minibatches:1}",
        "size.grpo={prompts:16,rollout_batch:8,group:4,iterations:1,updates:2}",
        "size.evaluate={prompts:4,samples:2,best_of:1}",
    ],
}
BUDGETS = {"reviews_lm": (1024, 4096), "smollm2": (128, 512)}


def cases() -> Iterator[Case]:
    """All of them, in an order of which every beginning has some of everything."""
    for adapter, dtype in (
        ("full", "float32"),
        ("lora", "bfloat16"),
        ("lora", "float32"),
        ("full", "bfloat16"),
    ):
        for place in (1, 0):
            for backbone, budgets in BUDGETS.items():
                yield Case(backbone, adapter, dtype, budgets[place])
