"""Worked examples of the later offline objectives, on the data of `objective_cases`.

``lr_w = [1, 0.5, −2]``, ``lr_l = [−2, −1, 2]``, ``h = [3, 1.5, −4]``; sp(x) = log(1 + e⁻ˣ).
"""

from __future__ import annotations

import torch
from objective_cases import PI, REF, SINGLE, SINGLE_REF, Case, i, t

from alignlab.tensors import GroupLogps, PairLogps, TargetScores, TargetShares

# Five completions of two prompts: utilities 2 > 1 > 0.5 and 0 < 1.
PAIRS = {"better": i(0, 0, 1, 4), "worse": i(1, 2, 2, 3), "pair_group": i(0, 0, 0, 1)}
GROUPS = GroupLogps(
    t(-10, -12, -9, -8, -6),
    i(4, 3, 6, 2, 5),
    t(2, 1, 0.5, 0, 1),
    i(0, 0, 0, 1, 1),
    **PAIRS,
    groups=2,
)
# lr = [1, −2, 0.5 | 0.5, −1]; all but the log-probs of the reference is never read
GROUPS_REF = GroupLogps(
    t(-11, -10, -9.5, -8.5, -5),
    i(1, 1, 1, 1, 1),
    t(9, 8, 9, 5, 9),
    i(0, 1, 1, 2, 2),
    i(2, 1, 3),
    i(0, 0, 4),
    i(0, 1, 2),
    groups=3,
)
# The best two of the only prompt tie, and the third is out of order against one of them.
TIED = GroupLogps(
    t(-6, -2, -4), i(2, 2, 2), t(1, 1, 0), i(0, 0, 0), i(0, 1), i(2, 2), i(0, 0), groups=1
)
# Scores 1000 apart, and of another order in the other prompt.
TWICE = (i(0, 0, 1, 1), i(1, 3), i(0, 2), i(0, 1))
FAR = GroupLogps(
    t(0, -2000, -4000, -6000), i(1, 1, 1, 1), t(0, 1000, -3000, -2000), *TWICE, groups=2
)
NEAR = GroupLogps(t(0, 0, 0, 0), i(1, 1, 1, 1), t(0, 0, 0, 0), *TWICE, groups=2)

