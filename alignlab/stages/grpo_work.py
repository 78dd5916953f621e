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
from alignlab.objectives.policy import clip_fraction, clipped_surrogate, sequence_surrogate
from alignlab.objectives.stable import segment_sum
from alignlab.rewards.shaping import missing_eos
from alignlab.stages.online import collect, pack_experience
from alignlab.stages.online_metrics import rollout_metrics
from alignlab.tensors import TokenLogps

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.data.template import Tokenization
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone, View
    from alignlab.stages.grpo import GRPO
    from alignlab.stages.online import Experience, OnlinePack, Scorer
    from alignlab.stages.outside import Outside
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
        keep: Path | None = None,
        outside: Outside | None = None,
    ) -> None:
        self.stage, self.backbone, self.tokenization = stage, backbone, tokenization
        self.prompts, self.scorer, self.engine = prompts, scorer, engine
        self.keep = keep  # a file for the rollout in use, should a signal come
        self.outside = outside  # what samples in place of the policy itself
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
            max_length=stage.sampling.max_new_tokens,
        )
        per_token = dict(zip(completions, weights, strict=True))
        experience.tokens["weights"] = [
            per_token[c].expand(len(old)) if c in per_token else old * 0
            for c, old in enumerate(experience.old)
        ]
        if importance := experience.tokens.get("importance"):
            pairs = zip(experience.tokens["weights"], importance, strict=True)
            experience.tokens["weights"] = [weight * ratio for weight, ratio in pairs]
        # One group stays where none carries a gradient, so that the optimizer sees a gradient of
        # zero (and its momentum goes on) as it would without the saving.
        moving = [g for g in chosen if self.carries_gradient(g)] or chosen[:1]
        micros = pack_experience(
            experience,
            moving,
            ["old", "advantages", "weights", "reference"],
            view="policy",
            term="policy",
            count=float(count),
            engine=self.engine,
        )
        if fresh and self.engine.workers().is_main:  # all know the same, and one reports it
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
        experience, _ = collect(
            self.backbone,
            [self.prompts[r] for r in rows],
            self.tokenization,
            stage.sampling,
            completions=stage.group,
            seed=stage.seed,
            step=iteration,
            scorer=self.scorer,
            engine=self.engine,
            keep=self.keep,
            outside=self.outside,
            reference=stage.kl_coef > 0,
        )
        self.sampled += int(experience.lengths.sum())
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
        total, clipped = self.surrogate(new, micro.data)
        if stage.kl_coef > 0 and stage.kl_place == "loss":
            kl = token_kl(new, tokens["reference"], estimator=stage.kl_estimator)
            total = total + stage.kl_coef * (kl * tokens["weights"]).sum()
        gap = (new.detach() - tokens["old"]).abs()
        return total / micro.data.count, {
            "clip_fraction": (clipped.double().sum(), len(clipped)),
            "sampler_gap": (gap.double().sum(), len(gap)),
            **micro.data.metrics,
        }

    def surrogate(self, new: Tensor, pack: OnlinePack) -> tuple[Tensor, Tensor]:
        """Weighted sum of the clipped surrogate, (), and 1 where the clip bites: (N,) or (C,).

        With a ratio per sequence, a completion's term is weighted as one of its tokens is, so that
        at ρ = 1 the gradient is the one of the ratio per token.
        """
        tokens, batch = pack.tokens, pack.batch
        bounds = {"clip_low": self.stage.clip_low, "clip_high": self.stage.clip_high}
        logps = TokenLogps(new=new, old=tokens["old"])
        advantages, weights = tokens["advantages"], tokens["weights"]
        if self.stage.ratio == "token":
            losses = clipped_surrogate(logps, advantages, **bounds)
        else:
            last = batch.lengths.cumsum(0) - 1  # of each completion, whose tokens all have the same
            advantages, weights = advantages[last], weights[last]
            completion = batch.target_completion
            losses = sequence_surrogate(
                logps, advantages, completion, batch.lengths, **bounds, ratio="product"
            )
            logps = TokenLogps(
                new=segment_sum(new, completion, batch.completions),
                old=segment_sum(logps.old, completion, batch.completions),
            )
        return (losses * weights).sum(), clip_fraction(logps, advantages, **bounds)

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
