"""Preference objectives over pairs that change DPO's two curves: its link, or its loss of the gap.

DPO's *link* from probability ratio to reward is the logarithm, which comes from a KL penalty; other
divergences have other links. Its loss of the gap h between two rewards is the logistic one.
``lr(y)`` is the summed log-ratio, ``h = lr(y_w) − lr(y_l)``. The last two have no reference; they
do the same to SimPO, whose reward is the mean log-prob ``p = lp/|y|``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from alignlab import lazy
from alignlab.annotations import Range
from alignlab.objectives.bounds import NonNegative, Positive
from alignlab.objectives.declaration import called
from alignlab.objectives.pairwise import log_ratios, mean_logps
from alignlab.objectives.stable import safe_exp, safe_expm1
from alignlab.tensors import PairLogps

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    torch = lazy.module("torch")
    F = lazy.module("torch.nn.functional")

Finite = Annotated[float, Range(min=-math.inf, min_open=True, max=math.inf, max_open=True)]
SomeFlips = Annotated[float, Range(min=0.0, min_open=True, max=0.5, max_open=True)]


@called("χPO")
def chi_po(
    policy: PairLogps, reference: PairLogps, *, beta: Positive, reward_bound: Positive
) -> Tensor:
    """DPO for a χ² and KL penalty, which makes far steps from the reference dear (pessimism).

    ``loss = −log σ(clip(β[φ(y_w) − φ(y_l)], ±2R))``, ``φ(y) = z + log z``, ``z = exp(lr(y))``

    χPO, Huang et al. 2024, 2407.13399 algorithm 1. Beyond lr = 20 nats exp goes on as its tangent,
    where the authors clamp it (and lose the gradient). A pair beyond the clip has no gradient, on
    either side. TRL has none.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: strength of the penalty; the optimum has ``βφ = r − const``.
        reward_bound: R, largest difference from 0 that a reward can have.

    Returns:
        (B,) loss per pair; log 2 at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    gap = (safe_exp(chosen) + chosen) - (safe_exp(rejected) + rejected)
    return -F.logsigmoid((beta * gap).clamp(-2 * reward_bound, 2 * reward_bound))


@called("f-DPO")
def f_dpo(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Positive,
    divergence: Literal["forward_kl", "jensen_shannon"],
) -> Tensor:
    """DPO for another divergence from the reference than the reverse KL.

    ``loss = −log σ(β[f′(z_w) − f′(z_l)])``, ``z = exp(lr)``

    | ``forward_kl``: ``f′ = −1/z``, covers what the reference writes
    | ``jensen_shannon``: ``f′ = log(2z/(1 + z))``, between forward and reverse KL

    f-DPO, Wang et al. 2023, 2309.16240 (``reverse_kl``, f′ = log z, is DPO). TRL's
    ``f_divergence_type`` is the same up to constants, which cancel; its exp overflows below
    lr = −88, ours goes on as its tangent from −20.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference.
        divergence: which one.

    Returns:
        (B,) loss per pair; log 2 at policy = reference.
    """
    ratios = log_ratios(policy, reference)
    if divergence == "forward_kl":
        chosen, rejected = (-safe_exp(-ratio) for ratio in ratios)
    elif divergence == "jensen_shannon":
        chosen, rejected = (F.logsigmoid(ratio) for ratio in ratios)
    else:
        raise ValueError(f"divergence must be forward_kl or jensen_shannon, not {divergence!r}")
    return -F.logsigmoid(beta * (chosen - rejected))


