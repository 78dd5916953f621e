"""Worked examples, the arithmetic in comments: run on the package, and on its mutants.

σ is the logistic function, sp(x) = −log σ(x) = log(1 + e⁻ˣ). Sizes differ on purpose: three pairs
(B) against token counts of 2 to 6, five completions (C) in two groups (G) with four pairs (P).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from alignlab.tensors import GroupScores, PairLogps, SingleLogps, TokenLogps


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def i(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


@dataclass(frozen=True)
class Case:
    """``module.function`` called by ``call`` must return ``expected``."""

    module: str
    function: str
    call: Callable[[Callable[..., Any]], Any]
    expected: Tensor | float

    @property
    def id(self) -> str:
        return f"{self.module}.{self.function}"

    def run(self, module: ModuleType) -> None:
        result = self.call(getattr(module, self.function))
        result = torch.as_tensor(result, dtype=torch.float64)
        expected = torch.as_tensor(self.expected, dtype=torch.float64)
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)


# ---------------------------------------------------------------------------------------- pairs
# log-ratios: lr_w = [1, 0.5, −2], lr_l = [−2, −1, 2]; gaps h = lr_w − lr_l = [3, 1.5, −4]
PI = PairLogps(t(-10, -6, -20), t(-12, -9, -8), i(4, 2, 5), i(3, 6, 2))
REF = PairLogps(t(-11, -6.5, -18), t(-10, -8, -10), i(1, 1, 1), i(1, 1, 1))  # lengths unread
# means per token: p_w = [−10/4, −6/2, −20/5] = [−2.5, −3, −4]
#                  p_l = [−12/3, −9/6, −8/2] = [−4, −1.5, −4]
# log-ratio gaps per token: [1/4 + 2/3, 0.5/2 + 1/6, −2/5 − 2/2] = [0.916667, 0.416667, −1.4]

PAIRWISE = [
    # β = 0.2: [sp(0.6), sp(0.3), sp(−0.8)] = log(1 + [0.548812, 0.740818, 2.225541])
    Case(
        "pairwise",
        "dpo",
        lambda f: f(PI, REF, beta=0.2, label_smoothing=0.0),
        t(0.437488, 0.554355, 1.171101),
    ),
    # ε = ¼: ¾·sp(βh) + ¼·sp(−βh) = sp(βh) + ¼βh
    #      = [0.437488 + 0.15, 0.554355 + 0.075, 1.171101 − 0.2]
    Case(
        "pairwise",
        "dpo",
        lambda f: f(PI, REF, beta=0.2, label_smoothing=0.25),
        t(0.587488, 0.629355, 0.971101),
    ),
    # (¾·sp(βh) − ¼·sp(−βh)) / ½ = sp(βh) − ½βh = [0.437488 − 0.3, 0.554355 − 0.15, 1.171101 + 0.4]
    Case(
        "pairwise",
        "robust_dpo",
        lambda f: f(PI, REF, beta=0.2, label_smoothing=0.25),
        t(0.137488, 0.404355, 1.571101),
    ),
    # ε = 0.1: (0.9·sp(βh) − 0.1·sp(−βh)) / 0.8 = sp(βh) − βh/8
    #      = [0.437488 − 0.075, 0.554355 − 0.0375, 1.171101 + 0.1]
    Case(
        "pairwise",
        "robust_dpo",
        lambda f: f(PI, REF, beta=0.2, label_smoothing=0.1),
        t(0.362488, 0.516855, 1.271101),
    ),
    # β = 2: sp(2·[0.916667, 0.416667, −1.4])
    Case("pairwise", "dpo_norm", lambda f: f(PI, REF, beta=2.0), t(0.148316, 0.360885, 2.859033)),
    # τ = 0.4, target 1/0.8 = 1.25: [1.75², 0.25², (−5.25)²]
    Case(
        "pairwise",
        "ipo",
        lambda f: f(PI, REF, tau=0.4, normalize="sum"),
        t(3.0625, 0.0625, 27.5625),
    ),
    # per token: [(−⅓)², (−⅚)², (−2.65)²]
    Case(
        "pairwise",
        "ipo",
        lambda f: f(PI, REF, tau=0.4, normalize="mean"),
        t(1 / 9, 25 / 36, 7.0225),
    ),
    # log odds = p − log(1 − eᵖ): w [−2.414350, −2.948931, −3.981515]
    #                            l [−3.981515, −1.247518, −3.981515]
    # λ = ½: [2.5 + ½·sp(1.567165), 3 + ½·sp(−1.701413), 4 + ½·log 2]
    Case("pairwise", "orpo", lambda f: f(PI, weight=0.5), t(2.594746, 3.934491, 4.346574)),
    # sp(2·([1.5, −1.5, 0] − ¼)) = [sp(2.5), sp(−3.5), sp(−0.5)]
    Case(
        "pairwise",
        "simpo",
        lambda f: f(PI, beta=2.0, gamma_beta_ratio=0.25),
        t(0.078890, 3.529750, 0.974077),
    ),
    # max(0, 1 − ½·[3, 1.5, −4]) = [max(0, −½), 0.25, 3]
    Case("pairwise", "hinge", lambda f: f(PI, REF, beta=0.5), t(0, 0.25, 3)),
    # max(0, 1.5 − [2, 3, −12]) + 0.1·[10, 6, 20] = [0, 0, 13.5] + [1, 0.6, 2]
    Case("pairwise", "slic", lambda f: f(PI, delta=1.5, weight=0.1), t(1, 0.6, 15.5)),
    Case("pairwise", "accuracy", lambda f: f(t(2, 1, -1), t(1, 1, 3)), t(1, 0.5, 0)),
]

# -------------------------------------------------------------------------------------- singles
# log-ratios [1, −2, 0.5, −1, 3] with thumbs up, up, down, down, down; z₀ = 0.5, β = 0.4
SINGLE = SingleLogps(
    t(-9, -12, -5.5, -4, -7), i(3, 4, 2, 6, 1), torch.tensor([True, True, False, False, False])
)
SINGLE_REF = SingleLogps(t(-10, -10, -6, -3, -10), i(1, 1, 1, 1, 1), ~SINGLE.desirable)  # unread

UNPAIRED = [
    # up: 1.5·(1 − σ(0.2)), 1.5·(1 − σ(−1)); down: ¾·(1 − σ(0)), ¾·(1 − σ(0.6)), ¾·(1 − σ(−1))
    Case(
        "unpaired",
        "kto",
        lambda f: f(
            SINGLE,
            SINGLE_REF,
            torch.tensor(0.5),
            beta=0.4,
            desirable_weight=1.5,
            undesirable_weight=0.75,
        ),
        t(0.675249, 1.096588, 0.375, 0.265758, 0.548294),
    ),
    # mean of [2, −1, 2] = 1; mean of [1, −4] = −1.5, clamped
    Case("unpaired", "kl_point", lambda f: f(t(2, -1, 2)), 1.0),
    Case("unpaired", "kl_point", lambda f: f(t(1, -4)), 0.0),
]

# -------------------------------------------------------------------------------------- ranking
# group 0 ranks completions 0 ≻ 1 ≻ 2 with rewards 1, 0, −0.5; group 1 has 4 ≺ 3 (wrongly scored)
REWARD, BETTER, WORSE, PAIR_GROUP = (
    t(1, 0, -0.5, 0.2, 0.8),
    i(0, 0, 1, 3),
    i(1, 2, 2, 4),
    i(0, 0, 0, 1),
)
SCORES = GroupScores(REWARD, BETTER, WORSE, PAIR_GROUP, 2)
MARGINS = GroupScores(REWARD, BETTER, WORSE, PAIR_GROUP, 2, margin=t(0.5, 1, 0.25, 0))
# A tie at the top of the only group: 0 and 1 above 2, no pair between 0 and 1.
TIED = GroupScores(t(1, 0, -0.5), i(0, 1), i(2, 2), i(0, 0), 1)
TIED_AFTER = GroupScores(t(1, 0, -0.5, 7, 7), i(0, 1), i(2, 2), i(0, 0), 2)
FAR = GroupScores(t(0, 1000), i(0), i(1), i(0), 1)

RANKING = [
    # gaps [1, 1.5, 0.5 | −0.6]: sp = [0.313262, 0.201413, 0.474077 | 1.037488]
    # 0.1·(r_w + r_l)² = 0.1·[1, 0.25, 0.25 | 1]; means [1.138752/3 | 1.137488]
    Case("ranking", "bradley_terry", lambda f: f(SCORES, centering=0.1), t(0.379584, 1.137488)),
    # gaps − margin [0.5, 0.5, 0.25 | −0.6]: (0.474077 + 0.474077 + 0.575939)/3
    Case("ranking", "bradley_terry", lambda f: f(MARGINS, centering=0.0), t(0.508031, 1.037488)),
    # [log(e¹ + e⁰ + e^−½) − 1] + [log(e⁰ + e^−½) − 0] = 0.464369 + 0.474077
    # log(e^0.2 + e^0.8) − 0.2 = 1.037488
    Case("ranking", "plackett_luce", lambda f: f(SCORES), t(0.938446, 1.037488)),
    Case("ranking", "top_one", lambda f: f(SCORES), t(0.464369, 1.037488)),
    # undefeated 0 and 1: mean of sp(1.5) = 0.201413 and sp(0.5) = 0.474077
    Case("ranking", "top_one", lambda f: f(TIED), t(0.337745)),
    # group 1 is all ties: its completions must not enter group 0's mean; then 0 ≻ 1 but scored
    # 1000 below it: log(e⁰ + e¹⁰⁰⁰) − 0 = 1000 without overflow
    Case("ranking", "top_one", lambda f: f(TIED_AFTER), t(0.337745, 0)),
    Case("ranking", "top_one", lambda f: f(FAR), t(1000)),
    Case("ranking", "pair_accuracy", lambda f: f(SCORES), t(1, 0)),
    # 2 ≻ 0 (−0.5 < 1: wrong), 1 ≻ 2 (right); 4 ≻ 3 (right)
    Case(
        "ranking",
        "pair_accuracy",
        lambda f: f(GroupScores(REWARD, i(2, 1, 4), i(0, 2, 3), i(0, 0, 1), 2)),
        t(0.5, 1),
    ),
]

# --------------------------------------------------------------------------------------- policy
# log-ratios [0.3 | 0.1, −0.5, −0.5 | 0.5, −0.1, 0, 0] of completions of 1, 3 and 4 tokens
OLD = t(-2, -1, -3, -1.5, -2.5, -0.7, -1, -1)
LOGPS = TokenLogps(new=OLD + t(0.3, 0.1, -0.5, -0.5, 0.5, -0.1, 0, 0), old=OLD)
OWNER, LENGTHS = i(0, 1, 1, 1, 2, 2, 2, 2), i(1, 3, 4)
ADVANTAGE = t(1, 1, 1, -2, -2, 1, -1, 0)

POLICY = [
    # ρ = [1.349859, 1.105171, 0.606531, 0.606531, 1.648721, 0.904837, 1, 1], clip to [0.8, 1.1]
    # A > 0: −min(ρ, 1.1) = −1.1, −1.1, −0.606531, −0.904837
    # A < 0: −A·max(ρ, 0.8) = 2·0.8, 2·1.648721, 1·1
    Case(
        "policy",
        "clipped_surrogate",
        lambda f: f(LOGPS, ADVANTAGE, clip_low=0.2, clip_high=0.1),
        t(-1.1, -1.1, -0.606531, 1.6, 3.297443, -0.904837, 1, 0),
    ),
    # Σ log ρ = [0.3, −0.9, 0.4]: s = [1.349859, 0.406570, 1.491825], A = [1, −2, −1]
    Case(
        "policy",
        "sequence_surrogate",
        lambda f: f(
            LOGPS, t(1, -2, -1), OWNER, LENGTHS, clip_low=0.2, clip_high=0.1, ratio="product"
        ),
        t(-1.1, 1.6, 1.491825),
    ),
    # means [0.3, −0.3, 0.1]: s = [1.349859, 0.740818, 1.105171], A = [−1, 2, 1]
    Case(
        "policy",
        "sequence_surrogate",
        lambda f: f(
            LOGPS, t(-1, 2, 1), OWNER, LENGTHS, clip_low=0.2, clip_high=0.1, ratio="geometric_mean"
        ),
        t(1.349859, -1.481636, -1.1),
    ),
    # a completion without tokens: s = e⁰ = 1, loss −A
    Case(
        "policy",
        "sequence_surrogate",
        lambda f: f(
            TokenLogps(new=t(-1), old=t(-2)),
            t(1, 5),
            i(0),
            i(1, 0),
            clip_low=0.2,
            clip_high=0.1,
            ratio="geometric_mean",
        ),
        t(-1.1, -5),
    ),
    # weights clip(ρ, 0.8, 1.1) = [1.1, 1.1, 0.8, 0.8, 1.1, 0.904837, 1, 1]; −w·A·log π, with
    # log π = [−1.7, −0.9, −3.5, −2, −2, −0.8, −1, −1]
    Case(
        "policy",
        "clipped_weight_surrogate",
        lambda f: f(LOGPS, ADVANTAGE, clip_low=0.2, clip_high=0.1),
        t(1.87, 0.99, 2.8, -3.2, -4.4, 0.723870, -1, 0),
    ),
    # its slope in log π is −w·A: every token keeps one
    Case(
        "policy",
        "clipped_weight_surrogate",
        lambda f: gradient(
            lambda new: f(TokenLogps(new=new, old=OLD), ADVANTAGE, clip_low=0.2, clip_high=0.1),
            LOGPS.new,
        ),
        t(-1.1, -1.1, -0.8, 1.6, 2.2, -0.904837, 1, 0),
    ),
    # cut on either side, whatever the sign of A: tokens 0 to 4
    Case(
        "policy",
        "weight_clip_fraction",
        lambda f: f(LOGPS, clip_low=0.2, clip_high=0.1),
        t(1, 1, 1, 1, 1, 0, 0, 0),
    ),
    # at the bounds themselves, ρ = 1 − ½ and 1 + 1, nothing is cut; ρ = ¼ and 1½ with ±½ and 1
    Case(
        "policy",
        "weight_clip_fraction",
        lambda f: f(
            TokenLogps(new=t(0.5, 2, 0.25, 1.5).log(), old=t(0, 0, 0, 0)),
            clip_low=0.5,
            clip_high=1.0,
        ),
        t(0, 0, 1, 0),
    ),
    # V = [1, 2, 0, 1.5], V_old = [0.5, 1.9, 1, 1], ±0.2 → clipped [0.7, 2, 0.8, 1.2]
    # G = [1, 1, −1, 1.25]: ½·max([0, 1, 1, 0.0625], [0.09, 1, 3.24, 0.0025])
    Case(
        "policy",
        "clipped_value",
        lambda f: f(t(1, 2, 0, 1.5), t(0.5, 1.9, 1, 1), t(1, 1, -1, 1.25), clip=0.2),
        t(0.045, 0.5, 1.62, 0.03125),
    ),
    # above 1.1 with A > 0: tokens 0 and 1; below 0.8 with A < 0: token 3
    Case(
        "policy",
        "clip_fraction",
        lambda f: f(LOGPS, ADVANTAGE, clip_low=0.2, clip_high=0.1),
        t(1, 1, 0, 1, 0, 0, 0, 0),
    ),
    # ρ = [1.05, 0.85, 0.7, 0.5, 2, 0.5, 1.5, 1.5] within and beyond [0.8, 1.1], by the sign of A
    Case(
        "policy",
        "clip_fraction",
        lambda f: f(
            TokenLogps(new=t(1.05, 0.85, 0.7, 0.5, 2, 0.5, 1.5, 1.5).log(), old=t(*[0.0] * 8)),
            t(1, -1, -0.5, 0, 0, 0.5, -0.5, 0.5),
            clip_low=0.2,
            clip_high=0.1,
        ),
        t(0, 0, 1, 0, 0, 0, 0, 1),
    ),
    # at the bounds themselves, ρ = 1 − ½ and 1 + 1, the gradient still flows
    Case(
        "policy",
        "clip_fraction",
        lambda f: f(
            TokenLogps(new=t(0.5, 2).log(), old=t(0, 0)), t(-1, 1), clip_low=0.5, clip_high=1.0
        ),
        t(0, 0),
    ),
]

# ----------------------------------------------------------------------------------- divergence
NEW, BASE = t(-1, -2, -3, -0.5), t(-2, -1.5, -1, -0.5)  # d = ref − new = [−1, 0.5, 2, 0]

DIVERGENCE = [
    Case("divergence", "k1", lambda f: f(NEW, BASE), t(1, -0.5, -2, 0)),
    Case("divergence", "k2", lambda f: f(NEW, BASE), t(0.5, 0.125, 2, 0)),
    # [e⁻¹ − 1 + 1, e^½ − 1.5, e² − 3, 0]
    Case("divergence", "k3", lambda f: f(NEW, BASE), t(0.367879, 0.148721, 4.389056, 0)),
    # near zero, in units of 1e-6: d = 2e-3 → d²/2 + d³/6 = 2e-6 + 1.333e-9
    Case("divergence", "k3", lambda f: 1e6 * f(t(-1), t(-0.998)), t(2.001334)),
    # d = 0.04 in units of 1e-5: (e^0.04 − 1.04)·1e5
    Case("divergence", "k3", lambda f: 1e5 * f(t(-1), t(-0.96)), t(81.07741923882)),
    # d = ±0.07, beyond the series, in units of 1e-3: e^±0.07 − 1 ∓ 0.07
    Case("divergence", "k3", lambda f: 1e3 * f(t(-1, -1), t(-0.93, -1.07)), t(2.508181, 2.393820)),
    # d = 21, one beyond the limit, in units of e²⁰ = 485165195.40979: 2 − 22/e²⁰
    Case("divergence", "k3", lambda f: f(t(-22), t(-1)) / math.exp(20), t(2 - 4.5345e-8)),
    Case(
        "divergence",
        "token_kl",
        lambda f: f(NEW, BASE, estimator="k3_gradient_k2"),
        t(0.367879, 0.148721, 4.389056, 0),
    ),
    Case("divergence", "token_kl", lambda f: f(NEW, BASE, estimator="k1"), t(1, -0.5, -2, 0)),
    Case("divergence", "token_kl", lambda f: f(NEW, BASE, estimator="k2"), t(0.5, 0.125, 2, 0)),
    Case(
        "divergence",
        "token_kl",
        lambda f: f(NEW, BASE, estimator="k3"),
        t(0.367879, 0.148721, 4.389056, 0),
    ),
    # its gradient in log π is k2's: −d
    Case(
        "divergence",
        "token_kl",
        lambda f: gradient(lambda new: f(new, BASE, estimator="k3_gradient_k2"), NEW),
        t(1, -0.5, -2, 0),
    ),
    # log 4 − ¾; the paper's table: 0.19, 0.64, 1.84, 3.17 for n = 2, 4, 16, 64
    Case("divergence", "best_of_n_kl", lambda f: f(4), 0.636294),
    Case("divergence", "best_of_n_kl", lambda f: f(1), 0.0),
    # KL 9 against 6: e = min(0.5, 0.2); 0.15·(1 + 0.2·512/10000) = 0.15·1.01024
    Case(
        "divergence",
        "adapt_coefficient",
        lambda f: f(0.15, 9.0, 512, target=6.0, horizon=10_000.0),
        0.151536,
    ),
    # KL 5.4: e = −0.1; 0.15·(1 − 0.1·0.0512)
    Case(
        "divergence",
        "adapt_coefficient",
        lambda f: f(0.15, 5.4, 512, target=6.0, horizon=10_000.0),
        0.149232,
    ),
    # KL 0: e = −0.2
    Case(
        "divergence",
        "adapt_coefficient",
        lambda f: f(0.15, 0.0, 512, target=6.0, horizon=10_000.0),
        0.148464,
    ),
]

# ------------------------------------------------------------------------------------ advantage
GROUP = i(0, 0, 0, 0, 1, 2, 2)
REWARDS = t(1, 0, 0, 0, 5, 0.1, 0.1)  # one success in four; alone; all equal

ADVANTAGES = [
    # γ = ½, λ = ¼. r = [1, 0, 2 | 3, 2], V = [0.5, 1, −1 | 2, 4]
    # δ = [1 + 0.5 − 0.5, 0 − 0.5 − 1, 2 + 0 + 1 | 3 + 2 − 2, 2 − 4] = [1, −1.5, 3 | 3, −2]
    # A = [1 + ⅛·(−1.5 + ⅛·3), −1.5 + ⅛·3, 3 | 3 − ⅛·2, −2]; G = A + V
    Case(
        "advantage",
        "gae",
        lambda f: torch.stack(
            f(t(1, 0, 2, 3, 2), t(0.5, 1, -1, 2, 4), i(0, 0, 0, 1, 1), gamma=0.5, lam=0.25)
        ),
        torch.stack([t(0.859375, -1.125, 3, 2.75, -2), t(1.359375, -0.125, 2, 4.75, 2)]),
    ),
    # count 3, Σ 6, Σ² 14: mean 2, variance 14/3 − 4 = ⅔
    Case("advantage", "moments", lambda f: f(t(1, 2, 3)), t(3, 6, 14)),
    Case("advantage", "mean_variance", lambda f: torch.stack(f(t(3, 6, 14))), t(2, 2 / 3)),
    # one value, 5; none at all; Σ²/n just below mean², as rounding leaves it
    Case("advantage", "mean_variance", lambda f: torch.stack(f(t(1, 5, 25))), t(5, 0)),
    Case("advantage", "mean_variance", lambda f: torch.stack(f(t(0, 0, 0))), t(0, 0)),
    Case("advantage", "mean_variance", lambda f: torch.stack(f(t(2, 2, 1.9))), t(1, 0)),
    # (x − 2)/√(3.9 + 0.1) = [−½, 0, 1], and + 2
    Case(
        "advantage",
        "whiten",
        lambda f: f(t(1, 2, 4), t(2)[0], t(3.9)[0], shift_mean=True, epsilon=0.1),
        t(-0.5, 0, 1),
    ),
    Case(
        "advantage",
        "whiten",
        lambda f: f(t(1, 2, 4), t(2)[0], t(3.9)[0], shift_mean=False, epsilon=0.1),
        t(1.5, 2, 3),
    ),
    # mean ¼, sample std √(¾/3) = ½: [¾, −¼, −¼, −¼] / (½ + 0.1); papers.md's 1.50 at ε = 0
    Case(
        "advantage",
        "group_advantages",
        lambda f: f(REWARDS, GROUP, 3, kind="group_std", epsilon=0.1),
        t(1.25, -0.416667, -0.416667, -0.416667, 0, 0, 0),
    ),
    Case(
        "advantage",
        "group_advantages",
        lambda f: f(REWARDS, GROUP, 3, kind="group_mean", epsilon=0.0),
        t(0.75, -0.25, -0.25, -0.25, 0, 0, 0),
    ),
    # 1 − mean(0, 0, 0) = 1; 0 − mean(1, 0, 0) = −⅓
    Case(
        "advantage",
        "group_advantages",
        lambda f: f(REWARDS, GROUP, 3, kind="leave_one_out", epsilon=0.0),
        t(1, -1 / 3, -1 / 3, -1 / 3, 0, 0, 0),
    ),
    # a group of two: mean 1.5, sample std √½: ∓½ / 0.707107
    Case(
        "advantage",
        "group_advantages",
        lambda f: f(t(1, 2), i(0, 0), 1, kind="group_std", epsilon=0.0),
        t(-0.707107, 0.707107),
    ),
    Case(
        "advantage",
        "group_advantages",
        lambda f: f(t(1, 2), i(0, 0), 1, kind="leave_one_out", epsilon=0.0),
        t(-1, 1),
    ),
    Case("advantage", "equal_groups", lambda f: f(REWARDS, GROUP, 3), t(0, 1, 1)),
    # lengths 1, 3, 4: weight, then count
    Case(
        "advantage",
        "token_weights",
        lambda f: torch.cat(
            [x.reshape(-1) for x in f(LENGTHS, normalizer="sequence", max_length=None)]
        ),
        t(1, 1 / 3, 0.25, 3),
    ),
    Case(
        "advantage",
        "token_weights",
        lambda f: torch.cat(
            [x.reshape(-1) for x in f(LENGTHS, normalizer="token", max_length=None)]
        ),
        t(1, 1, 1, 8),
    ),
    Case(
        "advantage",
        "token_weights",
        lambda f: torch.cat(
            [x.reshape(-1) for x in f(LENGTHS, normalizer="constant", max_length=16)]
        ),
        t(0.0625, 0.0625, 0.0625, 3),
    ),
    # an empty completion has no token to weight, and no infinite weight either
    Case(
        "advantage",
        "token_weights",
        lambda f: f(i(2, 0), normalizer="sequence", max_length=None)[0],
        t(0.5, 1),
    ),
]

# --------------------------------------------------------------------- likelihood and arithmetic
ELEMENTARY = [
    Case("likelihood", "nll", lambda f: f(t(-1, -0.25, 0)), t(1, 0.25, 0)),
    # p = (½, ¼, ¼), y the first: log p_y = −0.693147, mean (−0.693147 − 2·1.386294)/3 = −1.155245;
    # ε = 0.2: 0.8·0.693147 + 0.2·1.155245; and a sure token, whose others are at −9
    Case(
        "likelihood",
        "smoothed_nll",
        lambda f: f(t(-0.693147, 0), t(-1.155245, -6), label_smoothing=0.2),
        t(0.7855666, 1.2),
    ),
    Case(
        "likelihood",
        "smoothed_nll",
        lambda f: f(t(-1, -2), t(-3, -4), label_smoothing=0.0),
        t(1, 2),
    ),
    # its slopes: −(1 − ε) and −ε
    Case(
        "likelihood",
        "smoothed_nll",
        lambda f: gradient(lambda logps: f(logps, t(-3, -4), label_smoothing=0.25), t(-1, -2)),
        t(-0.75, -0.75),
    ),
    Case(
        "likelihood",
        "smoothed_nll",
        lambda f: gradient(lambda mean: f(t(-1, -2), mean, label_smoothing=0.25), t(-3, -4)),
        t(-0.25, -0.25),
    ),
    # e⁻¹; e²⁰·(1 + 2) at 22, in units of e²⁰
    Case("stable", "safe_exp", lambda f: f(t(-1)), t(0.367879)),
    Case("stable", "safe_exp", lambda f: f(t(22)) / math.exp(20), t(3)),
    # e⁻¹ − 1; e²⁰·(1 + 2) − 1 at 22, in units of e²⁰; 1e-12 without cancellation
    Case("stable", "safe_expm1", lambda f: f(t(-1)), t(-0.632121)),
    Case("stable", "safe_expm1", lambda f: (f(t(22)) + 1) / math.exp(20), t(3)),
    Case("stable", "safe_expm1", lambda f: 1e12 * f(t(1e-12)), t(1)),
    # log(1 − ½); log(1 − 0.9); log(1 − e⁻³); log ε at 0, with float64's ε = 2⁻⁵²
    Case(
        "stable",
        "log1mexp",
        lambda f: f(t(math.log(0.5), math.log(0.9), -3, 0)),
        t(-0.693147, -2.302585, -0.051069, -36.043653),
    ),
    # log(1 − e⁻⁴⁰) = −e⁻⁴⁰ in units of e⁻⁴⁰; log(1 − e^−1e-12) = log 1e-12
    Case("stable", "log1mexp", lambda f: math.exp(40) * f(t(-40)), t(-1)),
    Case("stable", "log1mexp", lambda f: f(t(-1e-12)), t(-27.631021)),
    Case("stable", "segment_sum", lambda f: f(t(1, 2, 4), i(2, 0, 2), 4), t(2, 0, 5, 0)),
    Case("stable", "segment_mean", lambda f: f(t(1, 2, 4), i(2, 0, 2), 4), t(2, 0, 2.5, 0)),
]

CASES = PAIRWISE + UNPAIRED + RANKING + POLICY + DIVERGENCE + ADVANTAGES + ELEMENTARY
