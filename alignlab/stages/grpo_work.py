"""GRPO as the loop sees it: rollouts at the start of an iteration, then its updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from alignlab.data.order import step_rows
from alignlab.engine.work import Micro
from alignlab.objectives.advantage import group_advantages, token_weights
from alignlab.objectives.divergence import token_kl
from alignlab.objectives.policy import clipped_surrogate
from alignlab.rewards.shaping import missing_eos
from alignlab.stages.online import collect, pack_experience, rollout_metrics
from alignlab.tensors import TokenLogps

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.data.template import Tokenization
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone, View
    from alignlab.stages.grpo import GRPO
    from alignlab.stages.online import Experience, Scorer
    from alignlab.stages.session import Metrics


class GRPOWork:
    """The loop's view of GRPO: rollouts at the start of an iteration, then its updates."""

    def __init__(
        self,
        stage: GRPO,
        backbone: Backbone,
        tokenization: Tokenization,
        prompts: Sequence[TokenGroup],
        scorer: Scorer,
        engine: Engine,
    ) -> None:
        self.stage, self.backbone, self.tokenization = stage, backbone, tokenization
        self.prompts, self.scorer, self.engine = prompts, scorer, engine
        self.sampled = 0
        self.zero_share = 0.0
        self.experience: Experience | None = None
        self.iteration = -1

    def micros(self, step: int) -> list[Micro]:
        """Micro-batches of one update; the first of an iteration samples its rollouts."""
        stage = self.stage
        iteration, index = divmod(step - 1, stage.updates)
        fresh = iteration != self.iteration or self.experience is None
        if fresh:
            self.experience = self.collect(iteration)
            self.iteration = iteration
        experience = self.experience
        assert experience is not None
        size = len(experience.groups)
        order = step_rows(0, size, size, stage.seed * 1_000_003 + iteration)
        chosen = order[index :: stage.updates]
        completions = experience.completions_of(chosen)
        weights, count = token_weights(
            experience.lengths[completions],
            normalizer=stage.normalizer,
            max_length=stage.max_completion,
        )
        per_token = dict(zip(completions, weights, strict=True))
        experience.tokens["weights"] = [
            per_token[c].expand(len(old)) if c in per_token else old * 0
            for c, old in enumerate(experience.old)
        ]
        moving = [g for g in chosen if self.carries_gradient(g)]
        micros = pack_experience(
            experience,
            moving,
            ["old", "advantages", "weights", "reference"],
            view="policy",
            term="policy",
            count=float(count),
            engine=self.engine,
        )
        if fresh and micros:
            metrics = {**rollout_metrics(experience), "zero_std_share": (self.zero_share, 1)}
            micros[0] = replace(micros[0], data=replace(micros[0].data, metrics=metrics))
        return micros

    def carries_gradient(self, group: int) -> bool:
        """Whether any completion of the group has an advantage, or the loss has a KL term."""
        if self.stage.kl_coef > 0 and self.stage.kl_place == "loss":
            return True
        experience = self.experience
        assert experience is not None
        completions = experience.completions_of([group])
        return any(bool(experience.tokens["advantages"][c].any()) for c in completions)

    def collect(self, iteration: int) -> Experience:
        """Sample G completions per prompt, score them, take advantages within groups."""
        stage = self.stage
        rows = step_rows(iteration, stage.rollout_batch, len(self.prompts), stage.seed)
        experience, rollout = collect(
            self.backbone,
            [self.prompts[r] for r in rows],
            self.tokenization,
            stage.sampling,
            completions=stage.group,
            seed=stage.seed,
            step=iteration,
            scorer=self.scorer,
            engine=self.engine,
            reference=stage.kl_coef > 0,
        )
        self.sampled += rollout.tokens
        scores = experience.scores
        if stage.missing_eos_score is not None:
            scores = missing_eos(scores, experience.finished, replace=stage.missing_eos_score)
        if stage.kl_coef > 0 and stage.kl_place == "reward":
            scores = scores - stage.kl_coef * experience.log_ratio()
        owner = torch.arange(len(rows)).repeat_interleave(stage.group)
        advantages = group_advantages(scores, owner, len(rows), kind=stage.advantage, epsilon=1e-4)
        experience.tokens["advantages"] = [
            a.expand(len(old)) for a, old in zip(advantages, experience.old, strict=True)
        ]
        still = (advantages.view(len(rows), stage.group) == 0).all(dim=1)
        self.zero_share = float(still.double().mean())
        return experience

    def loss(self, view: View, micro: Micro) -> tuple[Tensor, Metrics]:
        """Weighted clipped surrogate plus the KL term where it belongs to the loss."""
        stage, tokens = self.stage, micro.data.tokens
        new = view.logps(micro.data.batch, temperature=stage.sampling.temperature)
        logps = TokenLogps(new=new, old=tokens["old"], reference=tokens.get("reference"))
        losses = clipped_surrogate(
            logps, tokens["advantages"], clip_low=stage.clip_low, clip_high=stage.clip_high
        )
        if stage.kl_coef > 0 and stage.kl_place == "loss":
            losses = losses + stage.kl_coef * token_kl(
                new, tokens["reference"], estimator=stage.kl_estimator
            )
        ratio = torch.exp(new.detach() - tokens["old"])
        outside = (ratio < 1 - stage.clip_low) | (ratio > 1 + stage.clip_high)
        count = len(ratio)
        return (losses * tokens["weights"]).sum() / micro.data.count, {
            "clip_fraction": (outside.double().sum(), count),
            "sampler_gap": ((new.detach() - tokens["old"]).abs().double().sum(), count),
            **micro.data.metrics,
        }

    def state(self) -> dict[str, Any]:
        """What is not a function of (seed, step): the rollouts in use."""
        return {
            "sampled": self.sampled,
            "zero_share": self.zero_share,
            "iteration": self.iteration,
            "experience": self.experience,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue in the middle of an iteration with the same rollouts."""
        self.sampled, self.zero_share = state["sampled"], state["zero_share"]
        self.iteration, self.experience = state["iteration"], state["experience"]