@called("EXO")
def exo_pair(
    policy: PairLogps, reference: PairLogps, *, beta: Positive, label_smoothing: SomeFlips
) -> Tensor:
    """Reverse KL from the policy's choice between the two answers to the annotator's.

    ``loss = q·log(q/(1 − ε)) + (1 − q)·log((1 − q)/ε)``, ``q = σ(βh)``

    EXO, Ji et al. 2024, 2402.00856 eq. 16 (EXO-pref). DPO's loss is the forward KL to (1, 0);
    here the labels need some doubt ε, or the divergence is infinite. TRL's ``exo_pair`` is the
    same. For scores of K answers: `alignlab.objectives.groupwise.exo`.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: β_π, how sharply the policy chooses, 1/nats.
        label_smoothing: ε in (0, ½), the annotator's doubt; 0.001 in the authors' code.

    Returns:
        (B,) loss per pair, ≥ 0; −log 2 − ½·log(ε(1 − ε)) at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    logits = beta * (chosen - rejected)
    win = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    lose = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(label_smoothing))
    return win + lose


@called("DiscoPOP")
def discopop(policy: PairLogps, reference: PairLogps, *, beta: Positive, tau: Positive) -> Tensor:
    """Blend of the logistic and the exponential loss that a language model proposed.

    ``loss = (1 − s)·(−log σ(βh)) + s·exp(−βh)``, ``s = σ(βh/τ)``

    DiscoPOP (log-ratio modulated loss), Lu et al. 2024, 2406.08414 eq. 5. Not convex: at policy =
    reference it *rises* with the gap (slope 0.78 at τ = 0.05), so a pair there is pushed apart the
    wrong way until others have moved the policy. TRL's ``discopop`` is the same, without the
    tangent that keeps exp finite here.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: scale of the gap, 1/nats.
        tau: τ, width in βh of the change from one loss to the other; 0.05 in the paper.

    Returns:
        (B,) loss per pair; ½(1 + log 2) at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    logits = beta * (chosen - rejected)
    share = torch.sigmoid(logits / tau)
    return (1 - share) * -F.logsigmoid(logits) + share * safe_exp(-logits)


@called("AlphaPO")
def alpha_po(
    policy: PairLogps, *, alpha: Finite, beta: Positive, gamma_beta_ratio: NonNegative
) -> Tensor:
    """SimPO whose reward bends: a power of the mean probability in place of its logarithm.

    ``loss = −log σ(β[r(y_w) − r(y_l) − γ/β])``, ``r(y) = (1 − e^(−αp))/α``, and p where α = 0

    AlphaPO, Gupta et al. 2025, 2501.03884. With α > 0 the reward is steeper the less likely an
    answer is, so that less likely ones move most; with α < 0 the likelier ones do. TRL's CPO
    trainer (``loss_type="alphapo"``) is the same, and takes γ itself; it raises eᵖ to the power −α,
    which is infinite where eᵖ is 0 in float32, and ours goes on as its tangent from p = −20/α.

    Args:
        policy: (B,) summed log-probs and lengths of the trained policy.
        alpha: α, how much the reward bends; 0 is `alignlab.objectives.pairwise.simpo`.
        beta: scale of the rewards.
        gamma_beta_ratio: target margin between the rewards of chosen and rejected.

    Returns:
        (B,) loss per pair.
    """
    chosen, rejected = mean_logps(policy)
    if alpha:
        chosen, rejected = (-safe_expm1(-alpha * p) / alpha for p in (chosen, rejected))
    return -F.logsigmoid(beta * (chosen - rejected - gamma_beta_ratio))


@called("SimPER")
def simper(policy: PairLogps) -> Tensor:
    """Difference of the geometric mean token probabilities; no reference, no hyperparameter.

    ``loss = e^p(y_l) − e^p(y_w)``: the inverse perplexities of both answers

    SimPER, Xiao et al. 2025, 2502.00883. Its slope in p is the probability itself, so an answer
    that has become unlikely is pushed no further, as the logarithm would. TRL has none; the
    authors' code is the same.

    Args:
        policy: (B,) summed log-probs and lengths of the trained policy.

    Returns:
        (B,) loss per pair in (−1, 1).
    """
    chosen, rejected = mean_logps(policy)
    return rejected.exp() - chosen.exp()
