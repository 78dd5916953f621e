"""Preference objectives over single completions with a thumb: one loss per completion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab import lazy
from alignlab.objectives.bounds import NonNegative, Positive
from alignlab.objectives.declaration import called
from alignlab.tensors import SingleLogps

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    torch = lazy.module("torch")
    F = lazy.module("torch.nn.functional")


def kl_point(log_ratios_mismatched: Tensor) -> Tensor:
    """KTO's reference point z₀: a biased, cheap estimate of KL(π ‖ π_ref), without gradient.

    ``z₀ = max(0, mean_i [log π(y′_i|x_i) − log π_ref(y′_i|x_i)])``

    KTO, 2402.01306, where y′_i is the completion of *another* prompt of the same optimizer
    step (a shift by one). The mean is over the whole step and all ranks, and the clamp comes after
    it, so accumulation, packing and sharding do not change z₀. HALOs does the same per micro-batch;
    TRL averages the ranks' means per micro-batch.

    Args:
        log_ratios_mismatched: (M,) summed log-ratios of the mismatched completions of the step.

    Returns:
        () nats, ≥ 0.

    Raises:
        ValueError: M = 0; a step of one prompt has no mismatched pair to estimate from.
    """
    if log_ratios_mismatched.numel() == 0:
        raise ValueError("kl_point needs at least one mismatched completion: two prompts per step")
    return log_ratios_mismatched.detach().mean().clamp(min=0)


@called("KTO")
def kto(
    policy: SingleLogps,
    reference: SingleLogps,
    kl_point: Tensor,
    *,
    beta: Positive,
    desirable_weight: NonNegative,
    undesirable_weight: NonNegative,
) -> Tensor:
    """Prospect-theoretic value of a completion against the reference point z₀.

    ``loss = λ_D·(1 − σ(β(lr − z₀)))`` for thumbs up, ``λ_U·(1 − σ(β(z₀ − lr)))`` for thumbs down

    KTO, 2402.01306 eq. 8, with its λ_y − v written out as in the authors' code. lr is the *summed*
    log-ratio. Each completion counts once, whatever its thumb. TRL's loss is the same given the
    same z₀ (`kl_point` says how z₀ differs); TRL trains paired data unshuffled.

    Args:
        policy: (B,) summed log-probs of the trained policy, and the thumbs.
        reference: the same completions under the frozen reference.
        kl_point: () z₀ of the optimizer step, nats.
        beta: risk aversion; how fast the value saturates in lr, 1/nats.
        desirable_weight: λ_D; keep λ_D·n_D / (λ_U·n_U) between 1 and 3/2.
        undesirable_weight: λ_U.

    Returns:
        (B,) loss per completion; λ_y/2 at policy = reference.
    """
    value = beta * (policy.completion - reference.completion - kl_point)
    desirable = desirable_weight * torch.sigmoid(-value)
    undesirable = undesirable_weight * torch.sigmoid(value)
    return torch.where(policy.desirable, desirable, undesirable)


def log_ratio_shift(log_ratios: Tensor, desirable: Tensor) -> Tensor:
    """BCO's reward shift, in log-ratios: half-way between the two kinds of completions; detached.

    ``s = ½·(mean of lr with a thumb up + mean of lr with a thumb down)``, so that δ = β·s

    BCO, 2404.04656: the shift with which binary cross-entropy bounds DPO's loss most closely.
    Both means are over the whole optimizer step and all processes, under the policy as it is before
    the step. TRL's former trainer and NeMo-RL keep a running mean over earlier steps, which lags
    behind the policy. Where all thumbs of a step are alike, their mean stands for both.

    Args:
        log_ratios: (B,) summed log-ratios of all completions of the step that have a thumb.
        desirable: (B,) bool, their thumbs.

    Returns:
        () nats.

    Raises:
        ValueError: B = 0.
    """
    if log_ratios.numel() == 0:
        raise ValueError("log_ratio_shift needs at least one completion with a thumb")
    found = log_ratios.detach()
    kinds = [found[desirable], found[~desirable]]
    means = [kind.mean() for kind in kinds if len(kind)]
    return torch.stack(means).mean()


@called("BCO")
def bco(
    policy: SingleLogps, reference: SingleLogps, log_ratio_shift: Tensor, *, beta: Positive
) -> Tensor:
    """Binary cross-entropy of a classifier whose logit is the implicit reward, shifted.

    ``loss = −log σ(β(lr − s))`` for thumbs up, ``−log σ(−β(lr − s))`` for thumbs down

    BCO, 2404.04656; s of `log_ratio_shift`. Not included is the paper's correction for thumbs
    up and down that come from different prompts (its density ratio needs a classifier of prompts).
    TRL's ``bco_pair`` is the sum of the two losses of a pair at s = 0.

    Args:
        policy: (B,) summed log-probs of the trained policy, and the thumbs.
        reference: the same completions under the frozen reference.
        log_ratio_shift: () s of the optimizer step, nats.
        beta: scale of the implicit reward, 1/nats.

    Returns:
        (B,) loss per completion; log 2 at policy = reference (where s = 0).
    """
    logits = beta * (policy.completion - reference.completion - log_ratio_shift)
    return -F.logsigmoid(torch.where(policy.desirable, logits, -logits))


def single_metrics(policy: SingleLogps, reference: SingleLogps) -> dict[str, Tensor]:
    """Collect what every unpaired method reports, in nats and tokens; no gradient.

    ``accuracy`` is 1 where the sign of the log-ratio agrees with the thumb, ½ where it is zero.

    Args:
        policy: (B,) summed log-probs, lengths and thumbs of the trained policy.
        reference: the same completions under the frozen reference.

    Returns:
        metric name to (B,), unreduced; split by ``policy.desirable`` where wanted.
    """
    ratio = policy.completion.detach() - reference.completion
    sign = torch.where(policy.desirable, ratio, -ratio).sign()
    return {
        "logp": policy.completion.detach(),
        "length": policy.length.to(ratio.dtype),
        "log_ratio": ratio,
        "accuracy": (sign + 1) / 2,
    }
