"""Likelihood objectives: supervised fine-tuning, pretraining and PPO's pretraining mix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def nll(logps: Tensor) -> Tensor:
    """Negative log-likelihood of each target token.

    ``loss_n = −log π(y_n | x, y_<n)``

    The sum over all targets of an optimizer step divided by their *global* number is the SFT loss;
    multiplied by γ it is the pretraining term of InstructGPT, 2203.02155 eq. 2. TRL averages per
    micro-batch token count (SFT agrees with ours); TRL's ORPO takes this mean over prompt *and*
    completion, we only ever score completions.

    Args:
        logps: (N,) log-probability of each target, nats.

    Returns:
        (N,) loss per target, nats.
    """
    return -logps
