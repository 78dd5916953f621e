"""From scores of completions to pairs and singles, and the loss terms of the online methods."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alignlab.data.group import NONE, TokenGroup, Verdict
from alignlab.data.pack import flatten
from alignlab.rewards.shaping import clip, missing_eos, token_rewards
from alignlab.stages.arrange import ARRANGE, group_logps, pair_logps, single_logps
from alignlab.stages.grpo_work import GRPOWork
from alignlab.stages.online import OnlinePack
from alignlab.stages.ppo_work import PPOWork
from alignlab.stages.reward import accuracy_of, group_scores, target_scores


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, wanted, atol=1e-6):
    found, wanted = (torch.as_tensor(x, dtype=torch.float64) for x in (found, wanted))
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def group(verdict: Verdict, completions: int, row: int = 0) -> TokenGroup:
    ids = tuple(np.array([7] * (i + 1), dtype=np.int32) for i in range(completions))
    return TokenGroup(np.array([5], dtype=np.int32), ids, verdict, row, str(row))


# completions 0 1 2 | 3 4 | 5 6 7: ranks best to worst 1, 2, 0; a tie; thumbs up, down, up
GROUPS = [
    group(Verdict("ranking", ranks=(2, 0, 1)), 3),
    group(Verdict("scores", scores=(0.5, 0.5)), 2),
    group(Verdict("thumbs", thumbs=(True, False, True)), 3),
]
SUMS = t(-1, -2, -3, -4, -5, -6, -7, -8)
LENGTHS = torch.tensor([1, 2, 3, 1, 2, 1, 2, 3])
PAIRS = [(1, 0), (1, 2), (2, 0), (5, 6), (7, 6)]  # every win, in the order of the indices


def test_pairs_by_hand():
    found = pair_logps(SUMS, LENGTHS, GROUPS)
    assert found.chosen.tolist() == [SUMS[winner] for winner, _ in PAIRS]
    assert found.rejected.tolist() == [SUMS[loser] for _, loser in PAIRS]
    assert found.chosen_length.tolist() == [2, 2, 3, 1, 3]
    assert found.rejected_length.tolist() == [1, 3, 1, 2, 2]
    empty = pair_logps(SUMS[3:5], LENGTHS[3:5], GROUPS[1:2])
    assert empty.chosen.shape == empty.rejected_length.shape == (0,)


def test_singles_by_hand():
    # 1 wins twice, 0 loses twice, 2 wins as often as it loses; a tie has no thumb
    found = single_logps(SUMS, LENGTHS, GROUPS)
    assert found.completion.tolist() == [-1, -2, -6, -7, -8]
    assert found.length.tolist() == [1, 2, 1, 2, 3]
    assert found.desirable.dtype == torch.bool
    assert found.desirable.tolist() == [False, True, True, False, True]
    # a micro-batch of ties alone: nothing to train on, in the same number formats
    empty = single_logps(SUMS[3:5], LENGTHS[3:5], GROUPS[1:2])
    assert empty.completion.shape == empty.length.shape == empty.desirable.shape == (0,)
    assert (empty.completion.dtype, empty.desirable.dtype) == (torch.float64, torch.bool)


def test_groups_by_hand():
    # the second prompt is a tie of all: its completions are left out, and the third is prompt 1
    found = group_logps(SUMS, LENGTHS, GROUPS)
    assert found.completion.tolist() == [-1, -2, -3, -6, -7, -8]
    assert found.length.tolist() == [1, 2, 3, 1, 2, 3]
    assert found.utility.tolist() == [-2, 0, -1, 1, 0, 1]
    assert found.group.tolist() == [0, 0, 0, 1, 1, 1]
    ordered = [(1, 0), (1, 2), (2, 0), (3, 4), (5, 4)]
    assert list(zip(found.better.tolist(), found.worse.tolist(), strict=True)) == ordered
    assert found.pair_group.tolist() == [0, 0, 0, 1, 1]
    assert found.groups == 2
    assert found.utility.dtype == torch.float64
    empty = group_logps(SUMS[3:5], LENGTHS[3:5], GROUPS[1:2])
    assert empty.groups == 0
    assert empty.completion.shape == empty.utility.shape == empty.pair_group.shape == (0,)
    assert {x.dtype for x in (empty.group, empty.better, empty.worse)} == {torch.int64}
    assert {"pair": pair_logps, "single": single_logps, "group": group_logps} == ARRANGE


def test_scores_by_hand():
    found = group_scores(SUMS, GROUPS)
    assert found.reward is SUMS
    assert list(zip(found.better.tolist(), found.worse.tolist(), strict=True)) == PAIRS
    assert found.pair_group.tolist() == [0, 0, 0, 2, 2]
    assert found.groups == 3
    empty = group_scores(SUMS[3:5], GROUPS[1:2])
    assert empty.better.dtype == empty.worse.dtype == empty.pair_group.dtype == torch.int64
    assert empty.better.shape == (0,)


# ------------------------------------------------------------------------------ shaped rewards


def test_a_missing_end_is_replaced_or_penalised():
    scores, finished = t(1, 2, 3), torch.tensor([True, False, True])
    assert missing_eos(scores, finished, replace=-1.0).tolist() == [1, -1, 3]
    assert missing_eos(scores, finished, replace=0.0, penalty=9.0).tolist() == [1, 0, 3]
    assert missing_eos(scores, finished, penalty=0.5).tolist() == [1, 1.5, 3]
    assert missing_eos(scores, finished).tolist() == [1, 2, 3]


def test_clip():
    assert clip(t(-7, 3, 9), 5).tolist() == [-5, 3, 5]


def test_token_rewards_by_hand():
    # β = ½, log-ratios [1, −2 | 4]: −½, +1 + 10 | −2 + 20
    found = token_rewards(t(10, 20), t(-1, -2, -3), t(-2, 0, -7), 0.5, torch.tensor([2, 1]))
    assert found.tolist() == [-0.5, 11, 18]
    found = token_rewards(t(10).float(), t(-1), t(-2), 0.5, torch.tensor([1]))
    assert (found.dtype, found.tolist()) == (torch.float64, [9.5])
    none = torch.tensor([], dtype=torch.int64)
    assert token_rewards(t(), t(), t(), 0.5, none).shape == (0,)
    with pytest.raises(ValueError, match="do not fit"):
        token_rewards(t(1, 2), t(-1, -2), t(-1, -2), 0.5, torch.tensor([2]))


def test_given_scores_by_hand():
    # the verdicts in numbers: minus ranks, scores, thumbs
    found = target_scores(SUMS, GROUPS)
    assert found.reward is SUMS
    assert found.target.tolist() == [-2, 0, -1, 0.5, 0.5, 1, 0, 1]
    assert found.group.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert found.groups == 3
    assert (found.target.dtype, found.group.dtype) == (torch.float64, torch.int64)
    empty = target_scores(SUMS[:0], [])
    assert empty.target.shape == empty.group.shape == (0,)
    assert (empty.target.dtype, empty.group.dtype) == (torch.float64, torch.int64)


def test_a_tie_of_scores_is_half_right():
    # pairs (1, 0), (1, 2), (2, 0): 1 above 0 by 1, level with 2; 2 above 0
    scores = group_scores(t(0, 1, 1), GROUPS[:1])
    assert accuracy_of(scores) == 2.5 / 3
    assert accuracy_of(group_scores(t(1, 0, 2), GROUPS[:1])) == 1 / 3


# ---------------------------------------------------------------------- loss terms, two stages


# two completions of 2 and 1 tokens; ρ = [½, 1¼ | 2], Σ log ρ = log 1¼
BATCH = flatten([group(NONE, 2).keep([1, 0])])
OLD = torch.tensor([-1.0, -2.0, -3.0])
NEW = OLD + torch.tensor([0.5, 1.25, 2.0]).log()
REFERENCE = NEW - torch.tensor([0.0, 1.0, -1.0])
LOG = math.log(1.25)
GAP = (2 * math.log(2) + LOG) / 3


def pack(term="policy", **tokens):
    return SimpleNamespace(
        data=OnlinePack(BATCH, term, 4.0, {"old": OLD, **tokens}, {"reward": (t(5)[0], 2)})
    )


class Seen:
    """A view that says what it is told, and remembers at which temperature it was asked."""

    def __init__(self, logps=None, values=None):
        self._logps, self._values = logps, values
        self.temperatures = []

    def logps(self, batch, *, temperature=1.0):
        assert batch is BATCH
        self.temperatures.append(temperature)
        return self._logps

    def values(self, batch):
        assert batch is BATCH
        return self._values


def leaf(x):
    return x.clone().requires_grad_()


def work(kind, **stage):
    made = object.__new__(kind)
    made.stage = SimpleNamespace(sampling=SimpleNamespace(temperature=0.7), **stage)
    return made


def check_means(metrics, **wanted):
    assert set(metrics) == {*wanted, "reward"}
    assert metrics["reward"][1] == 2
    for name, mean in wanted.items():
        total, count = metrics[name]
        assert isinstance(total, torch.Tensor)
        assert total.dtype == torch.float64
        assert not total.requires_grad
        close(float(total) / count, mean)


def test_ppo_s_policy_term():
    # A = [−2, 3, 1], ε = 0.3: 2·max(½, 0.7) = 1.4, −3·1¼, −min(2, 1.3); sum −3.65, over 4
    seen = Seen(logps=leaf(NEW))
    loss, metrics = work(PPOWork, clip=0.3).loss(seen, pack(advantages=t(-2, 3, 1)))
    close(loss, -3.65 / 4)
    assert loss.requires_grad
    assert seen.temperatures == [0.7]
    # k3 = ρ − 1 − log ρ, over 3 tokens
    check_means(metrics, clip_fraction=2 / 3, approx_kl=(0.75 - LOG) / 3, ratio=3.75 / 3)


def test_ppo_s_policy_term_of_another_sampler_s_rollouts():
    # the terms above, 1.4, −3·1¼ and −1.3, each with its importance weight: 2, ½ and 1
    seen = Seen(logps=leaf(NEW))
    tokens = {"advantages": t(-2, 3, 1), "importance": t(2, 0.5, 1)}
    loss, _ = work(PPOWork, clip=0.3).loss(seen, pack(**tokens))
    close(loss, (2.8 - 1.875 - 1.3) / 4)


OLD_VALUES, RETURNS = torch.tensor([1.0, 1.0, 3.0]), torch.tensor([0.0, 2.0, 5.0])


def test_ppo_s_value_term():
    # V = [1, 2, 3], V_old = [1, 1, 3], G = [0, 2, 5], ±½: ½·max([1, 0, 4], [1, ¼, 4]) = ½, ⅛, 2
    seen = Seen(values=leaf(torch.tensor([1.0, 2.0, 3.0])))
    stage = work(PPOWork, value_clip=0.5, value_coef=0.2)
    loss, metrics = stage.loss(seen, pack("value", values=OLD_VALUES, returns=RETURNS))
    close(loss, 0.2 * 2.625 / 4)
    check_means(metrics, value_loss=2.625 / 3)


def test_ppo_s_pretraining_term():
    # nothing is sampled, so the temperature is 1; −Σ log p = 6 − log 1¼
    seen = Seen(logps=leaf(NEW))
    loss, metrics = work(PPOWork, ptx_coef=3.0).loss(seen, pack("pretraining"))
    close(loss, 3 * (6 - LOG) / 4)
    assert seen.temperatures == [1.0]
    check_means(metrics, ptx_nll=(6 - LOG) / 3)


def grpo(**changes):
    stage = {
        "ratio": "token",
        "clip_low": 0.3,
        "clip_high": 0.5,
        "kl_coef": 0.0,
        "kl_place": "loss",
        "kl_estimator": "k1",
    }
    return work(GRPOWork, **{**stage, **changes})


ADVANTAGES, WEIGHTS = (
    torch.tensor([-2.0, -2.0, 1.0]),
    torch.tensor([0.5, 0.5, 1.0]),
)  # one per completion, spread over its tokens


# completions of 2, 1 and 1 tokens, two of the first prompt and one of the second
SCORES, PROMPT = t(1, 3, 9), torch.tensor([0, 0, 1])
SAID = SimpleNamespace(
    lengths=torch.tensor([2, 1, 1]),
    old=[t(-1, -2), t(-3), t(-1)],
    reference=[t(-2, 0), t(-7), t(-1)],
    groups=[None, None],
)


def check_advantages(expected, said=SAID, scores=SCORES, **stage):
    found = grpo(**stage).advantages(said, scores, PROMPT)
    assert isinstance(found, list)
    assert [len(x) for x in found] == [2, 1, 1]
    assert all(x.dtype == torch.float64 for x in found)
    close(torch.cat(found), t(*expected))


def test_grpo_s_advantages_against_the_group():
    # the first prompt's are ∓1, their sample deviation √2; one alone has nothing to compare with
    one = 1 / (math.sqrt(2) + 1e-4)
    check_advantages((-one, -one, one, 0), advantage="group_std")
    check_advantages((-1, -1, 1, 0), advantage="group_mean")
    # over the tokens: mean −¼, variance ¾ − 1/16
    std = math.sqrt(11 / 16)
    whitened = (-0.75 / std, -0.75 / std, 1.25 / std, 0.25 / std)
    check_advantages(whitened, advantage="group_whitened")


def test_reinforce_pp_s_advantages():
    # 1, 1, 3, 9: mean 3½, squares 92/4, variance 23 − 12¼
    std = math.sqrt(10.75)
    plain = (-2.5 / std, -2.5 / std, -0.5 / std, 5.5 / std)
    check_advantages(plain, advantage="whitened", kl_coef=0.5, kl_place="loss")
    alone = SimpleNamespace(lengths=SAID.lengths, reference=[])  # without β there is no reference
    token_reward = {"advantage": "whitened", "kl_place": "token_reward"}
    check_advantages(plain, said=alone, kl_coef=0.0, **token_reward)
    # a variance of 1e-8 is doubled by the ε that keeps it from 0
    near, root = t(0, 2e-4, 2e-4), math.sqrt(0.5)
    check_advantages((-root, -root, root, root), said=alone, scores=near, kl_coef=0, **token_reward)
    # log-ratios [1, −2 | 4 | 0], β = ½: rewards −½, 1 + 1 | −2 + 3 | 9; still to come 1½, 2 | 1
    # | 9: mean 13½/4 = 3⅜, squares (2¼ + 4 + 1 + 81)/4 = 22 1/16
    std = math.sqrt(22.0625 - 3.375**2)
    to_come = (-1.875 / std, -1.375 / std, -2.375 / std, 5.625 / std)
    check_advantages(to_come, kl_coef=0.5, **token_reward)


def test_grpo_s_surrogate_per_token():
    # 2·max(½, 0.7)·½ = 0.7, 2·1¼·½ = 1.25, −1.5·1: sum 0.45
    seen = Seen(logps=leaf(NEW))
    tokens = pack(advantages=ADVANTAGES, weights=WEIGHTS)
    loss, metrics = grpo().loss(seen, tokens)
    close(loss, 0.45 / 4)
    assert seen.temperatures == [0.7]
    # the sampler gap is the mean of |log ρ|
    check_means(metrics, clip_fraction=2 / 3, sampler_gap=GAP)


def test_grpo_s_surrogate_per_sequence():
    # ρ = [½·1¼, 2]: 2·max(0.625, 0.7)·½ = 0.7 and −1.5; both clipped
    seen = Seen(logps=leaf(NEW))
    tokens = pack(advantages=ADVANTAGES, weights=WEIGHTS)
    loss, metrics = grpo(ratio="sequence").loss(seen, tokens)
    close(loss, -0.8 / 4)
    check_means(metrics, clip_fraction=1.0, sampler_gap=GAP)
    # clip_low and clip_high are told apart: ρ = 0.625 stands at ε_low = 0.6
    loss, metrics = grpo(ratio="sequence", clip_low=0.6).loss(seen, tokens)
    close(loss, (-1.5 + 0.625) / 4)
    check_means(metrics, clip_fraction=0.5, sampler_gap=GAP)


def test_grpo_s_surrogate_per_sequence_mean():
    # ρ = [√(½·1¼), 2] = [0.790569, 2], whole weights ½·2 and 1·1:
    # 2·max(0.790569, 0.7)·1 = 1.581139 and −1.5; the second is clipped
    seen = Seen(logps=leaf(NEW))
    tokens = pack(advantages=ADVANTAGES, weights=WEIGHTS)
    loss, metrics = grpo(ratio="sequence_mean").loss(seen, tokens)
    close(loss, (2 * math.sqrt(0.625) - 1.5) / 4)
    check_means(metrics, clip_fraction=0.5, sampler_gap=GAP)
    # told apart from the product, which would be clipped: 0.625 < 0.7
    loss, metrics = grpo(ratio="sequence_mean", clip_low=0.2).loss(seen, tokens)
    close(loss, (1.6 - 1.5) / 4)
    check_means(metrics, clip_fraction=1.0, sampler_gap=GAP)


def test_grpo_s_surrogate_with_a_clipped_weight():
    # weights clip([½, 1¼, 2], 0.7, 1.5) = [0.7, 1¼, 1.5]; −w·A·log π·weight with
    # log π = [−1 − log 2, −2 + log 1¼, −3 + log 2]: two are cut
    seen = Seen(logps=leaf(NEW))
    loss, metrics = grpo(ratio="token_weight").loss(
        seen, pack(advantages=ADVANTAGES, weights=WEIGHTS)
    )
    first, second = 0.7 * (-1 - math.log(2)), 1.25 * (-2 + LOG)
    close(loss, (first + second - 1.5 * (-3 + math.log(2))) / 4)
    check_means(metrics, clip_fraction=2 / 3, sampler_gap=GAP)


def test_grpo_s_kl_term_stands_in_the_loss_only_where_it_belongs():
    # k1 = new − reference = [0, 1, −1], weighted 0 + ½ − 1; times 0.8 = −0.4
    tokens = pack(advantages=ADVANTAGES, weights=WEIGHTS, reference=REFERENCE)
    for coefficient, place, wanted in (
        (0.8, "loss", 0.05),
        (0.8, "reward", 0.45),
        (0.0, "loss", 0.45),
    ):
        seen = Seen(logps=leaf(NEW))
        loss, _ = grpo(kl_coef=coefficient, kl_place=place).loss(seen, tokens)
        close(loss, wanted / 4)
    loss, _ = grpo(kl_coef=0.8, kl_estimator="k2").loss(Seen(logps=leaf(NEW)), tokens)
    close(loss, (0.45 + 0.8 * (0.25 + 0.5)) / 4)
