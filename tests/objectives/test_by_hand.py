"""Every objective against arithmetic that a person can follow (in objective_cases.py)."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch
from objective_cases import CASES as FIRST
from objective_cases import PI, REF, SINGLE, SINGLE_REF, Case, i, t
from offline_cases import OFFLINE

from alignlab.objectives import links, pairwise, penalized, unpaired
from alignlab.tensors import GroupScores

CASES = FIRST + OFFLINE
MODULES = (
    "penalized",
    "anchored",
    "links",
    "groupwise",
    "regression",
    "likelihood",
    "ranking",
    "pairwise",
    "unpaired",
    "policy",
    "advantage",
    "divergence",
    "stable",
)


def load(name):
    return importlib.import_module(f"alignlab.objectives.{name}")


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_by_hand(case: Case):
    case.run(load(case.module))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_the_tolerance_can_fail(case: Case):
    wrong = Case(case.module, case.function, case.call, torch.as_tensor(case.expected) + 1e-5)
    with pytest.raises(AssertionError):
        wrong.run(load(case.module))


def test_every_public_function_that_returns_a_loss_or_statistic_has_a_row():
    covered = {case.id for case in CASES}
    # dictionaries and thin wrappers, tested below or through the functions they wrap
    covered |= {"pairwise.pair_metrics", "pairwise.log_ratios", "unpaired.single_metrics"}
    covered |= {"pairwise.mean_logps", "policy.importance_ratio"}
    for name in MODULES:
        module = load(name)
        for function, value in inspect.getmembers(module, inspect.isfunction):
            own = value.__module__ == module.__name__ and not function.startswith("_")
            assert not own or f"{name}.{function}" in covered, f"no worked example: {function}"


def test_pair_metrics_with_and_without_reference():
    with_reference = pairwise.pair_metrics(PI, REF)
    assert with_reference["margin"].tolist() == [3, 1.5, -4]
    assert with_reference["accuracy"].tolist() == [1, 1, 0]
    assert with_reference["chosen_log_ratio"].tolist() == [1, 0.5, -2]
    alone = pairwise.pair_metrics(PI, None)
    assert alone["margin"].tolist() == [2, 3, -12]
    assert alone["rejected_length"].tolist() == [3, 6, 2]
    assert "chosen_log_ratio" not in alone


def test_single_metrics():
    metrics = unpaired.single_metrics(SINGLE, SINGLE_REF)
    assert metrics["log_ratio"].tolist() == [1, -2, 0.5, -1, 3]
    assert metrics["accuracy"].tolist() == [1, 0, 0, 1, 0]


def test_kl_point_has_no_gradient_and_needs_two_prompts():
    ratios = t(2, 3).requires_grad_()
    assert not unpaired.kl_point(ratios).requires_grad
    with pytest.raises(ValueError, match="two prompts"):
        unpaired.kl_point(t())


def test_the_shift_of_bco_has_no_gradient_and_needs_a_completion():
    ratios = t(2, 3).requires_grad_()
    assert not unpaired.log_ratio_shift(ratios, torch.tensor([True, False])).requires_grad
    with pytest.raises(ValueError, match="with a thumb"):
        unpaired.log_ratio_shift(t(), torch.tensor([], dtype=torch.bool))


def test_a_prompt_without_pairs_costs_nothing():
    from alignlab.objectives.ranking import bradley_terry, plackett_luce, top_one

    scores = GroupScores(t(3, 4, 1, 2), i(3), i(2), i(1), 2)  # group 0 is all ties
    for loss in (bradley_terry(scores, centering=0.5), plackett_luce(scores), top_one(scores)):
        assert loss[0] == 0
        assert loss[1] > 0


def test_margins_are_refused_where_they_have_no_meaning():
    from alignlab.objectives.ranking import plackett_luce, top_one

    scores = GroupScores(t(1, 0), i(0), i(1), i(0), 1, margin=t(1))
    for objective in (plackett_luce, top_one):
        with pytest.raises(ValueError, match="margins need bradley_terry"):
            objective(scores)


def test_unknown_variants_are_refused():
    from alignlab.objectives import advantage, divergence, policy

    with pytest.raises(ValueError, match="normalize"):
        pairwise.ipo(PI, REF, tau=0.1, normalize="median")
    with pytest.raises(ValueError, match="normalize"):
        penalized.cpo(PI, beta=0.1, weight=1.0, normalize="median")
    with pytest.raises(ValueError, match="divergence"):
        links.f_dpo(PI, REF, beta=0.1, divergence="reverse_kl")
    with pytest.raises(ValueError, match="estimator"):
        divergence.token_kl(t(-1), t(-1), estimator="k4")
    with pytest.raises(ValueError, match="max_length"):
        advantage.token_weights(i(1), normalizer="constant", max_length=None)
    with pytest.raises(ValueError, match="normalizer"):
        advantage.token_weights(i(1), normalizer="mean", max_length=None)
    with pytest.raises(ValueError, match="kind"):
        advantage.group_advantages(t(1, 2), i(0, 0), 1, kind="std", epsilon=0.0)
    with pytest.raises(ValueError, match="n >= 1"):
        divergence.best_of_n_kl(0)
    with pytest.raises(ValueError, match="ratio"):
        policy.sequence_surrogate(
            policy.TokenLogps(t(-1), t(-1)), t(1), i(0), i(1), clip_low=0, clip_high=0, ratio="mean"
        )
