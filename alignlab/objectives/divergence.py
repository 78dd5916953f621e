"""KL divergences to the reference, estimated from samples of the policy, in nats.

For a token y sampled from π: ``d = log π_ref(y) − log π(y)``, so ``E[−d] = KL(π ‖ π_ref)``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from alignlab import lazy
from alignlab.objectives.stable import safe_expm1

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy.module("torch")

Estimator = Literal["k1", "k2", "k3", "k3_gradient_k2"]


def k1(new: Tensor, reference: Tensor) -> Tensor:
    """``−d``: unbiased, high variance, may be negative; the one to put into a *reward*.

    Schulman 2020, "Approximating KL divergence". Never clamp it per token: AlpacaFarm does, and
    reads four times the true value on a three-token example. As a loss, its expected gradient is
    zero.

    Args:
        new: (N,) log-probs of the tokens under the policy.
        reference: (N,) log-probs under the reference.

    Returns:
        (N,) nats.
    """
    return new - reference


def k2(new: Tensor, reference: Tensor) -> Tensor:
    """``½d²``: biased value, but on-policy its gradient is exactly the gradient of the KL.

    Schulman 2020. Shapes as `k1`.
    """
    return 0.5 * (new - reference).square()


def k3(new: Tensor, reference: Tensor) -> Tensor:
    """``eᵈ − 1 − d``: unbiased, never negative, low variance; GRPO's term in the *loss*.

    Schulman 2020; DeepSeekMath, 2402.03300 eq. 4. TRL's plain form cancels near d = 0 (in float32
    it reads 0 at d = 3e-4) and overflows at d = 89; here the Taylor series takes over below
    |d| = 0.05, and the tangent of eᵈ beyond d = 20. On-policy its expected gradient is that of
    KL(π_ref ‖ π), the other direction; TRL multiplies by the importance ratio
    (``use_bias_correction_kl``), verl offers k2's gradient (see `token_kl`). Shapes as `k1`.
    """
    d = reference - new
    near = d.clamp(-0.05, 0.05)
    series = near.square() * (1 / 2 + near * (1 / 6 + near * (1 / 24 + near / 120)))
    return torch.where(d.abs() < 0.05, series, safe_expm1(d) - d)


def token_kl(new: Tensor, reference: Tensor, *, estimator: Estimator) -> Tensor:
    """Estimate the KL per token with the named estimator.

    Args:
        new: (N,) log-probs of the tokens under the policy.
        reference: (N,) log-probs under the reference.
        estimator: ``k1``, ``k2``, ``k3``, or ``k3_gradient_k2``: value of k3, gradient of k2
            (verl's ``k3+``).

    Returns:
        (N,) nats.
    """
    if estimator == "k3_gradient_k2":
        slope = k2(new, reference)
        return k3(new, reference).detach() + slope - slope.detach()
    known = {"k1": k1, "k2": k2, "k3": k3}
    if estimator not in known:
        names = ", ".join([*known, "k3_gradient_k2"])
        raise ValueError(f"estimator must be one of {names}, not {estimator!r}")
    return known[estimator](new, reference)


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n sampling to the sampling policy, in nats: ``log n − (n − 1)/n``.

    Stiennon 2020, 2009.01325 App. G.3; exact for continuous rewards, an upper bound otherwise.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"best of n needs n >= 1, not {n}")
    return math.log(n) - (n - 1) / n


def adapt_coefficient(
    coefficient: float, kl: float, episodes: int, *, target: float, horizon: float
) -> float:
    """One step of the adaptive KL controller: raise β when the KL is above target, else lower it.

    ``e = clip(KL/target − 1, ±0.2)``, ``β ← β·(1 + e·episodes/horizon)``

    Ziegler 2019, 1909.08593, as in their code (episodes of this update over the horizon).

    Args:
        coefficient: β of the update just made.
        kl: mean sequence KL of that update's rollouts, nats.
        episodes: completions in that update, over all ranks.
        target: KL to hold, nats (6 in the paper).
        horizon: episodes after which a saturated error has changed β by 20 % (10,000 in the code).

    Returns:
        β for the next update, above zero while ``episodes < 5·horizon``.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * episodes / horizon)
