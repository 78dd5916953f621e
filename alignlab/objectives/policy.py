"""Policy-gradient objectives: clipped surrogates per token or sequence, and the value loss.

``ρ = π_new / π_old = exp(new − old)`` is the importance ratio; `safe_exp` keeps it finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from alignlab import lazy
from alignlab.objectives.stable import safe_exp, segment_sum
from alignlab.tensors import TokenLogps

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy.module("torch")


def importance_ratio(logps: TokenLogps) -> Tensor:
    """``ρ_n = π_new(y_n) / π_old(y_n)``, (N,).

    Multiply a KL term in the loss by it for TRL's ``use_bias_correction_kl``.
    """
    return safe_exp(logps.new - logps.old)


def clipped_surrogate(
    logps: TokenLogps, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """PPO's pessimistic policy loss per token.

    ``loss_n = max(−A·ρ, −A·clip(ρ, 1 − ε_low, 1 + ε_high))``

    PPO, 1707.06347 eq. 7 (ε_low = ε_high, negated to a loss); unequal bounds are DAPO's
    clip-higher, 2503.14476 eq. 8. GRPO, Dr.GRPO and DAPO differ from PPO only in the advantages and
    in `alignlab.objectives.advantage.token_weights`. TRL's GRPO per-token term is the same.

    Args:
        logps: (N,) under the trained and the sampling policy.
        advantages: (N,) one per token; constants, no gradient flows into them.
        clip_low: ε_low in [0, 1), how far ρ may fall before a negative advantage stops teaching.
        clip_high: ε_high ≥ 0, how far ρ may rise before a positive advantage stops teaching;
            ``math.inf`` turns the upper clip off.

    Returns:
        (N,) loss per token; −A at new = old.
    """
    return _pessimistic(importance_ratio(logps), advantages.detach(), clip_low, clip_high)


def sequence_surrogate(
    logps: TokenLogps,
    advantages: Tensor,
    completion: Tensor,
    lengths: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio: Literal["product", "geometric_mean"],
) -> Tensor:
    """PPO's pessimistic policy loss with one importance ratio per completion.

    ``s_c = exp(Σ_n log ρ_n)`` (product) or ``exp(Σ_n log ρ_n / |y_c|)`` (geometric mean);
    ``loss_c = max(−A·s, −A·clip(s, 1 − ε_low, 1 + ε_high))``

    ``product`` is the true ratio of sequences: RLOO, 2402.14740, as TRL's RLOO trainer clips it
    (the paper itself does not clip: on-policy, s = 1, the gradients agree). ``geometric_mean`` is
    GSPO, 2507.18071 eq. 5, which needs far tighter bounds (3e-4) since s varies less. TRL spreads
    GSPO's loss over tokens, so that its token mean weights long answers more; ours is per
    completion.

    Args:
        logps: (N,) under the trained and the sampling policy.
        advantages: (C,) one per completion; constants.
        completion: (N,) int64, completion of each token.
        lengths: (C,) tokens of each completion.
        clip_low: ε_low in [0, 1).
        clip_high: ε_high ≥ 0, ``math.inf`` for none.
        ratio: which ratio of the two.

    Returns:
        (C,) loss per completion; −A at new = old.
    """
    log_ratio = segment_sum(logps.new - logps.old, completion, len(lengths))
    if ratio == "geometric_mean":
        log_ratio = log_ratio / lengths.clamp(min=1)
    elif ratio != "product":
        raise ValueError(f"ratio must be 'product' or 'geometric_mean', not {ratio!r}")
    return _pessimistic(safe_exp(log_ratio), advantages.detach(), clip_low, clip_high)


def clipped_weight_surrogate(
    logps: TokenLogps, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """Policy loss per token whose importance weight is clipped and carries no gradient: CISPO.

    ``loss_n = −sg(clip(ρ_n, 1 − ε_low, 1 + ε_high))·A_n·log π_new(y_n)``

    CISPO, MiniMax-M1, 2506.13585 eq. 4 and 5 (there without a lower bound: ε_low ≥ 1; with the
    token normaliser). PPO's clip silences a token that has moved far; here every token keeps a
    gradient, of at most 1 + ε_high times that of REINFORCE. At new = old the gradient is that of
    `clipped_surrogate`; the value is not, and means nothing. TRL's ``epsilon_high`` is our
    1 + ε_high, and it has no lower bound.

    Args:
        logps: (N,) under the trained and the sampling policy.
        advantages: (N,) one per token; constants.
        clip_low: ε_low > 0; from 1 on there is no lower bound.
        clip_high: ε_high ≥ 0, ``math.inf`` for none.

    Returns:
        (N,) loss per token; −A·log π at new = old.
    """
    weight = importance_ratio(logps).detach().clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages.detach() * logps.new


def clipped_value(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """Squared error of the value estimate, with the step from the old estimate clipped.

    ``loss_n = ½·max((V − G)², (V_old + clip(V − V_old, ±ε) − G)²)``

    The convention of the PPO code lineage (OpenAI baselines, Ziegler 2019, N+ 2403.17031), not in a
    paper's equation. Multiply by the value coefficient (0.1 in Ziegler) outside. TRL has no PPO.

    Args:
        values: (N,) value of the trained view before each token.
        old_values: (N,) the same when the rollout was sampled; constants.
        returns: (N,) advantages + old values, from `alignlab.objectives.advantage.gae`; constants.
        clip: ε ≥ 0 in reward units; ``math.inf`` turns clipping off.

    Returns:
        (N,) loss per token.
    """
    old_values, returns = old_values.detach(), returns.detach()
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def clip_fraction(
    logps: TokenLogps, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """1 where the clip removed the token's gradient, else 0; (N,), its token mean is the metric.

    TRL splits it by side; Ziegler and N+ count any larger surrogate, which is the same set.
    """
    ratio = importance_ratio(logps).detach()
    low = (ratio < 1 - clip_low) & (advantages < 0)
    high = (ratio > 1 + clip_high) & (advantages > 0)
    return (low | high).to(ratio.dtype)


def weight_clip_fraction(logps: TokenLogps, *, clip_low: float, clip_high: float) -> Tensor:
    """1 where `clipped_weight_surrogate` cut the weight, on either side, else 0; (N,)."""
    ratio = importance_ratio(logps).detach()
    return ((ratio < 1 - clip_low) | (ratio > 1 + clip_high)).to(ratio.dtype)


def _pessimistic(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Take the larger of the plain and the clipped loss."""
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(-advantages * ratio, -advantages * clipped)
