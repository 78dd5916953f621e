"""Advantages, whitening and the weights that turn per-token losses into a named normaliser."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from alignlab.objectives.stable import segment_mean, segment_sum

GroupBaseline = Literal["group_std", "group_mean", "leave_one_out"]
Normalizer = Literal["sequence", "token", "constant"]


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, completion: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates over ragged completions, without padding.

    ``δ_t = r_t + γ·V_{t+1} − V_t``, ``A_t = Σ_l (γλ)^l·δ_{t+l}``, ``G_t = A_t + V_t``; V after the
    last token of a completion is 0.

    GAE, 1506.02438 eq. 16. Computed by doubling: the window of summed terms grows 1, 2, 4, …, so
    log₂(longest) vector operations over the flat tokens replace a loop over time.

    Args:
        rewards: (N,) reward after each token (KL penalty per token, score on the last).
        values: (N,) value estimate before each token.
        completion: (N,) int64, completion of each token; a completion's tokens stand in order and
            next to each other, as in a flat batch.
        gamma: γ discount in [0, 1]; 1 in every RLHF recipe, since episodes are short.
        lam: λ in [0, 1]; 1 is return − value (unbiased), 0 one-step; 0.95 customary.

    Returns:
        advantages (N,) and returns (N,), no gradient.
    """
    advantages = rewards + gamma * _later(values, completion, 1) - values
    longest = int(completion.bincount().max()) if len(completion) else 0
    step, decay = 1, gamma * lam
    while step < longest:
        advantages = advantages + decay * _later(advantages, completion, step)
        step, decay = 2 * step, decay * decay
    return advantages, advantages + values


def _later(x: Tensor, completion: Tensor, step: int) -> Tensor:
    """(N,) the value ``step`` tokens later in the same completion, 0 past its end."""
    later = torch.zeros_like(x)
    same = completion[step:] == completion[:-step]
    later[:-step] = torch.where(same, x[step:], 0)
    return later


@torch.no_grad()
def moments(x: Tensor) -> Tensor:
    """Count, sum and sum of squares, (3,) float64, to be added over micro-batches and ranks."""
    x = x.to(torch.float64)
    return torch.stack([torch.full_like(x.sum(), x.numel()), x.sum(), x.square().sum()])


