"""Preference objectives over pairs that hold more than a comparison: likelihood, length, drops.

Notation as in `alignlab.objectives.pairwise`: ``lp(y)`` summed log-prob, ``lr(y)`` summed log-ratio
to the reference, ``h = lr(y_w) − lr(y_l)``, ``|y|`` tokens of the completion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from alignlab import lazy
from alignlab.objectives.bounds import NonNegative, Positive
from alignlab.objectives.declaration import called
from alignlab.objectives.pairwise import log_ratios
from alignlab.tensors import PairLogps

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    torch = lazy.module("torch")
    F = lazy.module("torch.nn.functional")

ROUNDING = 1e-3  # nats that a summed log-ratio may be off


@called("CPO")
def cpo(
    policy: PairLogps,
    *,
    beta: Positive,
    weight: NonNegative,
    normalize: Literal["sum", "mean"],
) -> Tensor:
    """DPO with a uniform reference, plus the likelihood of the chosen answer; no reference model.

    ``loss = −log σ(β(lp(y_w) − lp(y_l))) − λ·lp(y_w)``, or ``− λ·lp(y_w)/|y_w|``

    CPO, 2401.08417 eq. 3 (λ = 1). **Two conventions**: the paper prints the likelihood of the
    whole answer (``sum``), the authors' code and TRL take the mean per token (``mean``). TRL's mean
    is over prompt and completion tokens pooled over the micro-batch, ours over this pair's chosen
    completion.

    Args:
        policy: (B,) summed log-probs and lengths of the trained policy.
        beta: scale of the log-prob gap, 1/nats.
        weight: λ ≥ 0, weight of the likelihood (TRL: ``cpo_alpha``).
        normalize: ``sum`` or ``mean`` over the chosen answer's tokens, in the likelihood alone.

    Returns:
        (B,) loss per pair.
    """
    likelihood = policy.chosen
    if normalize == "mean":
        likelihood = likelihood / policy.chosen_length
    elif normalize != "sum":
        raise ValueError(f"normalize must be 'sum' or 'mean', not {normalize!r}")
    return -F.logsigmoid(beta * (policy.chosen - policy.rejected)) - weight * likelihood


@called("DPO+NLL")
def dpo_likelihood(
    policy: PairLogps, reference: PairLogps, *, beta: Positive, weight: NonNegative
) -> Tensor:
    """DPO plus the likelihood of the chosen answer, so that it does not fall with the rejected one.

    ``loss = −log σ(βh) − λ·lp(y_w)/|y_w|``

    Iterative RPO, Pang et al. 2024, 2404.19733 (λ = 1; they weight the other term); Llama 3,
    2407.21783 (λ = 0.2). TRL's ``loss_type=["sigmoid", "sft"]`` takes the likelihood's mean over
    the tokens of the micro-batch instead of each answer's.

    Args:
        policy: (B,) summed log-probs and lengths of the trained policy.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, as in `alignlab.objectives.pairwise.dpo`.
        weight: λ ≥ 0, weight of the mean log-prob of the chosen answer.

    Returns:
        (B,) loss per pair; log 2 − λ·lp(y_w)/|y_w| at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    likelihood = policy.chosen / policy.chosen_length
    return -F.logsigmoid(beta * (chosen - rejected)) - weight * likelihood


@called("DPOP")
def dpo_positive(
    policy: PairLogps, reference: PairLogps, *, beta: Positive, weight: NonNegative
) -> Tensor:
    """DPO with a penalty inside, where the chosen answer is less likely than under the reference.

    ``loss = −log σ(β(h − λ·max(0, −lr(y_w))))``

    DPO-Positive (Smaug), Pal et al. 2024, 2402.13228. At policy = reference, lr is nothing but
    rounding, whose sign would turn the whole penalty on or off: drops of less than a thousandth of
    a nat are none here. TRL has no such loss.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, as in `alignlab.objectives.pairwise.dpo`.
        weight: λ ≥ 0; 0 is DPO, the paper takes 5 to 500.

    Returns:
        (B,) loss per pair; log 2 at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    drop = torch.where(chosen < -ROUNDING, -chosen, 0)
    return -F.logsigmoid(beta * (chosen - rejected - weight * drop))


@called("R-DPO")
def dpo_length(
    policy: PairLogps, reference: PairLogps, *, beta: Positive, alpha: NonNegative
) -> Tensor:
    """DPO for a reward that pays for every token (length-regularised DPO).

    ``loss = −log σ(βh + α(|y_w| − |y_l|))``

    R-DPO, Park et al. 2024, 2403.19159. Its optimum is ``π_ref·exp((r − α|y|)/β)/Z``: a pair
    whose winner is the longer one counts as partly explained by its length, and teaches less. Not
    to be confused with rDPO (`alignlab.objectives.pairwise.robust_dpo`). TRL has none.

    Args:
        policy: (B,) summed log-probs and lengths of the trained policy.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, as in `alignlab.objectives.pairwise.dpo`.
        alpha: α ≥ 0, price of a token in units of the reward (paper: 0.01 to 0.05).

    Returns:
        (B,) loss per pair.
    """
    chosen, rejected = log_ratios(policy, reference)
    longer = policy.chosen_length - policy.rejected_length
    return -F.logsigmoid(beta * (chosen - rejected) + alpha * longer)
