"""Metrics of the rollouts of one iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from alignlab.stages.online import Experience
    from alignlab.stages.packed import Metrics


def rollout_metrics(experience: Experience) -> Metrics:
    """What a person wants to know about an iteration's samples, as (sum, count)."""
    count = len(experience.scores)
    metrics: Metrics = {
        "reward": (experience.scores.double().sum(), count),
        "completion_length": (experience.lengths.double().sum(), count),
        "finished": (experience.finished.double().sum(), count),
        "entropy_estimate": (
            -torch.cat(experience.old).double().sum(),
            int(experience.lengths.sum()),
        ),
    }
    if thoughts := [one for one in experience.thoughts if one.text is not None]:
        metrics |= {
            "thinking_share": (len(thoughts), count),
            "thinking_length": (sum(one.tokens for one in thoughts), len(thoughts)),
            "thinking_cut": (sum(not one.closed for one in thoughts), len(thoughts)),
        }
    if experience.monitored is not None:
        metrics["monitored_reward"] = (experience.monitored.double().sum(), count)
    if experience.reference:
        metrics["kl"] = (experience.log_ratio().double().sum(), count)
    if experience.outside is not None:
        tokens = int(experience.lengths.sum())
        weights = torch.cat(experience.tokens["importance"]).double()
        metrics |= {
            "sampler_gap_mean": (experience.outside.mean, 1),
            "sampler_gap_max": (experience.outside.largest, 1),
            "importance": (weights.sum(), tokens),
            "importance_capped": (experience.outside.capped, 1),
        }
    return metrics