def mean_variance(total: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance, () float64 each, from summed `moments`; 0, 0 when empty.

    Population variance, as Ziegler's ``tf.nn.moments`` and N+; TRL's PPO used Bessel's correction.
    """
    count = total[0].clamp(min=1)
    mean = total[1] / count
    return mean, (total[2] / count - mean.square()).clamp(min=0)


def whiten(
    x: Tensor, mean: Tensor, variance: Tensor, *, shift_mean: bool, epsilon: float
) -> Tensor:
    """Scale to unit variance with statistics of the whole optimizer step.

    ``(x − mean)/√(var + ε)``, plus the mean again unless ``shift_mean``.

    N+, 2403.17031 (advantages shifted, rewards not). The statistics come from outside
    (`moments` added over micro-batches and ranks, then `mean_variance`); TRL's PPO and
    Ziegler's code whiten each rank's own sample.

    Args:
        x: (N,) advantages or rewards.
        mean: () of the step.
        variance: () of the step.
        shift_mean: True for advantages (zero mean), False for rewards (keep the mean).
        epsilon: added to the variance; 1e-8 customary.

    Returns:
        (N,), no statistic taken from x itself.
    """
    scaled = (x - mean.to(x.dtype)) * torch.rsqrt(variance + epsilon).to(x.dtype)
    return scaled if shift_mean else scaled + mean.to(x.dtype)


@torch.no_grad()
def equal_groups(rewards: Tensor, group: Tensor, groups: int) -> Tensor:
    """(G,) bool: every completion of the group has the same reward, so it teaches nothing."""
    low = rewards.new_full((groups,), torch.inf).scatter_reduce(0, group, rewards, "amin")
    high = rewards.new_full((groups,), -torch.inf).scatter_reduce(0, group, rewards, "amax")
    return high <= low


@torch.no_grad()
def group_advantages(
    rewards: Tensor, group: Tensor, groups: int, *, kind: GroupBaseline, epsilon: float
) -> Tensor:
    """Advantage of each completion against the other completions of its prompt.

    | ``group_std``: ``(R − mean) / (std + ε)``, GRPO, 2402.03300 §4.1.2
    | ``group_mean``: ``R − mean``, Dr.GRPO, 2503.20783 §3.2
    | ``leave_one_out``: ``R − mean of the others = n/(n − 1)·(R − mean)``, RLOO, 2402.14740

    std is the sample one (n − 1), as in TRL (ε = 1e-4), verl (1e-6) and Dr.GRPO's code (1e-8). A
    group of one, or one whose rewards are all equal, gives exactly 0: nothing to compare. (verl
    gives a group of one its raw reward; TRL leaves the rounding error of the mean divided by ε.)

    Args:
        rewards: (C,) reward of each completion.
        group: (C,) int64 in ``[0, groups)``, prompt group of each completion.
        groups: G.
        kind: which baseline and scale.
        epsilon: ε, added to std; used by ``group_std`` only.

    Returns:
        (C,) advantages, no gradient.
    """
    size = segment_sum(torch.ones_like(rewards), group, groups)
    centred = rewards - segment_mean(rewards, group, groups)[group]
    if kind == "group_std":
        variance = segment_sum(centred.square(), group, groups) / (size - 1).clamp(min=1)
        advantages = centred / (variance.sqrt() + epsilon)[group]
    elif kind == "group_mean":
        advantages = centred
    elif kind == "leave_one_out":
        advantages = centred * (size / (size - 1).clamp(min=1))[group]
    else:
        raise ValueError(f"kind must be 'group_std', 'group_mean' or 'leave_one_out', not {kind!r}")
    return advantages.masked_fill(equal_groups(rewards, group, groups)[group], 0)


def token_weights(
    lengths: Tensor, *, normalizer: Normalizer, max_length: int | None
) -> tuple[Tensor, Tensor]:
    """Weight of every token of a completion, and what the batch adds to the global count.

    The loss of an optimizer step is ``Σ_tokens weight·loss / Σ_micro-batches count``:

    | ``sequence``: weight 1/|y|, count C: mean of per-sequence means. GRPO, 2402.03300 eq. 3
    | ``token``: weight 1, count Σ|y|: token mean. DAPO, 2503.14476 eq. 8; BNPO; PPO
    | ``constant``: weight 1/L_max, count C: Σ/(B·L_max). Dr.GRPO, 2503.20783

    ``sequence`` weakens the penalty on long wrong answers, so length grows; ``constant`` weights
    every token of every step alike; ``token`` does so within a step. TRL's ``bnpo`` averages the
    means of micro-batches instead, its ``dapo`` counts the generation batch, and verl's
    ``seq-mean-token-sum-norm`` divides by the padded width. Our weights do not depend on the
    micro-batch, so packing cannot matter.

    Args:
        lengths: (C,) completion tokens.
        normalizer: which of the three.
        max_length: L_max, the largest completion that sampling allows; for ``constant`` only.

    Returns:
        weight (C,) float32 and count () float32.

    Raises:
        ValueError: ``constant`` without ``max_length``, or an unknown normalizer.
    """
    tokens = lengths.to(torch.float32)
    completions = torch.full_like(tokens.sum(), len(lengths))
    if normalizer == "sequence":
        return 1 / tokens.clamp(min=1), completions
    if normalizer == "token":
        return torch.ones_like(tokens), tokens.sum()
    if normalizer != "constant":
        raise ValueError(f"normalizer must be sequence, token or constant, not {normalizer!r}")
    if max_length is None:
        raise ValueError("normalizer 'constant' needs max_length, the sampling limit in tokens")
    return torch.full_like(tokens, 1 / max_length), completions
