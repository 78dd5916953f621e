"""Rollouts by a sampler outside of the trainer (vLLM), and the correction of what they train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from alignlab.engine.stopping import together
from alignlab.rollout.correction import truncated_importance
from alignlab.rollout.rollout import (
    Rollout,
    occurrences,
    prompt_seed,
    rollout_of,
    sample_rollout,
)
from alignlab.rollout.vllm import Asked, Sampler, require_close
from alignlab.spec import Spec, build

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.data.template import Tokenization
    from alignlab.engine.distributed import Workers
    from alignlab.models.backbone import Backbone
    from alignlab.rollout.sampling import Sampling
    from alignlab.run import Run


@dataclass(frozen=True)
class Gaps:
    """How far sampler and trainer were apart on one iteration's rollouts, over all processes."""

    mean: float  # |log π − log μ| over tokens, nats
    largest: float
    capped: float  # share of tokens whose importance weight was cut


@dataclass(frozen=True)
class Outside:
    """What samples in place of the trainer; ``whole``: one weight for each completion."""

    sampler: Sampler
    whole: bool = False

    def rollout(
        self,
        prompts: Sequence[TokenGroup],
        tokenization: Tokenization,
        sampling: Sampling,
        n: int,
        seed: int,
        step: int,
        earlier: Sequence[int],
    ) -> Rollout:
        """Sample as `sample_rollout` does; the log-probabilities are the sampler's."""
        seeds = [
            prompt_seed(seed, step, group.row, before)
            for group, before in zip(prompts, earlier, strict=True)
        ]
        stop = tokenization.stop_ids
        ids = (stop,) if isinstance(stop, int) else tuple(stop)
        asked = Asked([g.prompt for g in prompts], n, sampling, ids, seeds)
        return rollout_of(prompts, self.sampler.sample(asked), n, tokenization)

    def corrected(
        self, trainer: Sequence[Tensor], sampler: Sequence[Tensor], workers: Workers
    ) -> tuple[list[Tensor], Gaps]:
        """Importance weights of this process's tokens, and how far the two are apart on all.

        Raises:
            TrainingError: beyond rounding (``max_gap``).
        """
        found = truncated_importance(trainer, sampler, self.sampler.cap, whole=self.whole)
        tokens = sum(map(len, found.weights))
        sums = torch.tensor([found.gap_mean * tokens, found.capped * tokens, float(tokens)])
        total = workers.sum(sums.double().to(workers.device)).tolist()
        largest = workers.max(torch.tensor([found.gap_max]).to(workers.device))
        count = max(total[2], 1.0)
        gaps = Gaps(total[0] / count, float(largest.max()), total[1] / count)
        require_close(gaps.mean, self.sampler.max_gap)
        return found.weights, gaps


def sampled(
    outside: Outside | None,
    backbone: Backbone,
    prompts: Sequence[TokenGroup],
    tokenization: Tokenization,
    sampling: Sampling,
    n: int,
    seed: int,
    step: int,
    *,
    workers: Workers,
    keep: Path | None,
) -> Rollout:
    """Sample this process's share of ``prompts``: by the policy, or by what stands in for it.

    A signal is heeded on all processes; ``keep`` is where the policy's own rollout lies meanwhile.
    """
    mine, earlier = workers.share(prompts), workers.share(occurrences(prompts))
    if outside is not None:
        outside.sampler.sync(backbone, "policy", workers)

    def here() -> Rollout:
        asked = (tokenization, sampling, n, seed, step, earlier)
        if outside is not None:
            return outside.rollout(mine, *asked)
        with backbone.view("policy") as view:
            return sample_rollout(view, mine, *asked, keep)

    return together(workers, here)


def outside_of(rollout: Spec | None, run: Run, longest: int, *, whole: bool) -> Outside | None:
    """Open the sampler that a stage names; None where the trainer samples by itself."""
    if rollout is None:
        return None
    folder: Path = run.state_dir / "rollout_weights"
    return Outside(build(rollout).open(folder, longest), whole)
