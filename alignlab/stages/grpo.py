"""Group-relative policy optimization and, by configuration, its relatives: RLOO, GSPO, CISPO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from alignlab.errors import ConfigError
from alignlab.stages.online_stage import Online
from alignlab.stages.stage import Estimate, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.engine.distributed import Engine
    from alignlab.run import Run

NAMED = {  # by the setting that makes the method
    "sequence_mean": "GSPO",
    "token_weight": "CISPO",
    "leave_one_out": "RLOO",
    "group_mean": "Dr.GRPO",
    "whitened": "REINFORCE++",
    "group_whitened": "REINFORCE++ with baseline",
}


@dataclass(frozen=True, kw_only=True)
class GRPO(Online):
    """G completions per prompt; the advantage is the reward relative to the group's own.

    L = Σ_i w_i Σ_t −min(ρ_t A_i, clip(ρ_t, 1−ε_l, 1+ε_h) A_i) + β k̂_t  (Shao et al. 2024,
    arXiv:2402.03300, eq. 3). ``ratio`` gives ρ: one per token; one per completion (``sequence``:
    RLOO, whose action is the whole completion; then Σ_t ρ_t A_i becomes |o_i| times the
    completion's term and both agree at ρ = 1), or its |o_i|-th root (``sequence_mean``: GSPO,
    arXiv:2507.18071 eq. 5); or clipped as a constant weight of A log π (``token_weight``:
    CISPO, arXiv:2506.13585 eq. 4). ``advantage`` gives A (``group_std``: GRPO, ``group_mean``:
    Dr.GRPO, ``leave_one_out``: RLOO; over the tokens of the rollout ``whitened``: REINFORCE++,
    arXiv:2501.03262, ``group_whitened``: the same of the group's mean advantage); ``normalizer``
    gives w (``sequence``: 1/|o_i| per completion, GRPO; ``token``: DAPO; ``constant``: Dr.GRPO);
    ``kl_place`` says whether β weighs a penalty in the loss (estimator ``kl_estimator``), is
    subtracted from the reward (RLOO) or from every token's, each token being credited with what
    comes after it (REINFORCE++). Groups whose advantages are all zero carry no gradient unless the
    loss has a KL term; they are left out of the backward pass and stay in the normaliser.
    """

    kind: ClassVar[str] = "grpo"

    group: Annotated[int, Range(min=1)]
    updates: Annotated[int, Range(min=1)]
    advantage: Literal["group_std", "group_mean", "leave_one_out", "group_whitened", "whitened"]
    normalizer: Literal["sequence", "token", "constant"]
    ratio: Literal["token", "sequence", "sequence_mean", "token_weight"]
    clip_low: Annotated[float, Range(min=0, min_open=True)]
    clip_high: Annotated[float, Range(min=0, min_open=True)]
    kl_coef: Annotated[float, Range(min=0)]
    kl_place: Literal["loss", "reward", "token_reward"]
    kl_estimator: Literal["k1", "k2", "k3", "k3_gradient_k2"]

    def validate(self) -> None:
        """What every online stage asks for, and a KL term in the loss has a gradient."""
        super().validate()
        if self.kl_coef > 0 and self.kl_place == "loss" and self.kl_estimator == "k1":
            raise ConfigError(
                "kl_estimator=k1 does nothing in the loss: its expected gradient is zero. Use"
                " k3_gradient_k2 or k2 (gradient of the KL), k3 (GRPO), or kl_place=reward."
            )
        if self.group == 1 and self.advantage != "whitened":
            raise ConfigError(
                f"group=1: advantage={self.advantage} compares the completions of one prompt; use"
                " 2 or more, or advantage=whitened, which compares those of all prompts."
            )
        if self.updates > self.rollout_batch:
            raise ConfigError(
                f"updates={self.updates} is more than rollout_batch={self.rollout_batch}: each"
                " update takes its share of the prompts."
            )
        if self.kl_place == "token_reward":
            self._check_rewards_of_tokens()

    def _check_rewards_of_tokens(self) -> None:
        if self.advantage != "whitened":
            raise ConfigError(
                f"kl_place=token_reward gives every token an advantage of its own, and advantage="
                f"{self.advantage} one to a completion: use advantage=whitened, or kl_place=reward."
            )
        if self.ratio in ("sequence", "sequence_mean"):
            raise ConfigError(
                f"kl_place=token_reward gives every token an advantage of its own, and ratio="
                f"{self.ratio} takes a completion as one action: use ratio=token."
            )

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Alternate sampling and updates until ``iterations`` are done."""
        from alignlab.stages.budget import fit_online
        from alignlab.stages.grpo_work import GRPOWork
        from alignlab.stages.online import scorer_of

        at = self.opened(inputs, run, engine, whole=self.ratio.startswith("sequence"))
        run, backbone, prompts = at.run, at.backbone, at.prompts
        if self.kl_coef > 0:
            backbone.add("reference", source=inputs["reference"].model_dir, trainable=False)
        scorer = scorer_of(self, at, engine)
        step = -(-self.rollout_batch // self.updates)
        engine = fit_online(
            engine, backbone, ["policy"], prompts, self, run, completions=self.group, step=step
        )
        work = GRPOWork(
            self, backbone, at.tokenization, prompts, scorer, engine, at.keep, at.outside
        )
        self.learn(
            work,
            at,
            inputs,
            engine,
            views=["policy"],
            updates=self.updates,
            completions=self.group,
            passes=3,
        )
        run.update_record(summary={"zero_std_share": work.zero_share})

    def name(self) -> str:
        """Which relative the settings make it, and with what group and β."""
        return f"{self.method()} (G={self.group}, β={self.kl_coef})"

    def method(self) -> str:
        """The method that has these settings; GRPO where none is named after them."""
        if self.ratio in NAMED:
            return NAMED[self.ratio]
        if self.advantage in NAMED:
            return NAMED[self.advantage]
        return "DAPO" if self.normalizer == "token" else "GRPO"

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Sampling plus ``updates`` passes over the same tokens."""
        return self.group_estimate(
            cache,
            inputs,
            updates=self.updates,
            completions=self.group,
            kept=self.group,
            reference=self.kl_coef > 0,
        )
