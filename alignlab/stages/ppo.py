"""Proximal policy optimization with the KL penalty in the reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from alignlab.errors import ConfigError
from alignlab.stages.online_stage import Online
from alignlab.stages.stage import Estimate, Stage, filling
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.run import Run
    from alignlab.stages.online_stage import Setting


@dataclass(frozen=True, kw_only=True)
class PPO(Online):
    """Clipped policy gradient against a learned reward, with a value view of its own.

    Per token, r_t = −β(log π_old − log π_ref)_t + 1[t = T]·R; advantages by GAE, whitened over the
    rollout's tokens; loss = mean_t max(−Aρ, −A clip(ρ, 1±ε)) + c_v·½ mean_t max((V−G)², (V_c−G)²)
    with V_c the clipped value (Ziegler et al. 2019; details of Huang et al. 2024,
    arXiv:2403.17031). The value view starts from the reward run, the first of several (from
    ``init``, with a fresh head, where that one is a model of its own, such as an encoder). A
    completion without EOS scores ``missing_eos_score`` (the EOS trick). With ``ptx_coef`` > 0
    the gradient of a language-modelling loss on demonstrations is added (PPO-ptx, InstructGPT
    eq. 2).
    """

    kind: ClassVar[str] = "ppo"

    ppo_epochs: Annotated[int, Range(min=1)]
    minibatches: Annotated[int, Range(min=1)]
    kl_coef: Annotated[float, Range(min=0)]
    kl_target: Annotated[float, Range(min=0, min_open=True)] | None
    kl_horizon: Annotated[int, Range(min=1)]
    gamma: Annotated[float, Range(min=0, max=1)]
    lam: Annotated[float, Range(min=0, max=1)]
    clip: Annotated[float, Range(min=0, min_open=True)]
    value_clip: Annotated[float, Range(min=0, min_open=True)]
    value_coef: Annotated[float, Range(min=0)]
    whiten_advantages: bool
    ptx_coef: Annotated[float, Range(min=0)]
    ptx_rows: Annotated[int, Range(min=0)]

    def validate(self) -> None:
        """What every online stage asks for, and no minibatch is empty."""
        super().validate()
        if self.minibatches > self.rollout_batch:
            raise ConfigError(
                f"minibatches={self.minibatches} is more than rollout_batch={self.rollout_batch}."
            )

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Alternate sampling and updates until ``iterations`` are done."""
        from alignlab.stages.budget import fit_online
        from alignlab.stages.judges import value_source
        from alignlab.stages.online import scorer_of
        from alignlab.stages.ppo_work import PPOWork

        at = self.opened(inputs, run, engine)
        run, backbone, prompts = at.run, at.backbone, at.prompts
        ptx = self.demonstrations(at, engine) if self.ptx_coef else ()
        backbone.add("reference", source=inputs["reference"].model_dir, trainable=False)
        source = value_source(at.rewards, inputs["init"]).model_dir
        backbone.add("value", source=source, trainable=True, head=True)
        scorer = scorer_of(self, at, engine)
        views = ["policy", "value"]
        step = -(-self.rollout_batch // self.minibatches)
        engine = fit_online(engine, backbone, views, prompts, self, run, completions=1, step=step)
        work = PPOWork(
            self, backbone, at.tokenization, prompts, ptx, scorer, engine, at.keep, at.outside
        )
        self.learn(
            work,
            at,
            inputs,
            engine,
            views=views,
            updates=self.ppo_epochs * self.minibatches,
            completions=1,
            passes=4,
        )
        run.update_record(summary={"kl_coef": work.kl_coef})

    def demonstrations(self, at: Setting, engine: Engine) -> Sequence[TokenGroup]:
        """Rows of the ``sft`` split for the pretraining term."""
        from alignlab.data.group import PromptGroup
        from alignlab.stages.session import tokenize

        return tokenize(
            at.data,
            "sft",
            at.tokenization,
            at.run,
            engine,
            need="demonstration",
            limits=self.gate,
            select=PromptGroup.demonstration,
            rows=self.ptx_rows or None,
        )

    def name(self) -> str:
        """Short name for tables."""
        if self.ptx_coef:
            return f"PPO-ptx (β={self.kl_coef}, γ={self.ptx_coef})"
        return f"PPO (β={self.kl_coef})"

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Sampling plus ``ppo_epochs`` passes of policy and value over the same tokens."""
        from alignlab.stages.estimate import (
            anchor_copies,
            apart_behind,
            decode_of,
            starting_views,
            training_estimate,
            update_of,
        )

        others, apart = apart_behind(inputs, cache)
        per = self.max_prompt + self.max_completion
        tokens = self.iterations * self.rollout_batch * per
        rewards = len(filling("reward", self.inputs))
        small = -(-self.rollout_batch // self.minibatches)
        shown, prompt = self.ppo_epochs * tokens, self.max_prompt
        return training_estimate(
            self.backbone,
            cache,
            tokens=2 * shown,  # the policy's and the value's
            forward_tokens=4 * tokens,
            update=update_of(small, shown, group=per, prompt=prompt, completions=1),
            trained=2,
            frozen=1 + rewards + starting_views(self) - others,
            apart=apart,
            scored=(2 + rewards) * tokens,
            decode=decode_of(
                self.sampling, self.rollout_batch, prompt, times=self.iterations, live=True
            ),
            averages=int(self.optimizer.ema is not None),
            starts=anchor_copies(self.anchor, self.backbone, cache),
            optimizer=self.optimizer,
        )
