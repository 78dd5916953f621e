"""Online preference optimization: any preference objective on what the live policy just said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from alignlab.errors import ConfigError
from alignlab.rollout.vllm import check_rollout
from alignlab.spec import Spec, function, late
from alignlab.stages.anchors import require_anchor
from alignlab.stages.online_stage import Online
from alignlab.stages.stage import (
    START_KINDS,
    Estimate,
    Role,
    Stage,
    filling,
    reject_truncated_sampling,
)
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.engine.distributed import Engine
    from alignlab.run import Run


@dataclass(frozen=True, kw_only=True)
class OnlinePreference(Online):
    """Completions of the policy itself are judged as they come, and compared as annotations are.

    In every iteration y₁ … y_k ~ π_θ(·|x) are sampled for fresh prompts and judged: by reward runs,
    a reward function or an annotator. Then L = mean over pairs of f(y_w, y_l), with any objective f
    of ``alignlab.objectives``; with DPO's this is online DPO (Guo et al. 2024, arXiv:2402.04792,
    with one update per rollout; Xiong et al. 2024, arXiv:2312.11456, with
    many). No gradient flows through the sampling. Prompts whose completions the judge does not tell
    apart are left out of the mean.
    """

    kind: ClassVar[str] = "online_preference"
    roles: ClassVar[Mapping[str, Role]] = {
        **Online.roles,
        "reference": Role(START_KINDS, optional=True),
    }

    objective: Spec
    annotator: Spec | None
    completions: Annotated[int, Range(min=2)]
    pairs: Literal["best_worst", "all"]
    updates: Annotated[int, Range(min=1)]

    def validate(self) -> None:
        """One judge, sampling that gives different completions, and what the objective asks for."""
        if self.annotator is None:
            self.require_reward()
        elif self.reward is not None or filling("reward", self.inputs):
            raise ConfigError(
                "annotator: there is a reward too, and one of them must judge; set annotator=null,"
                " or leave the reward out."
            )
        if self.annotator is not None and self.missing_eos_score is not None:
            raise ConfigError(
                f"missing_eos_score={self.missing_eos_score}: an annotator ranks, and has no score"
                " that could be replaced; set it to null."
            )
        if self.sampling.temperature <= 0:
            raise ConfigError(
                "sampling.temperature=0 gives one prompt the same completion each time, with"
                " nothing to compare; use a temperature above 0."
            )
        if self.rollout is not None:
            reject_truncated_sampling(self.sampling)
        check_rollout(self.rollout, self.backbone.adapter)
        require_anchor(self.anchor, "rollouts")
        self._check_objective()

    def _check_objective(self) -> None:
        needs = late(self.objective)
        if "reference" in needs and "reference" not in self.inputs:
            raise ConfigError(
                f"inputs.reference is missing: {self.objective.target} compares the policy with a"
                " reference; name the SFT stage there."
            )
        least = 2 if "kl_point" in needs else 1
        if self.rollout_batch // self.updates < least:
            raise ConfigError(
                f"updates={self.updates} of rollout_batch={self.rollout_batch} prompts: each update"
                f" takes its share of them, and {self.objective.target} needs {least} or more."
            )

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Alternate sampling, judging and updates until ``iterations`` are done."""
        from alignlab.objectives.declaration import declaration
        from alignlab.stages.budget import fit_online
        from alignlab.stages.online_preference_work import OnlinePreferenceWork, judge_of

        at = self.opened(inputs, run, engine)
        run, backbone = at.run, at.backbone
        need = declaration(function(self.objective))
        if need.needs_reference:
            backbone.add("reference", source=inputs["reference"].model_dir, trainable=False)
        judge = judge_of(self, at, engine)
        step, kept = -(-self.rollout_batch // self.updates), self.kept
        engine = fit_online(
            engine, backbone, ["policy"], at.prompts, self, run, completions=kept, step=step
        )
        work = OnlinePreferenceWork(self, at, need, judge, engine)
        self.learn(
            work,
            at,
            inputs,
            engine,
            views=["policy"],
            updates=self.updates,
            completions=self.completions,
            passes=3,
        )
        run.update_record(
            objective={"target": self.objective.target, **dict(self.objective.arguments)},
            summary={"tie_share": work.tie_share},
        )

    @property
    def kept(self) -> int:
        """Completions of a prompt that are trained on."""
        return 2 if self.pairs == "best_worst" else self.completions

    def name(self) -> str:
        """Short name for tables: what the objective calls itself, and its hyperparameters."""
        from alignlab.objectives.declaration import display_name

        arguments = ", ".join(f"{k}={v}" for k, v in self.objective.arguments.items())
        called = f"Online {display_name(function(self.objective))}"
        return f"{called} ({arguments})" if arguments else called

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Sampling, judging, and one pass over the completions that are compared."""
        return self.group_estimate(
            cache,
            inputs,
            updates=self.updates,
            completions=self.completions,
            kept=self.kept,
            reference="reference" in self.inputs,
        )
