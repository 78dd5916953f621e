"""Reward-model objectives for given scores: one loss per prompt from all its completions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab import lazy
from alignlab.objectives.stable import segment_mean
from alignlab.tensors import TargetScores, TargetShares

if TYPE_CHECKING:
    import torch.nn.functional as F
    from torch import Tensor
else:
    F = lazy.module("torch.nn.functional")


def squared_error(scores: TargetScores) -> Tensor:
    """Mean squared difference between the rewards of a prompt's completions and their scores.

    ``loss_g = mean_{y ∈ g} (r(y) − s(y))²``

    As the regression reward models of HelpSteer2, Wang et al. 2024, 2406.08673. Unlike a
    comparison it keeps the scale of the scores and their zero, and two prompts can be compared.

    Args:
        scores: rewards (C,) and given scores (C,).

    Returns:
        (G,) loss per prompt, in squared units of the scores.
    """
    return segment_mean((scores.reward - scores.target).square(), scores.group, scores.groups)


def cross_entropy(scores: TargetShares) -> Tensor:
    """Binary cross-entropy of the reward as a logit, for thumbs or for scores in [0, 1].

    ``loss_g = mean_{y ∈ g} [ −s·log σ(r) − (1 − s)·log σ(−r) ]``

    The outcome reward model of Cobbe et al. 2021, 2110.14168, and Lightman et al. 2023,
    2305.20050: σ(r) is the probability that the completion is right. A score between 0 and 1 is
    the share of judges who say so.

    Args:
        scores: logits (C,) and given scores (C,) in [0, 1], which the stage has checked.

    Returns:
        (G,) loss per prompt; log 2 at r = 0.
    """
    target = scores.target
    losses = -target * F.logsigmoid(scores.reward) - (1 - target) * F.logsigmoid(-scores.reward)
    return segment_mean(losses, scores.group, scores.groups)
