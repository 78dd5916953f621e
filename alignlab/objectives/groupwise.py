"""Preference objectives over all completions of a prompt at once: one loss per prompt.

``lp(y)`` is the summed log-prob, ``lr(y)`` the summed log-ratio to the reference, ``u(y)`` what the
verdict says in numbers (scores; for a ranking minus the rank, for thumbs 1 and 0), K the number of
completions of a prompt. With ``pairs: best_worst`` a stage hands over two of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab import lazy
from alignlab.objectives.bounds import NonNegative, Positive
from alignlab.objectives.declaration import called
from alignlab.objectives.ranking import plackett_luce
from alignlab.objectives.stable import segment_mean, segment_sum
from alignlab.tensors import GroupLogps, GroupScores

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:
    torch = lazy.module("torch")
    F = lazy.module("torch.nn.functional")


@called("DPO-PL")
def dpo_ranking(policy: GroupLogps, reference: GroupLogps, *, beta: Positive) -> Tensor:
    """DPO on a whole ranking: its likelihood when the best of what is left is chosen repeatedly.

    ``loss_g = −Σ_i [ β·lr(y_(i)) − log Σ_{j ≥ i} exp(β·lr(y_(j))) ]`` over ranks i, best to worst

    DPO, 2305.18290 eq. 20 (Plackett–Luce). For K = 2 it is
    `alignlab.objectives.pairwise.dpo`. Ties as in `alignlab.objectives.ranking.plackett_luce`.

    Args:
        policy: (C,) summed log-probs of the trained policy, and the ordered pairs.
        reference: the same completions under the frozen reference.
        beta: strength of the pull to the reference, 1/nats.

    Returns:
        (G,) loss per prompt; log K! at policy = reference without ties.
    """
    reward = beta * (policy.completion - reference.completion)
    pairs = (policy.better, policy.worse, policy.pair_group)
    return plackett_luce(GroupScores(reward, *pairs, policy.groups))


@called("RRHF")
def rrhf(policy: GroupLogps, *, weight: NonNegative) -> Tensor:
    """Order the mean log-probs as the verdict does, plus likelihood of the best; no reference.

    ``loss_g = Σ_{u_i > u_j} max(0, p_j − p_i) − λ·lp(y_best)``, ``p = lp/|y|``

    RRHF, Yuan et al. 2023, 2304.05302 (λ = 1). A pair in the right order costs nothing,
    by however little. Several best completions share the likelihood term. The authors' code weighs
    the first sum by 100 and takes means over padded tokens in the second. TRL has none.

    Args:
        policy: (C,) summed log-probs and lengths of the trained policy, and the ordered pairs.
        weight: λ ≥ 0, weight of the likelihood of the best completion.

    Returns:
        (G,) loss per prompt.
    """
    mean = policy.completion / policy.length
    order = F.relu(mean[policy.worse] - mean[policy.better])
    beaten = torch.zeros_like(mean, dtype=torch.bool).index_fill(0, policy.worse, True)
    best, owner = policy.completion[~beaten], policy.group[~beaten]
    likelihood = segment_mean(best, owner, policy.groups)
    return segment_sum(order, policy.pair_group, policy.groups) - weight * likelihood


@called("InfoNCA")
def info_nca(
    policy: GroupLogps, reference: GroupLogps, *, beta: Positive, alpha: Positive
) -> Tensor:
    """Cross-entropy between two choices among K completions: by their scores, and by the policy.

    ``loss_g = −Σ_i softmax(u/α)_i · log softmax(β·lr)_i``

    InfoNCA, Chen et al. 2024, 2402.05369. For K = 2 and α → 0 it is DPO. Only differences
    between completions count, so all may become less likely; `nca` mends that.

    Args:
        policy: (C,) summed log-probs of the trained policy, and the utilities u.
        reference: the same completions under the frozen reference.
        beta: scale of the implicit reward, 1/nats.
        alpha: temperature of the scores, in their units.

    Returns:
        (G,) loss per prompt; log K at policy = reference.
    """
    logits = beta * (policy.completion - reference.completion)
    terms = _log_softmax(policy.utility / alpha, policy).exp() * _log_softmax(logits, policy)
    return -segment_sum(terms, policy.group, policy.groups)


@called("NCA")
def nca(policy: GroupLogps, reference: GroupLogps, *, beta: Positive, alpha: Positive) -> Tensor:
    """Classify each completion as the policy's or the reference's, in the share its score deserves.

    ``loss_g = −Σ_i [ softmax(u/α)_i · log σ(β·lr_i) + (1/K)·log σ(−β·lr_i) ]``

    NCA, Chen et al. 2024, 2402.05369. Its optimum is absolute: β·lr_i = log(K·softmax_i), so
    the likelihood of good completions does not fall as it may in DPO. TRL's ``nca_pair`` is K = 2,
    α → 0; it has no scores.

    Args:
        policy: (C,) summed log-probs of the trained policy, and the utilities u.
        reference: the same completions under the frozen reference.
        beta: scale of the implicit reward, 1/nats.
        alpha: temperature of the scores, in their units.

    Returns:
        (G,) loss per prompt; 2·log 2 at policy = reference.
    """
    logits = beta * (policy.completion - reference.completion)
    share = _log_softmax(policy.utility / alpha, policy).exp()
    noise = segment_mean(F.logsigmoid(-logits), policy.group, policy.groups)
    return -segment_sum(share * F.logsigmoid(logits), policy.group, policy.groups) - noise


@called("EXO (scores)")
def exo(policy: GroupLogps, reference: GroupLogps, *, beta: Positive, alpha: Positive) -> Tensor:
    """Reverse KL from the policy's choice among K completions to the choice by their scores.

    ``loss_g = Σ_i q_i·(log q_i − log softmax(u/α)_i)``, ``q = softmax(β·lr)``

    EXO, Ji et al. 2024, 2402.00856 §3.2 (EXO-rw; their β_π and β_r). The reverse KL seeks the mode
    of the scores, where `info_nca` (the forward one) covers them. TRL has the pair only
    (`alignlab.objectives.links.exo_pair`).

    Args:
        policy: (C,) summed log-probs of the trained policy, and the utilities u.
        reference: the same completions under the frozen reference.
        beta: how sharply the policy chooses, 1/nats.
        alpha: temperature of the scores, in their units.

    Returns:
        (G,) loss per prompt, ≥ 0.
    """
    chosen = _log_softmax(beta * (policy.completion - reference.completion), policy)
    wanted = _log_softmax(policy.utility / alpha, policy)
    return segment_sum(chosen.exp() * (chosen - wanted), policy.group, policy.groups)


def _log_softmax(values: Tensor, of: GroupLogps) -> Tensor:
    """(C,) log softmax within each prompt."""
    low = values.new_full((of.groups,), -torch.inf)
    top = low.scatter_reduce(0, of.group, values.detach(), "amax")
    centred = values - top[of.group]
    return centred - segment_sum(centred.exp(), of.group, of.groups).log()[of.group]
