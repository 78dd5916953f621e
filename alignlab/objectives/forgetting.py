"""Terms that hold a policy to the model that it started from: against forgetting.

Two kinds: divergences between the two models' next-token distributions, one number per token, and
penalties on the change of the weights, one number per tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from alignlab import lazy
from alignlab.annotations import Range

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy.module("torch")

Between = Annotated[float, Range(min=0.0, max=1.0, min_open=True, max_open=True)]


def forward_kl(policy: Tensor, start: Tensor) -> Tensor:
    """``KL(p ‖ q) = Σ_v p_v (log p_v − log q_v)``: the policy has to cover what the start does.

    Distillation as of Hinton et al. 2015 (1503.02531, at temperature 1), with the starting model as
    the teacher: Li & Hoiem 2016, "Learning without Forgetting", 1606.09282.

    Args:
        policy: (N, V) log-probabilities log q of the trained policy.
        start: (N, V) log-probabilities log p of the starting model, without gradient.

    Returns:
        (N,) nats per token.
    """
    return (start.exp() * (start - policy)).sum(-1)


def reverse_kl(policy: Tensor, start: Tensor) -> Tensor:
    """``KL(q ‖ p) = Σ_v q_v (log q_v − log p_v)``: the policy must not do what the start does not.

    Over tokens that the policy sampled this is the KL penalty of RLHF, summed over the vocabulary
    in place of being estimated; Gu et al. 2024, "MiniLLM", 2306.08543. Arguments as `forward_kl`.
    """
    return (policy.exp() * (policy - start)).sum(-1)


def jensen_shannon(policy: Tensor, start: Tensor, *, share: Between) -> Tensor:
    """``β KL(p ‖ m) + (1 − β) KL(q ‖ m)`` with ``m = β p + (1 − β) q``: bounded, between both.

    Agarwal et al. 2024, "GKD", 2306.13649 eq. 1. ½ is the Jensen–Shannon divergence, at most log 2;
    divided by β it goes to `forward_kl` as β goes to 0. TRL's GKD is the same inside of (0, 1) and
    has the two KLs themselves at its ends.

    Args:
        policy: (N, V) log-probabilities log q of the trained policy.
        start: (N, V) log-probabilities log p of the starting model, without gradient.
        share: β, weight of the start in the mixture.

    Returns:
        (N,) nats per token.
    """
    weights = torch.tensor([share, 1 - share], dtype=policy.dtype, device=policy.device).log()
    middle = torch.logaddexp(start + weights[0], policy + weights[1])
    return share * forward_kl(middle, start) + (1 - share) * forward_kl(middle, policy)


def weight_change(change: Tensor, importance: Tensor | None) -> Tensor:
    """``½ Σ_j F_j d_j²``: what a change d of a weight tensor costs.

    With F = 1, L2-SP (Li, Grandvalet & Davoine 2018, 1802.01483); with the diagonal of the
    Fisher information, EWC (Kirkpatrick et al. 2017, 1612.00796 eq. 3). By Taylor, with F per token
    of some data this is how much their negative log-likelihood per token is expected to rise.

    Args:
        change: d, of any shape.
        importance: F, of the same shape; None: 1 everywhere.

    Returns:
        (), float32.
    """
    square = change.float().square()
    return 0.5 * (square if importance is None else importance * square).sum()
