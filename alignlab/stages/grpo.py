"""Group-relative policy optimization and its relatives: Dr.GRPO, DAPO, RLOO, by configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from alignlab.data.gate.limits import Limits
from alignlab.engine.optimizer import Optimizer
from alignlab.errors import ConfigError
from alignlab.models.load import BackboneConfig
from alignlab.rewards.ensemble import Ensemble
from alignlab.rollout.sampling import Sampling
from alignlab.rollout.vllm import WHERE, check_rollout
from alignlab.spec import Spec, build
from alignlab.stages.stage import Estimate, Role, Stage, filling, reject_truncated_sampling
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.engine.distributed import Engine
    from alignlab.run import Run


@dataclass(frozen=True, kw_only=True)
class GRPO(Stage):
    """G completions per prompt; the advantage is the reward relative to the group's own.

    L = Σ_i w_i Σ_t −min(ρ_t A_i, clip(ρ_t, 1−ε_l, 1+ε_h) A_i) + β k̂_t  (Shao et al. 2024,
    arXiv:2402.03300, eq. 3). ``ratio`` gives ρ: one per token, or one per completion (RLOO, whose
    action is the whole completion; then Σ_t ρ_t A_i becomes |o_i| times the completion's term and
    both agree at ρ = 1). ``advantage`` gives A (``group_std``: GRPO, ``group_mean``: Dr.GRPO,
    ``leave_one_out``: RLOO); ``normalizer`` gives w (``sequence``: 1/|o_i| per completion, GRPO;
    ``token``: DAPO; ``constant``: Dr.GRPO); ``kl_place`` says whether β weighs a penalty in the
    loss (estimator ``kl_estimator``) or is subtracted from the reward (RLOO). Groups whose
    advantages are all zero carry no gradient unless the loss has a KL term; they are left out of
    the backward pass and stay in the normaliser.
    """

    version: ClassVar[int] = 4  # decoding rounds otherwise
    kind: ClassVar[str] = "grpo"
    unkeyed: ClassVar[frozenset[str]] = Stage.unkeyed | WHERE
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset({"rollout"})
    together: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        "init": Role(("sft", "pretrain")),
        "reference": Role(("sft", "pretrain")),
        "reward": Role(("reward",), optional=True, many=True),
    }

    backbone: BackboneConfig
    data: Spec
    gate: Limits
    reward: Spec | None
    ensemble: Ensemble
    monitor: Spec | None
    max_prompt: Annotated[int, Range(min=1)]
    max_completion: Annotated[int, Range(min=1)]
    sampling: Sampling
    rollout: Spec | None = None
    prompts: Annotated[int, Range(min=1)]
    rollout_batch: Annotated[int, Range(min=1)]
    group: Annotated[int, Range(min=2)]
    iterations: Annotated[int, Range(min=1)]
    updates: Annotated[int, Range(min=1)]
    optimizer: Optimizer
    advantage: Literal["group_std", "group_mean", "leave_one_out"]
    normalizer: Literal["sequence", "token", "constant"]
    ratio: Literal["token", "sequence"]
    clip_low: Annotated[float, Range(min=0, min_open=True)]
    clip_high: Annotated[float, Range(min=0, min_open=True)]
    kl_coef: Annotated[float, Range(min=0)]
    kl_place: Literal["loss", "reward"]
    kl_estimator: Literal["k1", "k2", "k3", "k3_gradient_k2"]
    missing_eos_score: float | None

    def validate(self) -> None:
        """A reward is named, sampling is whole, and a KL term in the loss has a gradient."""
        if not filling("reward", self.inputs) and self.reward is None:
            raise ConfigError(
                "inputs.reward is missing: name a reward stage there, or set `reward`."
            )
        reject_truncated_sampling(self.sampling)
        check_rollout(self.rollout, adapter=self.backbone.adapter.rank is not None)
        if self.kl_coef > 0 and self.kl_place == "loss" and self.kl_estimator == "k1":
            raise ConfigError(
                "kl_estimator=k1 does nothing in the loss: its expected gradient is zero. Use"
                " k3_gradient_k2 or k2 (gradient of the KL), k3 (GRPO), or kl_place=reward."
            )

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Alternate sampling and updates until ``iterations`` are done."""
        from alignlab.data.template import Tokenization
        from alignlab.engine.loop import train
        from alignlab.rollout.unfinished import rollout_file
        from alignlab.stages.budget import fit_online
        from alignlab.stages.finish import finish_training
        from alignlab.stages.grpo_work import GRPOWork
        from alignlab.stages.online import Scorer, prompts_of, require_prompts_for_all
        from alignlab.stages.outside import outside_of
        from alignlab.stages.session import open_backbone

        require_prompts_for_all(engine, self.rollout_batch)
        run = engine.workers().own(run)
        backbone = open_backbone(self.backbone, run, engine, self.seed, trains=True)
        backbone.add("policy", source=inputs["init"].model_dir, trainable=True)
        tokenization = Tokenization(backbone.tokenizer, self.max_prompt, self.max_completion)
        prompts = prompts_of(build(self.data), self.prompts, tokenization, run, self.gate)
        if self.kl_coef > 0:
            backbone.add("reference", source=inputs["reference"].model_dir, trainable=False)
        rewards = [inputs[name] for name in filling("reward", inputs)]
        scorer = Scorer(backbone, rewards, self.reward, engine, self.ensemble, self.monitor)
        step = -(-self.rollout_batch // self.updates)
        engine = fit_online(
            engine, backbone, ["policy"], prompts, self, run, completions=self.group, step=step
        )
        keep = rollout_file(run.state_dir, engine.workers().rank)
        longest = self.max_prompt + self.sampling.max_new_tokens
        outside = outside_of(self.rollout, run, longest, whole=self.ratio == "sequence")
        work = GRPOWork(self, backbone, tokenization, prompts, scorer, engine, keep, outside)
        result = train(
            work,
            backbone,
            ["policy"],
            optimizer=self.optimizer,
            steps=self.iterations * self.updates,
            run=run,
            engine=engine,
            seed=self.seed,
        )
        asked = self.iterations * self.rollout_batch
        counts = {"prompts": asked, "completions": asked * self.group}
        finish_training(run, backbone, "policy", result, counts, forward_tokens=3 * work.sampled)
        run.update_record(
            label=self.label or f"{self.name()} (G={self.group}, β={self.kl_coef})",
            reference=inputs["reference"].path.name,
            rewards=[reward.path.name for reward in rewards],
            tokens_sampled=work.sampled,
            summary={"zero_std_share": work.zero_share},
        )

    def name(self) -> str:
        """Which relative the settings make it: RLOO, Dr.GRPO, DAPO, or GRPO itself."""
        if self.advantage == "leave_one_out":
            return "RLOO"
        if self.advantage == "group_mean":
            return "Dr.GRPO"
        return "DAPO" if self.normalizer == "token" else "GRPO"

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Sampling plus ``updates`` passes over the same tokens."""
        from alignlab.stages.estimate import decode_of, training_estimate, update_of

        per = self.max_prompt + self.group * self.max_completion
        tokens = self.iterations * self.rollout_batch * per
        scorers = len(filling("reward", self.inputs)) + (self.kl_coef > 0)
        small, prompt = -(-self.rollout_batch // self.updates), self.max_prompt
        rows = self.rollout_batch * self.group
        return training_estimate(
            self.backbone,
            cache,
            tokens=tokens,
            forward_tokens=3 * tokens,
            update=update_of(small, tokens, group=per, prompt=prompt, completions=self.group),
            frozen=scorers,
            scored=scorers * tokens,
            decode=decode_of(self.sampling, rows, prompt, times=self.iterations, live=True),
            averages=int(self.optimizer.ema is not None),
        )
