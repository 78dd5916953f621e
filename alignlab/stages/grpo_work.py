"""GRPO as the loop sees it: rollouts at the start of an iteration, then its updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from alignlab.data.order import step_rows
from alignlab.engine.work import Micro
from alignlab.objectives.advantage import (
    gae,
    group_advantages,
    mean_variance,
    moments,
    token_weights,
    whiten,
)
from alignlab.objectives.divergence import token_kl
from alignlab.objectives.policy import (
    clip_fraction,
    clipped_surrogate,
    clipped_weight_surrogate,
    sequence_surrogate,
    weight_clip_fraction,
)
from alignlab.objectives.stable import segment_sum
from alignlab.rewards.shaping import missing_eos, token_rewards
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
    from alignlab.stages.packed import Metrics


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
        advantages = self.advantages(experience, scores, owner)
        experience.tokens["advantages"] = advantages
        moved = torch.tensor([bool(a.any()) for a in advantages]).view(len(rows), stage.group)
        self.zero_share = float((~moved.any(dim=1)).double().mean())
        return experience

    def advantages(self, experience: Experience, scores: Tensor, owner: Tensor) -> list[Tensor]:
        """Advantage of every token, (L,) for each completion; (C,) ``owner`` names its prompt.

        Against the group, or whitened over the tokens of the whole rollout: of the group's mean
        advantage (REINFORCE++ with baseline) or of the reward that is still to come (REINFORCE++).
        """
        stage, lengths = self.stage, experience.lengths
        if stage.advantage == "whitened":
            flat = scores.repeat_interleave(lengths)
            if stage.kl_coef > 0 and stage.kl_place == "token_reward":
                old, reference = torch.cat(experience.old), torch.cat(experience.reference)
                rewards = token_rewards(scores, old, reference, stage.kl_coef, lengths)
                of = torch.arange(len(lengths)).repeat_interleave(lengths)
                flat, _ = gae(rewards, torch.zeros_like(rewards), of, gamma=1.0, lam=1.0)
        else:
            kind = "group_mean" if stage.advantage == "group_whitened" else stage.advantage
            groups = len(experience.groups)
            each = group_advantages(scores, owner, groups, kind=kind, epsilon=1e-4)
            flat = each.repeat_interleave(lengths)
        if stage.advantage.endswith("whitened"):
            mean, variance = mean_variance(moments(flat))
            flat = whiten(flat, mean, variance, shift_mean=True, epsilon=1e-8)
        return list(flat.split(lengths.tolist()))

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

        With a ratio per sequence, a completion's term is weighted so that at ρ = 1 the gradient is
        the one of the ratio per token: as one of its tokens is, or as all of them together where
        the ratio is their geometric mean (whose gradient is the mean of theirs).
        """
        stage, tokens, batch = self.stage, pack.tokens, pack.batch
        bounds = {"clip_low": stage.clip_low, "clip_high": stage.clip_high}
        logps = TokenLogps(new=new, old=tokens["old"])
        advantages, weights = tokens["advantages"], tokens["weights"]
        if stage.ratio == "token":
            losses = clipped_surrogate(logps, advantages, **bounds)
            return (losses * weights).sum(), clip_fraction(logps, advantages, **bounds)
        if stage.ratio == "token_weight":
            losses = clipped_weight_surrogate(logps, advantages, **bounds)
            return (losses * weights).sum(), weight_clip_fraction(logps, **bounds)
        last = batch.lengths.cumsum(0) - 1  # of each completion, whose tokens all have the same
        advantages, weights = advantages[last], weights[last]
        completion, lengths = batch.target_completion, batch.lengths
        mean = stage.ratio == "sequence_mean"
        ratio: Literal["product", "geometric_mean"] = "geometric_mean" if mean else "product"
        losses = sequence_surrogate(logps, advantages, completion, lengths, **bounds, ratio=ratio)
        sums = [segment_sum(x, completion, batch.completions) for x in (new, logps.old)]
        if mean:
            weights, sums = weights * lengths, [x / lengths for x in sums]
        whole = TokenLogps(new=sums[0], old=sums[1])
        return (losses * weights).sum(), clip_fraction(whole, advantages, **bounds)

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
