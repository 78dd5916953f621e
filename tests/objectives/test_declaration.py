"""The signature of an objective is its declaration."""

from __future__ import annotations

import functools
import inspect
import math

import pytest
from torch import Tensor

from alignlab import spec
from alignlab.errors import ConfigError
from alignlab.objectives import (
    anchored,
    groupwise,
    likelihood,
    links,
    pairwise,
    penalized,
    policy,
    ranking,
    unpaired,
)
from alignlab.objectives.declaration import Declaration, called, declaration, display_name
from alignlab.tensors import PairLogps, SingleLogps

WITH_REFERENCE = [
    pairwise.dpo,
    pairwise.robust_dpo,
    pairwise.dpo_norm,
    pairwise.ipo,
    pairwise.hinge,
    penalized.dpo_likelihood,
    penalized.dpo_positive,
    penalized.dpo_length,
    anchored.apo_zero,
    anchored.apo_down,
    anchored.sppo,
    links.chi_po,
    links.f_dpo,
    links.exo_pair,
    links.discopop,
]
ALONE = [pairwise.orpo, pairwise.simpo, pairwise.slic, penalized.cpo]
GROUPS = [groupwise.dpo_ranking, groupwise.info_nca, groupwise.nca, groupwise.exo]


@pytest.mark.parametrize("function", WITH_REFERENCE + ALONE)
def test_pairs(function):
    assert declaration(function) == Declaration("pair", function in WITH_REFERENCE, False)


def test_kto():
    assert declaration(unpaired.kto) == Declaration("single", True, True)


def test_bco():
    assert declaration(unpaired.bco) == Declaration("single", True, False, True)


@pytest.mark.parametrize("function", [*GROUPS, groupwise.rrhf])
def test_groups(function):
    assert declaration(function) == Declaration("group", function in GROUPS, False, False)


def test_which_objectives_need_something_of_the_whole_step():
    assert declaration(unpaired.kto).has_statistics
    assert declaration(unpaired.bco).has_statistics
    assert not declaration(pairwise.dpo).has_statistics


def test_an_objective_says_what_it_is_called():
    half = functools.partial(pairwise.simpo, beta=1.0)
    assert display_name(functools.partial(half, gamma_beta_ratio=0.5)) == "SimPO"
    assert display_name(penalized.dpo_length) == "R-DPO"
    assert display_name(pairwise.robust_dpo) == "rDPO"

    def mine(policy: SingleLogps) -> Tensor:
        return policy.completion

    assert display_name(mine) == "mine"
    assert called("Mine")(mine) is mine
    assert display_name(mine) == "Mine"


def test_every_objective_has_a_name_of_its_own():
    modules = (pairwise, penalized, anchored, links, unpaired, groupwise)
    found = [
        display_name(function)
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and hasattr(function, "display_name")
    ]
    assert len(found) == len(set(found)) == 30
    assert all(name.strip() == name and name for name in found)


def test_partials_nested_or_not():
    half = functools.partial(pairwise.dpo, beta=0.1)
    whole = functools.partial(half, label_smoothing=0.0)
    assert declaration(half) == declaration(whole) == Declaration("pair", True, False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": -0.1}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"beta": math.inf}, "beta"),
        ({"beta": "strong"}, "beta"),
        ({"beta": True}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
    ],
)
def test_values_out_of_range_are_refused_by_the_annotation(override, message):
    node = {"_target_": "alignlab.objectives.pairwise.dpo", "beta": 0.1, "label_smoothing": 0.0}
    assert spec.parse(node, "objective")
    with pytest.raises(ConfigError, match=rf"objective\.{message}"):
        spec.parse(node | override, "objective")


def test_choices_are_refused_by_the_annotation():
    node = {"_target_": "alignlab.objectives.pairwise.ipo", "tau": 0.1, "normalize": "average"}
    with pytest.raises(ConfigError, match=r"objective\.normalize"):
        spec.parse(node, "objective")


@pytest.mark.parametrize(
    "function", [likelihood.nll, ranking.bradley_terry, policy.clipped_surrogate, spec.build]
)
def test_what_is_not_a_preference_objective_is_refused(function):
    with pytest.raises(ConfigError):
        declaration(function)


def test_a_new_objective_needs_nothing_but_its_signature():
    def mine(policy: SingleLogps, kl_point: Tensor, *, weight: float) -> Tensor:
        return policy.completion

    assert declaration(mine) == Declaration("single", False, True)
    assert declaration(functools.partial(mine, weight=2.0)) == Declaration("single", False, True)


def test_unreadable_annotations_are_a_clear_error():
    def broken(policy: NoSuchType) -> Tensor:  # noqa: F821
        return policy

    with pytest.raises(ConfigError, match="PairLogps, SingleLogps or GroupLogps"):
        declaration(broken)


def test_a_function_without_parameters_is_refused():
    with pytest.raises(ConfigError, match="not None"):
        declaration(lambda: None)


def test_hyperparameters_are_keyword_only_and_have_no_default():
    modules = (pairwise, penalized, anchored, links, unpaired, groupwise, ranking, policy)
    for module in modules:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ != module.__name__ or name.startswith("_"):
                continue
            for parameter in inspect.signature(function).parameters.values():
                assert parameter.default is parameter.empty, f"{name}({parameter.name})"
                if parameter.annotation in ("float", "Positive", "NonNegative", "FlipRate"):
                    late = name == "_pessimistic"
                    assert late or parameter.kind is parameter.KEYWORD_ONLY, name


def test_the_view_types_are_the_shared_ones():
    assert declaration(pairwise.orpo).view == "pair"
    assert PairLogps.__module__ == SingleLogps.__module__ == "alignlab.tensors"
