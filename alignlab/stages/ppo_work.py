"""PPO as the loop sees it: rollouts at the start of an iteration, then its minibatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from alignlab.data.order import step_rows
from alignlab.data.pack import flatten
from alignlab.engine.work import Micro
from alignlab.objectives.advantage import gae, mean_variance, moments, whiten
from alignlab.objectives.divergence import adapt_coefficient
from alignlab.objectives.likelihood import nll
from alignlab.objectives.policy import (
    clip_fraction,
    clipped_surrogate,
    clipped_value,
    importance_ratio,
)
from alignlab.rewards.shaping import missing_eos, token_rewards
from alignlab.stages.online import (
    OnlinePack,
    collect,
    pack_experience,
    shared_outputs,
)
from alignlab.stages.online_metrics import rollout_metrics
from alignlab.stages.session import split
from alignlab.stages.sft import completion_tokens
from alignlab.tensors import TokenLogps

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.data.template import Tokenization
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone, View
    from alignlab.stages.online import Experience, Scorer
    from alignlab.stages.outside import Outside
    from alignlab.stages.packed import Metrics
    from alignlab.stages.ppo import PPO


class PPOWork:
    """The loop's view of PPO: rollouts at the start of an iteration, then its minibatches."""

    def __init__(
        self,
        stage: PPO,
        backbone: Backbone,
        tokenization: Tokenization,
        prompts: Sequence[TokenGroup],
        ptx: Sequence[TokenGroup],
        scorer: Scorer,
        engine: Engine,
        keep: Path | None = None,
        outside: Outside | None = None,
    ) -> None:
        self.stage, self.backbone, self.tokenization = stage, backbone, tokenization
        self.prompts, self.ptx, self.scorer, self.engine = prompts, ptx, scorer, engine
        self.keep = keep  # a file for the rollout in use, should a signal come
        self.outside = outside  # what samples in place of the policy itself
        self.kl_coef = stage.kl_coef
        self.sampled = 0
        self.experience: Experience | None = None
        self.iteration = -1

    def micros(self, step: int) -> list[Micro]:
        """Micro-batches of one minibatch; the first of an iteration samples its rollouts."""
        stage = self.stage
        iteration, position = divmod(step - 1, stage.ppo_epochs * stage.minibatches)
        fresh = iteration != self.iteration or self.experience is None
        kl_coef = self.kl_coef  # of this iteration; `collect` moves it for the next
        if fresh:
            self.experience = self.collect(iteration)
            self.iteration = iteration
        experience = self.experience
        assert experience is not None
        epoch, index = divmod(position, stage.minibatches)
        size = len(experience.groups)
        order = step_rows(epoch, size, size, stage.seed * 1_000_003 + iteration)
        chosen = order[index :: stage.minibatches]
        count = float(sum(len(experience.groups[g].completions[0]) for g in chosen))
        policy = pack_experience(
            experience,
            chosen,
            ["old", "advantages", *(["importance"] if experience.outside else [])],
            view="policy",
            term="policy",
            count=count,
            engine=self.engine,
        )
        value = pack_experience(
            experience,
            chosen,
            ["values", "returns"],
            view="value",
            term="value",
            count=count,
            engine=self.engine,
        )
        if fresh and self.engine.workers().is_main:  # all know the same, and one reports it
            metrics = {
                **rollout_metrics(experience),
                "kl_coef": (kl_coef, 1),
            }
            policy[0] = replace(policy[0], data=replace(policy[0].data, metrics=metrics))
        return [*policy, *self.pretraining(step), *value]

    def collect(self, iteration: int) -> Experience:
        """Sample, score, shape rewards, estimate advantages; move an adaptive KL coefficient."""
        stage = self.stage
        rows = step_rows(iteration, stage.rollout_batch, len(self.prompts), stage.seed)
        experience, _ = collect(
            self.backbone,
            [replace(self.prompts[r]) for r in rows],
            self.tokenization,
            stage.sampling,
            completions=1,
            seed=stage.seed,
            step=iteration,
            scorer=self.scorer,
            engine=self.engine,
            keep=self.keep,
            outside=self.outside,
            reference=True,
        )
        self.sampled += int(experience.lengths.sum())
        values = shared_outputs(
            self.backbone, "value", experience.groups, self.engine, lambda v, b: v.values(b)
        )
        scores = experience.scores
        if stage.missing_eos_score is not None:
            scores = missing_eos(scores, experience.finished, replace=stage.missing_eos_score)
        lengths = experience.lengths
        owner = torch.arange(len(lengths)).repeat_interleave(lengths)
        rewards = token_rewards(
            scores,
            torch.cat(experience.old),
            torch.cat(experience.reference),
            self.kl_coef,
            lengths,
        )
        advantages, returns = gae(
            rewards, torch.cat(values), owner, gamma=stage.gamma, lam=stage.lam
        )
        if stage.whiten_advantages:
            mean, variance = mean_variance(moments(advantages))
            advantages = whiten(advantages, mean, variance, shift_mean=True, epsilon=1e-8)
        sizes = lengths.tolist()
        experience.tokens |= {
            "values": values,
            "returns": list(returns.split(sizes)),
            "advantages": list(advantages.split(sizes)),
        }
        if stage.kl_target is not None:
            observed = float(experience.log_ratio().mean())
            self.kl_coef = adapt_coefficient(
                self.kl_coef,
                observed,
                len(scores),
                target=stage.kl_target,
                horizon=stage.kl_horizon,
            )
        return experience

    def pretraining(self, step: int) -> list[Micro]:
        """Demonstration micro-batches of PPO-ptx, as many rows as the minibatch has rollouts."""
        if not self.ptx:
            return []
        size = max(1, self.stage.rollout_batch // self.stage.minibatches)
        chosen = [
            self.ptx[r] for r in step_rows(step - 1, size, len(self.ptx), self.stage.seed + 1)
        ]
        count = completion_tokens(chosen)
        micros = []
        for part in split(self.engine.workers().share(chosen), self.engine.budget):
            batch = flatten(part).to(self.engine.workers().device)
            data = OnlinePack(batch, "pretraining", count, {})
            micros.append(Micro(view="policy", data=data, tokens=batch.tokens, label="ptx rows"))
        return micros

    def loss(self, view: View, micro: Micro) -> tuple[Tensor, Metrics]:
        """The term of the loss that this micro-batch carries."""
        terms = {"policy": self.policy_loss, "value": self.value_loss, "pretraining": self.ptx_loss}
        loss, metrics = terms[micro.data.term](view, micro)
        return loss / micro.data.count, {**metrics, **micro.data.metrics}

    def policy_loss(self, view: View, micro: Micro) -> tuple[Tensor, Metrics]:
        """Clipped surrogate, summed over tokens."""
        tokens = micro.data.tokens
        new = view.logps(micro.data.batch, temperature=self.stage.sampling.temperature)
        logps = TokenLogps(new=new, old=tokens["old"])
        bounds = {"clip_low": self.stage.clip, "clip_high": self.stage.clip}
        losses = clipped_surrogate(logps, tokens["advantages"], **bounds)
        clipped = clip_fraction(logps, tokens["advantages"], **bounds)
        ratio = importance_ratio(logps).detach()
        log_ratio = new.detach() - tokens["old"]
        count = len(ratio)
        if "importance" in tokens:
            losses = losses * tokens["importance"]
        return losses.sum(), {
            "clip_fraction": (clipped.double().sum(), count),
            "approx_kl": ((ratio - 1 - log_ratio).double().sum(), count),  # k3 of old and new
            "ratio": (ratio.double().sum(), count),
        }

    def value_loss(self, view: View, micro: Micro) -> tuple[Tensor, Metrics]:
        """Clipped squared error of the value view, summed over tokens."""
        tokens = micro.data.tokens
        losses = clipped_value(
            view.values(micro.data.batch),
            tokens["values"],
            tokens["returns"],
            clip=self.stage.value_clip,
        )
        return self.stage.value_coef * losses.sum(), {
            "value_loss": (losses.detach().double().sum(), len(losses))
        }

    def ptx_loss(self, view: View, micro: Micro) -> tuple[Tensor, Metrics]:
        """γ times the language-modelling loss on demonstrations, summed over tokens."""
        losses = nll(view.logps(micro.data.batch))
        return self.stage.ptx_coef * losses.sum(), {
            "ptx_nll": (losses.detach().double().sum(), len(losses))
        }

    def state(self) -> dict[str, Any]:
        """What is not a function of (seed, step): the rollouts in use and the KL coefficient."""
        return {
            "kl_coef": self.kl_coef,
            "sampled": self.sampled,
            "iteration": self.iteration,
            "experience": self.experience,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue in the middle of an iteration with the same rollouts."""
        self.kl_coef, self.sampled = state["kl_coef"], state["sampled"]
        self.iteration, self.experience = state["iteration"], state["experience"]
