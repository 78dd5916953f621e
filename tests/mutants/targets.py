"""What is hunted, and with which tests."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from hunt import Check, checks_of
from model_cases import make_batch

# Slow, and faster checks do as well: numerical derivatives, attention token by token.
REPLACED = ("test_gradcheck", "test_equals_the_definition_in_value_and_gradient")

OBJECTIVES = ("test_by_hand", "test_declaration", "test_objectives_edges")
DATA = ("test_pack", "test_masks", "test_order", "test_data_edges")
MODELS = ("test_logps", "test_grouped_attention", "test_models_edges")
STAGES = ("test_stages_edges",)


@dataclass(frozen=True)
class Target:
    """A module (or some of its functions) and the test modules that must notice every mutant."""

    module: str  # under alignlab
    tests: tuple[str, ...]
    functions: tuple[str, ...] = ()  # all of them

    @property
    def path(self) -> str:
        return self.module.replace(".", "/") + ".py"


TARGETS = (
    *(
        Target(f"objectives.{name}", OBJECTIVES)
        for name in (
            "advantage",
            "anchored",
            "declaration",
            "divergence",
            "groupwise",
            "likelihood",
            "links",
            "penalized",
            "pairwise",
            "policy",
            "ranking",
            "regression",
            "stable",
            "unpaired",
        )
    ),
    Target("objectives.forgetting", ("test_forgetting",)),
    Target("tensors", DATA),
    Target("data.pack", DATA),
    Target("data.order", DATA),
    Target("models.logps", MODELS),
    Target(
        "models.smoothing",
        ("test_smoothing", "test_models_edges"),
        ("predict", "_linear_gap", "_capped_gap"),
    ),
    Target("models.noise", ("test_noise",)),
    Target("models.grouped_attention", (*MODELS, "test_kept_prompts", "test_view_edges")),
    Target("models.attention_plan", (*MODELS, "test_kept_prompts")),
    Target("models.kept_prompts", ("test_view_edges",)),
    Target("models.joint_adapters", ("test_joint_adapters",)),
    # What empty micro-batches and ZeRO ask of a view besides is tested in several processes.
    Target(
        "models.view",
        ("test_view_edges",),
        (
            "View.__init__",
            "View.features",
            "View.logps",
            "View.logps_behind",
            "View.logps_entropy",
            "View.logps_mean",
            "View.scores",
            "View.values",
            "View.lm_head",
            "View.scalar_head",
            "View._pass",
            "View._predict",
            "View._layout_of",
            "View._arithmetic",
            "autocast",
        ),
    ),
    Target("rollout.choose", ("test_choose", "test_rollout_edges")),
    Target("rewards.shaping", ("test_shaping", *STAGES)),
    Target("stages.arrange", STAGES),
    Target("stages.reward", STAGES, ("group_scores", "target_scores")),
    Target(
        "stages.ppo_work",
        STAGES,
        ("PPOWork.loss", "PPOWork.policy_loss", "PPOWork.value_loss", "PPOWork.ptx_loss"),
    ),
    Target(
        "stages.grpo_work", STAGES, ("GRPOWork.loss", "GRPOWork.surrogate", "GRPOWork.advantages")
    ),
)


@cache
def checks(tests: tuple[str, ...]) -> tuple[Check, ...]:
    return tuple(_checks(tests))


def _checks(tests: tuple[str, ...]) -> Iterator[Check]:
    for name in tests:
        yield from checks_of(importlib.import_module(name), REPLACED, batch=make_batch)