OFFLINE = [
    # lp gaps [2, 3, −12] → sp(0.2·) = [0.513015, 0.437488, 2.486836]; + 0.1·[10, 6, 20]
    Case(
        "penalized",
        "cpo",
        lambda f: f(PI, beta=0.2, weight=0.1, normalize="sum"),
        t(1.513015, 1.037488, 4.486836),
    ),
    # + 0.1·[10/4, 6/2, 20/5]
    Case(
        "penalized",
        "cpo",
        lambda f: f(PI, beta=0.2, weight=0.1, normalize="mean"),
        t(0.763015, 0.737488, 2.886836),
    ),
    # DPO [0.437488, 0.554355, 1.171101] + ½·[2.5, 3, 4]
    Case(
        "penalized",
        "dpo_likelihood",
        lambda f: f(PI, REF, beta=0.2, weight=0.5),
        t(1.687488, 2.054355, 3.171101),
    ),
    # lr_w below 0 in the third alone: sp(0.2·[3, 1.5, −4 − 2·2])
    Case(
        "penalized",
        "dpo_positive",
        lambda f: f(PI, REF, beta=0.2, weight=2.0),
        t(0.437488, 0.554355, 1.783901),
    ),
    # a drop of 0.001 nats is rounding, one of 0.0011 is not: sp(−0.0002), sp(0.2·(−0.0011·101))
    Case(
        "penalized",
        "dpo_positive",
        lambda f: f(
            PairLogps(t(-0.001, -0.0011), t(0, 0), i(1, 1), i(1, 1)),
            PairLogps(t(0, 0), t(0, 0), i(1, 1), i(1, 1)),
            beta=0.2,
            weight=100.0,
        ),
        t(0.693247, 0.704319),
    ),
    # |y_w| − |y_l| = [1, −4, 3]: sp([0.6 + 0.1, 0.3 − 0.4, −0.8 + 0.3])
    Case(
        "penalized",
        "dpo_length",
        lambda f: f(PI, REF, beta=0.2, alpha=0.1),
        t(0.403186, 0.744397, 0.974077),
    ),
    # σ([−0.5, −0.25, 1]) + σ([−1, −0.5, 1])
    Case("anchored", "apo_zero", lambda f: f(PI, REF, beta=0.5), t(0.646482, 0.815364, 1.462117)),
    # σ([0.5, 0.25, −1]) + σ([−1.5, −0.75, 2])
    Case("anchored", "apo_down", lambda f: f(PI, REF, beta=0.5), t(0.804885, 0.882998, 1.149738)),
    # half = 2: [1 + 0, 2.25 + 1, 16 + 16]
    Case("anchored", "sppo", lambda f: f(PI, REF, beta=0.25), t(1, 3.25, 32)),
    # sppo's [1, 3.25, 32] + sp([3, 1.5, −4]) = + [0.048587, 0.201413, 4.018150]
    Case(
        "anchored",
        "cal_dpo",
        lambda f: f(PI, REF, beta=0.25),
        t(1.048587, 3.451413, 36.018150),
    ),
    # sp(0.2·[1 + 1, 0.5 + 0.5, −2 − 1])
    Case(
        "anchored",
        "dpo_shift",
        lambda f: f(PI, REF, beta=0.2, rejected_share=0.5),
        t(0.513015, 0.598139, 1.037488),
    ),
    # e^lr + lr: w [3.718282, 2.148721, −1.864665], l [−1.864665, −0.632121, 9.389056]
    # 0.2·gaps = [1.116589, 0.556168, −2.250744], the last one clipped to −1.5
    Case(
        "links",
        "chi_po",
        lambda f: f(PI, REF, beta=0.2, reward_bound=0.75),
        t(0.283218, 0.453240, 1.701413),
    ),
    # 1.116589 clipped to 1, −2.250744 to −1: [sp(1), sp(0.556168), sp(−1)]
    Case(
        "links",
        "chi_po",
        lambda f: f(PI, REF, beta=0.2, reward_bound=0.5),
        t(0.313262, 0.453240, 1.313262),
    ),
    # −e^−lr: w [−0.367879, −0.606531, −7.389056], l [−7.389056, −2.718282, −0.135335]
    Case(
        "links",
        "f_dpo",
        lambda f: f(PI, REF, beta=0.2, divergence="forward_kl"),
        t(0.219581, 0.504106, 1.661326),
    ),
    # log σ(lr): w [−0.313262, −0.474077, −2.126928], l [−2.126928, −1.313262, −0.126928]
    Case(
        "links",
        "f_dpo",
        lambda f: f(PI, REF, beta=1.0, divergence="jensen_shannon"),
        t(0.151050, 0.359116, 2.126928),
    ),
    # q = σ(0.2·h) = [0.645656, 0.574443, 0.310026]: q·log(q/0.9) + (1 − q)·log((1 − q)/0.1)
    Case(
        "links",
        "exo_pair",
        lambda f: f(PI, REF, beta=0.2, label_smoothing=0.1),
        t(0.233839, 0.358383, 1.002268),
    ),
    # s = σ(0.4·h) = [0.768525, 0.645656, 0.167982]: (1 − s)·sp(0.2·h) + s·e^(−0.2·h)
    Case(
        "links",
        "discopop",
        lambda f: f(PI, REF, beta=0.2, tau=0.5),
        t(0.523043, 0.674746, 1.348227),
    ),
    # p_w = [−2.5, −3, −4], p_l = [−4, −1.5, −4]; 2·(1 − e^(−p/2)):
    # w [−4.980686, −6.963378, −12.778112], l [−12.778112, −2.234000, −12.778112]
    # sp(0.3·([7.797426, −4.729378, 0] − ¼))
    Case(
        "links",
        "alpha_po",
        lambda f: f(PI, alpha=0.5, beta=0.3, gamma_beta_ratio=0.25),
        t(0.098859, 1.696358, 0.731350),
    ),
    # −2·(1 − e^(p/2)): w [−1.426990, −1.553740, −1.729329], l [−1.729329, −1.055267, −1.729329]
    # sp(2·([0.302339, −0.498473, 0] − ¼))
    Case(
        "links",
        "alpha_po",
        lambda f: f(PI, alpha=-0.5, beta=2.0, gamma_beta_ratio=0.25),
        t(0.642177, 1.698917, 0.974077),
    ),
    # α = 0: SimPO, sp(2·([1.5, −1.5, 0] − ¼))
    Case(
        "links",
        "alpha_po",
        lambda f: f(PI, alpha=0.0, beta=2.0, gamma_beta_ratio=0.25),
        t(0.078890, 3.529750, 0.974077),
    ),
    # [e⁻⁴ − e^−2.5, e^−1.5 − e⁻³, 0]
    Case("links", "simper", lambda f: f(PI), t(-0.063769, 0.173343, 0)),
    # thumbs up lr [1, −2], down [0.5, −1, 3]; s = ½
    # sp(0.4·[0.5, −2.5]), sp(−0.4·[0, −1.5, 2.5])
    Case(
        "unpaired",
        "bco",
        lambda f: f(SINGLE, SINGLE_REF, torch.tensor(0.5), beta=0.4),
        t(0.598139, 1.313262, 0.693147, 0.437488, 1.313262),
    ),
    # ½·(mean [1, −2] + mean [0.5, −1, 3]) = ½·(−½ + 0.833333)
    Case(
        "unpaired",
        "log_ratio_shift",
        lambda f: f(t(1, -2, 0.5, -1, 3), SINGLE.desirable),
        1 / 6,
    ),
    # one kind alone: its mean
    Case("unpaired", "log_ratio_shift", lambda f: f(t(1, -2), torch.tensor([True] * 2)), -0.5),
    Case("unpaired", "log_ratio_shift", lambda f: f(t(3, 0), torch.tensor([False] * 2)), 1.5),
    # β·lr = [0.5, −1, 0.25 | 0.25, −0.5]: [log(e^0.5 + e^−1 + e^0.25) − 0.5]
    # + [log(e^−1 + e^0.25) + 1] = 0.694112 + 1.501929; log(e^−0.5 + e^0.25) + 0.5
    Case(
        "groupwise", "dpo_ranking", lambda f: f(GROUPS, GROUPS_REF, beta=0.5), t(2.196041, 1.136871)
    ),
    # p = [−2.5, −4, −1.5 | −4, −1.2]: max(0, −1.5) + max(0, 1) + max(0, 2.5) + 0.1·10; 0 + 0.1·6
    Case("groupwise", "rrhf", lambda f: f(GROUPS, weight=0.1), t(4.5, 0.6)),
    # p = [−3, −1, −2]: max(0, −2 + 3) + max(0, −2 + 1) = 1; + ½·mean(6, 2)
    Case("groupwise", "rrhf", lambda f: f(TIED, weight=0.5), t(3)),
    # softmax(2·u) = [0.843795, 0.114195, 0.042010 | 0.119203, 0.880797]
    # log softmax(β·lr) = [−0.694112, −2.194112, −0.944112 | −0.386871, −1.136871]
    Case(
        "groupwise",
        "info_nca",
        lambda f: f(GROUPS, GROUPS_REF, beta=0.5, alpha=0.5),
        t(0.875908, 1.047469),
    ),
    # Σ softmax·sp(β·lr) + mean sp(−β·lr)
    Case(
        "groupwise",
        "nca",
        lambda f: f(GROUPS, GROUPS_REF, beta=0.5, alpha=0.5),
        t(1.278613, 1.576626),
    ),
    # Σ q·(log q − log softmax(2·u))
    Case(
        "groupwise",
        "exo",
        lambda f: f(GROUPS, GROUPS_REF, beta=0.5, alpha=0.5),
        t(0.601281, 0.857798),
    ),
    # scores 1000 apart and log-ratios 2000 the other way: −(0·… + 1·(−2000)), without overflow
    Case("groupwise", "info_nca", lambda f: f(FAR, NEAR, beta=1.0, alpha=1.0), t(2000, 2000)),
    # q = (1, 0), log softmax(u) = (−1000, 0): 1·(0 + 1000)
    Case("groupwise", "exo", lambda f: f(FAR, NEAR, beta=1.0, alpha=1.0), t(1000, 1000)),
]

# Rewards [1, 0, −0.5 | 0.2, 0.8] with scores [1, 0.5, 0 | 1, 0]
TARGETS = TargetScores(t(1, 0, -0.5, 0.2, 0.8), t(1, 0.5, 0, 1, 0), i(0, 0, 0, 1, 1), 2)
SHARES = TargetShares(**vars(TARGETS))

OFFLINE += [
    # [0, 0.25, 0.25 | 0.64, 0.64]
    Case("regression", "squared_error", lambda f: f(TARGETS), t(1 / 6, 0.64)),
    # [sp(1), log 2, sp(0.5) | sp(0.2), sp(−0.8)], sp = [0.313262, 0.693147, 0.474077 | 0.598139,
    # 1.171101]
    Case("regression", "cross_entropy", lambda f: f(SHARES), t(0.493495, 0.884620)),
]
