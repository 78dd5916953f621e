"""Preference objectives over pairs that hold each answer to the reference by itself.

DPO knows the gap between two log-ratios alone, so both answers may become less likely as long as
the gap grows. These say where each of the two shall go. ``lr(y)`` is the summed log-ratio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from alignlab import lazy
from alignlab.annotations import Range
from alignlab.objectives.bounds import Positive
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

Part = Annotated[float, Range(min=0.0, min_open=True, max=1.0)]


@called("APO-zero")
def apo_zero(policy: PairLogps, reference: PairLogps, *, beta: Positive) -> Tensor:
    """Make the chosen answer likelier than it was and the rejected one less likely.

    ``loss = 1 − σ(β·lr(y_w)) + σ(β·lr(y_l))``

    APO-zero, D'Oosterlinck et al. 2024, 2408.06266 eq. 7 (up to the constant 1, as in TRL's
    ``apo_zero``): for chosen answers that are better than what the policy would write.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: how fast the loss saturates in lr, 1/nats.

    Returns:
        (B,) loss per pair in (0, 2); 1 at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


@called("APO-down")
def apo_down(policy: PairLogps, reference: PairLogps, *, beta: Positive) -> Tensor:
    """Make both answers less likely, the rejected one more so.

    ``loss = σ(β·lr(y_w)) + 1 − σ(β(lr(y_w) − lr(y_l)))``

    APO-down, D'Oosterlinck et al. 2024, 2408.06266 eq. 8 (up to the constant 1, as in TRL's
    ``apo_down``): for chosen answers that are worse than what the policy would write. At policy =
    reference the two pulls on the chosen answer cancel, and only the rejected one moves.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: how fast the loss saturates in lr, 1/nats.

    Returns:
        (B,) loss per pair in (0, 2); 1 at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


@called("SPPO")
def sppo(policy: PairLogps, reference: PairLogps, *, beta: Positive) -> Tensor:
    """Squared distance of each log-ratio to half of what a certain win, or loss, is worth.

    ``loss = (lr(y_w) − 1/(2β))² + (lr(y_l) + 1/(2β))²``

    SPPO, Wu et al. 2024, 2405.00675 eq. 4.7 with η = 1/β and hard probabilities (the winner of the
    pair beats the policy for certain, the loser never does), as in TRL's ``sppo_hard``. The paper
    plays several rounds against its own last policy; one run of this stage is one round.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the policy of the round before.
        beta: 1/η; the log-ratios are pulled to ±1/(2β) nats (paper: η = 1000).

    Returns:
        (B,) loss per pair; 1/(2β²) at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    half = 1 / (2 * beta)
    return (chosen - half).square() + (rejected + half).square()


@called("Cal-DPO")
def cal_dpo(policy: PairLogps, reference: PairLogps, *, beta: Positive) -> Tensor:
    """DPO that also says how large the two log-ratios shall be, and not their gap alone.

    ``loss = −log σ(h) + (lr(y_w) − 1/(2β))² + (lr(y_l) + 1/(2β))²``, ``h = lr(y_w) − lr(y_l)``

    Cal-DPO, Xiao et al. 2024, 2412.14516: the reward is ½ for a chosen answer and −½ for a rejected
    one, and β·lr is calibrated to it. β is in the calibration alone; the first term is DPO's loss
    at β = 1, the others are `sppo`'s. TRL has none.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: the log-ratios are pulled to ±1/(2β) nats.

    Returns:
        (B,) loss per pair; log 2 + 1/(2β²) at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    return sppo(policy, reference, beta=beta) - F.logsigmoid(chosen - rejected)


@called("DPO-Shift")
def dpo_shift(
    policy: PairLogps, reference: PairLogps, *, beta: Positive, rejected_share: Part
) -> Tensor:
    """DPO that counts the rejected answer's reward in part, so that the chosen one has to rise.

    ``loss = −log σ(β[lr(y_w) − f·lr(y_l)])``

    DPO-Shift, Yang et al. 2025, 2502.07599, with a fixed f (they also let it rise or fall over the
    training). What both log-ratios do together does not cancel as in DPO, whose f is 1: where both
    fall by x, the logit falls by β(1 − f)x. TRL has none.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, as in `alignlab.objectives.pairwise.dpo`.
        rejected_share: f in (0, 1]; smaller raises the chosen answer more and the gap less.

    Returns:
        (B,) loss per pair; log 2 at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    return -F.logsigmoid(beta * (chosen - rejected_share * rejected))
