"""Likelihood objectives: supervised fine-tuning, pretraining and PPO's pretraining mix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.objectives.bounds import Share

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


def smoothed_nll(logps: Tensor, mean_logps: Tensor, *, label_smoothing: Share) -> Tensor:
    """Negative log-likelihood under smoothed labels, of each target token.

    ``loss_n = −(1 − ε) log π(y_n | x, y_<n) − ε / |V| Σ_v log π(v | x, y_<n)``

    The cross-entropy to a target that gives ε to the uniform distribution over the vocabulary, the
    right token included (Szegedy et al. 2016, 1512.00567 §7), as torch's ``cross_entropy`` has it.
    It is lowest where the right logit lies ``log(|V| (1 − ε) / ε + 1)`` above the others, and not
    infinitely far. At ε = 0 it is `nll`; trainings with unlike ε are compared by their `nll`.

    Args:
        logps: (N,) log-probability of each target, nats.
        mean_logps: (N,) mean log-probability of all tokens of the vocabulary at the same places.
        label_smoothing: ε, the share of the uniform distribution.

    Returns:
        (N,) loss per target, nats.
    """
    return -(1 - label_smoothing) * logps - label_smoothing * mean_logps
