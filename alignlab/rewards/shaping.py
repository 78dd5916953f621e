"""Pure functions that shape rewards before a policy-gradient method sees them."""

from __future__ import annotations

import torch
from torch import Tensor


def missing_eos(
    scores: Tensor, finished: Tensor, *, replace: float | None = None, penalty: float = 0.0
) -> Tensor:
    """Discourage completions that did not end by themselves.

    finished: R. Otherwise ``replace`` if given (the EOS trick: Stiennon et al. 2020, Huang et al.
    2024 with −1), else R − ``penalty``. A replaced score must lie below what finished completions
    get, or being cut off becomes attractive.

    Args:
        scores: (C,) rewards.
        finished: (C,) bool.
        replace: score of an unfinished completion.
        penalty: subtracted from it instead, ≥ 0.
    """
    if replace is not None:
        return torch.where(finished, scores, torch.full_like(scores, replace))
    return scores - penalty * (~finished).to(scores.dtype)


def clip(scores: Tensor, bound: float) -> Tensor:
    """Clip rewards (C,) to ±``bound`` (DeepSpeed-Chat: 5)."""
    return scores.clamp(-bound, bound)


def token_rewards(
    scores: Tensor, logps_old: Tensor, logps_ref: Tensor, kl_coef: float, lengths: Tensor
) -> Tensor:
    """Per-token rewards with the KL penalty inside (Ziegler et al. 2019).

    r_t = −β (log π_old(y_t) − log π_ref(y_t)) + 1[t = last] · R.

    The difference is not clamped: clamping it at 0 makes the penalty a biased KL.

    Args:
        scores: (C,) rewards of whole completions.
        logps_old: (N,) nats, under the policy that sampled.
        logps_ref: (N,) nats, under the reference.
        kl_coef: β ≥ 0.
        lengths: (C,) int64 tokens of each completion, all ≥ 1; they sum to N.

    Returns:
        (N,) in the order of the tokens.
    """
    if int(lengths.sum()) != len(logps_old) or len(lengths) != len(scores):
        raise ValueError(
            f"{len(scores)} scores and lengths that sum to {int(lengths.sum())} do not fit "
            f"{len(logps_old)} tokens."
        )
    if len(lengths) and int(lengths.min()) < 1:
        raise ValueError("A completion without tokens has no place for its score.")
    rewards = -kl_coef * (logps_old - logps_ref)
    last = lengths.cumsum(0) - 1
    return rewards.index_add(0, last, scores.to(rewards.dtype))
