"""Reward-model objectives: one loss per prompt from the scores of all its completions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab import lazy
from alignlab.objectives.bounds import NonNegative
from alignlab.objectives.stable import segment_mean, segment_sum
from alignlab.tensors import GroupScores

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    torch = lazy.module("torch")
    F = lazy.module("torch.nn.functional")


def bradley_terry(scores: GroupScores, *, centering: NonNegative) -> Tensor:
    """Logistic loss over all ordered pairs of a prompt, the prompt being one batch element.

    ``loss_g = mean_{(w,l) ∈ g} [ −log σ(r_w − r_l − m) + c·(r_w + r_l)² ]``

    InstructGPT, 2203.02155 eq. 1 (``m = c = 0``); margin m as in Llama 2, 2307.09288;
    centering as in 2312.09244 eq. 2. TRL's trainer sees isolated pairs: for K = 2 the two agree,
    for K > 2 TRL weights a prompt by its number of pairs and forwards a completion K − 1 times.

    Args:
        scores: rewards (C,), ordered pairs (P,), margin (P,) or None.
        centering: c ≥ 0; pulls the two rewards of a pair to opposite sides of zero, so that
            rewards of different prompts share an origin. 0 turns it off; 0.01 is customary.

    Returns:
        (G,) loss per prompt; 0 for a prompt without pairs (all tied), which the caller leaves
        out of the count.
    """
    better, worse = scores.reward[scores.better], scores.reward[scores.worse]
    margin = 0.0 if scores.margin is None else scores.margin
    loss = -F.logsigmoid(better - worse - margin) + centering * (better + worse).square()
    return segment_mean(loss, scores.pair_group, scores.groups)


def plackett_luce(scores: GroupScores) -> Tensor:
    """Negative log-likelihood of the whole ranking under repeated softmax choices.

    ``loss_g = −Σ_i [ r_(i) − log Σ_{j ≥ i} exp r_(j) ]`` over ranks i from best to worst

    Plackett 1975, Luce 1959; for language models DPO, 2305.18290 eq. 18. Ties: each of the tied
    completions is chosen against itself and everything strictly below it. For K = 2 it is
    Bradley–Terry; for K > 2 it is a different estimator, and a sum that grows with K. TRL has none.

    Args:
        scores: rewards (C,) and all ordered pairs (P,) of a ranking; no margin.

    Returns:
        (G,) loss per prompt; 0 for a prompt without pairs.

    Raises:
        ValueError: the scores carry margins, which a ranking likelihood has no place for.
    """
    loss, group, chooses = _choice_losses(scores)
    return segment_sum(loss[chooses], group[chooses], scores.groups)


def top_one(scores: GroupScores) -> Tensor:
    """Softmax cross-entropy of the best completion against all below it.

    ``loss_g = −[ r_best − log Σ_j exp r_j ]``

    Ziegler 2019, 1909.08593 (their labelers pick the best of four). Several undefeated
    completions (a tie at the top) share the loss equally. Only the top of the ranking teaches.

    Args:
        scores: rewards (C,) and all ordered pairs (P,); no margin.

    Returns:
        (G,) loss per prompt; 0 for a prompt without pairs.

    Raises:
        ValueError: the scores carry margins, which a softmax has no place for.
    """
    loss, group, chooses = _choice_losses(scores)
    defeated = torch.zeros_like(chooses).index_fill(0, scores.worse, True)
    best = chooses & ~defeated
    return segment_mean(loss[best], group[best], scores.groups)


def _choice_losses(scores: GroupScores) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of choosing each completion from itself and all below it, group, any below; (C,)."""
    if scores.margin is not None:
        raise ValueError("margins need bradley_terry: a softmax over completions cannot use them")
    reward = scores.reward
    below = reward[scores.worse]
    # The largest term of every log-sum-exp, subtracted for stability and constant for the gradient.
    top = reward.detach().scatter_reduce(0, scores.better, below.detach(), "amax")
    total = (reward - top).exp().index_add(0, scores.better, (below - top[scores.better]).exp())
    group = torch.zeros_like(reward, dtype=torch.int64)
    group = group.scatter(0, scores.better, scores.pair_group)
    chooses = torch.zeros_like(reward, dtype=torch.bool).index_fill(0, scores.better, True)
    return top + total.log() - reward, group, chooses


def pair_accuracy(scores: GroupScores) -> Tensor:
    """Share of a prompt's pairs that the rewards order rightly; an equal reward counts one half.

    Args:
        scores: rewards (C,) and ordered pairs (P,).

    Returns:
        (G,) in [0, 1]; 0 for a prompt without pairs. InstructGPT reports the mean over all pairs.
    """
    gap = scores.reward[scores.better] - scores.reward[scores.worse]
    return segment_mean((gap.sign() + 1) / 2, scores.pair_group, scores.groups)
