"""Searches: the points that are tried, what the trials are, and what a budget buys."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignlab.compose import compose
from alignlab.design.draft import Draft
from alignlab.design.expand import expanded
from alignlab.design.halton import PRIMES, halton, radical_inverse
from alignlab.design.search import with_search
from alignlab.design.space import Choices, Span, dimensions_of, points
from alignlab.errors import ConfigError
from alignlab.graph import ordered
from alignlab.plan import Plan, build_stage
from alignlab.run import Store
from alignlab.stages.stage import Estimate

NODE = {"optimizer": {"learning_rate": 3e-4, "rates": {}}, "group": 8, "pairs": "all", "beta": 0.1}


def first(dimensions: Any, count: int, seed: int = 0, node: Any = NODE) -> list[tuple[Any, ...]]:
    return list(itertools.islice(points(dimensions, node, seed), count))


def space(**fields: Any) -> Any:
    return dimensions_of(fields, NODE, "search.space.dpo")


# ------------------------------------------------------------------------------------- the points


def test_digits_are_mirrored_at_the_point() -> None:
    # 6 = 110 in base 2 → 0.011 = 1/4 + 1/8; 5 = 12 in base 3 → 0.21 = 2/3 + 1/9
    assert radical_inverse(6, 2) == pytest.approx(3 / 8)
    assert radical_inverse(5, 3) == pytest.approx(7 / 9)
    assert radical_inverse(0, 2) == 0


def test_the_sequence_is_scipys() -> None:
    qmc = pytest.importorskip("scipy.stats").qmc
    expected = qmc.Halton(d=10, scramble=False).random(50)
    found = [[radical_inverse(i, p) for p in PRIMES] for i in range(50)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_offset_moves_every_point_alike_and_is_made_from_the_name() -> None:
    found = np.array(list(itertools.islice(halton(["a", "b"], seed=3), 8)))
    plain = np.array([[radical_inverse(i, 2), radical_inverse(i, 3)] for i in range(1, 9)])
    moved = (found - plain) % 1.0
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-12)
    other = np.array(list(itertools.islice(halton(["a", "c"], seed=3), 8)))
    np.testing.assert_array_equal(other[:, 0], found[:, 0])
    assert not np.allclose(other[:, 1], found[:, 1])
    assert not np.allclose(np.array(list(itertools.islice(halton(["a", "b"], 4), 8))), found)


def test_sixteen_points_fill_the_interval_evenly() -> None:
    # Fifteen points of base 2 after the corner: each sixteenth of the circle but one has one.
    shares = [p[0] for p in itertools.islice(halton(["x"], seed=0), 15)]
    gaps = np.diff(sorted([*shares, min(shares) + 1]))
    assert np.allclose(sorted(gaps), [1 / 16] * 14 + [2 / 16])


def test_the_first_trial_is_what_is_configured() -> None:
    dimensions = space(**{"optimizer.learning_rate": {"around": 10}, "pairs": ["all", "one"]})
    found = first(dimensions, 5)
    assert found[0] == (3e-4, "all")
    assert len(set(found)) == 5
    assert first(dimensions, 5) == found
    assert first(dimensions, 5, seed=1)[1:] != found[1:]


def test_around_is_a_factor_below_and_above_in_the_logarithm() -> None:
    [rate] = space(optimizer={"learning_rate": {"around": 10}})
    assert rate.field == "optimizer.learning_rate"
    assert rate.options == Span(pytest.approx(3e-5), pytest.approx(3e-3), True, False)
    assert rate.options.at(0.5) == 3e-4  # the geometric middle, to three digits
    values = np.array([p[0] for p in first([rate], 65)[1:]])
    assert values.min() >= 3e-5
    assert values.max() <= 3e-3
    assert abs(np.mean(values < 3e-4) - 0.5) < 0.05


def test_an_interval_takes_the_place_of_around() -> None:
    # what `search.space.dpo.beta={low: 1, high: 2}` leaves of a default: Hydra merges mappings
    [merged] = space(beta={"around": 10, "low": 1.0, "high": 2.0})
    assert merged.options == Span(1.0, 2.0, False, False)
    assert merged.options.at(0.25) == 1.25


def test_whole_ends_give_whole_numbers_both_of_them_included() -> None:
    [group] = space(group={"low": 2, "high": 4})
    assert {group.options.at(s) for s in np.linspace(0, 0.999, 50)} == {2, 3, 4}
    assert all(type(p[0]) is int for p in first([group], 3))
    [around] = space(group={"around": 4})  # 8 is whole: 2 … 32
    found = [around.options.at(s) for s in np.linspace(0, 0.999, 200)]
    assert (min(found), max(found)) == (2, 32)
    assert all(type(x) is int for x in found)


def test_a_space_of_few_settings_ends() -> None:
    dimensions = space(pairs=["all", "best_worst"], group=[4, 8, 16])
    found = first(dimensions, 100)
    assert len(found) == 6
    assert found[0] == ("all", 8)
    assert set(found) == set(itertools.product(["all", "best_worst"], [4, 8, 16]))


def test_numbers_may_be_written_as_yaml_reads_them() -> None:
    [beta] = space(beta={"low": "1e-5", "high": "1e-3", "log": True})
    assert beta.options == Span(1e-5, 1e-3, True, False)


def test_null_is_not_searched() -> None:
    assert [d.field for d in space(beta=None, group=[1, 2])] == ["group"]
    assert space(group=[1, 2])[0].options == Choices((1, 2))


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"betta": [1]}, ["search.space.dpo.betta", "Did you mean 'beta'?"]),
        ({"optimizer.learning_rat": {"around": 2}}, ["learning_rat", "'learning_rate'"]),
        ({"beta": 0.1}, ["search.space.dpo.beta", "expected"]),
        ({"beta": []}, ["search.space.dpo.beta", "expected"]),
        ({"beta": [1, 1]}, ["named twice"]),
        ({"beta": {"low": 1}}, ["low and high"]),
        ({"beta": {"low": 2, "high": 1}}, ["below high"]),
        ({"beta": {"low": 0, "high": 1, "log": True}}, ["above 0"]),
        ({"beta": {"low": 1, "hihg": 2}}, ["hihg", "Did you mean 'high'?"]),
        ({"beta": {"low": "x", "high": 2}}, ["low", "expected a number", "'x'"]),
        ({"beta": {"low": 1, "high": 2, "log": "yes"}}, ["log", "true or false"]),
        ({"beta": {"around": 1}}, ["around", "above 1"]),
        ({"pairs": {"around": 2}}, ["around", "'all'"]),
    ],
)
def test_spaces_are_refused_with_their_path(fields: Any, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        space(**fields)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


# ------------------------------------------------------------------------------------- the search


def config(*overrides: str) -> dict[str, Any]:
    return compose(["pipeline=compare", "experiment=smoke", "search=default", *overrides])


def cost(stages: Mapping[str, Any], name: str) -> Estimate:
    """Training a preference method costs 80 tokens, an online one 180, an evaluation 20."""
    target = stages[name]["_target_"].rpartition(".")[2]
    tokens = {"Preference": 80, "PPO": 180, "GRPO": 180, "Evaluate": 20}[target]
    return Estimate(tokens=tokens, flops=1e6 * tokens)


def trials(stages: Mapping[str, Any], method: str) -> list[str]:
    return [name for name in stages if name.startswith(f"{method},trial=")]


@pytest.mark.slow
def test_every_method_gets_as_many_trials_and_a_choice_that_takes_its_name() -> None:
    stages = expanded(config("budget.trials=4"), cost)
    methods = ("dpo", "ipo", "kto", "orpo", "ppo", "grpo")
    assert {m: len(trials(stages, m)) for m in methods} == dict.fromkeys(methods, 4)
    for method in methods:
        select = stages[method]
        assert select["_target_"] == "alignlab.stages.select.Select"
        assert select["method"] == method
        assert list(select["inputs"].values())[::2] == trials(stages, method)
        assert stages[f"evaluate_{method}"]["inputs"]["policy"] == method
    assert stages["dpo"]["fields"] == ["optimizer.learning_rate", "objective.beta"]
    assert stages["ppo"]["fields"] == ["optimizer.learning_rate", "kl_coef"]
    # what is no method is as it was
    plain = config()["stages"]
    assert all(stages[n] == plain[n] for n in ("sft", "annotate", "reward", "evaluate_best_of_n"))


@pytest.mark.slow
def test_the_first_trial_is_the_stage_as_configured_and_the_others_are_not() -> None:
    stages = expanded(config("budget.trials=3"), cost)
    plain = config()["stages"]["dpo"]
    one, *others = (stages[name] for name in trials(stages, "dpo"))
    assert one == plain
    rates = {node["optimizer"]["learning_rate"] for node in (one, *others)}
    assert len(rates) == 3
    assert all({**node, "optimizer": 0, "objective": 0} == {**plain, "optimizer": 0, "objective": 0}
               for node in others)  # fmt: skip


@pytest.mark.slow
def test_learning_rates_are_tried_at_the_same_places_for_all_methods() -> None:
    stages = expanded(config("budget.trials=5"), cost)
    base = config()["stages"]
    found = {
        method: [
            float(f"{stages[n]['optimizer']['learning_rate'] / rate:.2g}")
            for n in trials(stages, method)
        ]
        for method in ("dpo", "ppo", "grpo")
        if (rate := base[method]["optimizer"]["learning_rate"])
    }
    assert found["dpo"] == found["ppo"] == found["grpo"]


@pytest.mark.slow
def test_the_points_are_the_same_for_every_seed() -> None:
    one, two = (expanded(config("budget.trials=4", f"seed={s}"), cost) for s in (0, 1))
    assert list(one) == list(two)
    assert {one[n]["seed"] for n in trials(one, "dpo")} == {0}
    assert {two[n]["seed"] for n in trials(two, "dpo")} == {1}
    assert two["dpo"]["seed"] == 1


@pytest.mark.slow
def test_nothing_above_a_choice_reads_test_prompts(tmp_path: Path) -> None:
    composed = config("budget.trials=3", "grid={dpo:{pairs:[best_worst,all]}}")
    plan = Plan.from_configs([composed], Store(tmp_path))
    selects = [n for n in plan.nodes.values() if n.kind == "select"]
    assert len(selects) == 7
    above, waiting = set(), list(selects)
    while waiting:
        node = waiting.pop()
        waiting += [plan.nodes[p] for p in node.parents.values() if p not in above]
        above |= set(node.parents.values())
    splits = {plan.nodes[run].stage.split for run in above if plan.nodes[run].kind == "evaluate"}
    assert splits == {"validation"}
    # and the report reads each choice once, on test prompts
    ends = [n for n in plan.nodes.values() if n.kind == "evaluate" and n.run not in above]
    assert {n.stage.split for n in ends} == {"test"}
    chosen = [n.parents["policy"] for n in ends if n.parents["policy"].startswith("select-")]
    assert sorted(chosen) == sorted(n.run for n in selects)


@pytest.mark.slow
def test_tokens_buy_cheap_methods_more_trials() -> None:
    # a DPO trial with its evaluation is 80 + 20 tokens, a PPO trial 180 + 20
    stages = expanded(config("budget={trials:null,tokens:1050}"), cost)
    assert len(trials(stages, "dpo")) == 10
    assert len(trials(stages, "ppo")) == 5
    stages = expanded(config("budget={trials:7,flops:1.05e9}"), cost)
    assert len(trials(stages, "dpo")) == 7
    assert len(trials(stages, "ppo")) == 5


@pytest.mark.slow
def test_a_budget_that_buys_nothing_says_what_it_would_need() -> None:
    with pytest.raises(ConfigError, match=r"budget\.tokens=150: one trial of 'ppo'.* 200 tokens"):
        expanded(config("budget={trials:null,tokens:150}"), cost)
    with pytest.raises(ConfigError, match="no estimate"):
        expanded(config("budget={trials:null,flops:1}"), lambda s, n: Estimate())


@pytest.mark.slow
def test_a_budget_of_trials_asks_for_no_estimates() -> None:
    def refuse(stages: Any, name: str) -> Estimate:
        raise AssertionError

    expanded(config("budget.trials=2"), refuse)


@pytest.mark.slow
def test_the_planned_estimates_are_what_a_budget_counts(tmp_path: Path) -> None:
    plan = Plan.from_configs([config("budget.trials=1")], Store(tmp_path))
    costs: dict[str, float] = {}
    for method in ("dpo", "ppo"):
        nodes = [n for n in plan.nodes.values() if f"{method},trial=1," in n.name]
        assert len(nodes) == 2
        costs[method] = sum(n.estimate.flops for n in nodes)
    # what buys two trials of PPO, to the FLOP, and as many of DPO as fit
    budget = f"budget={{trials:null,flops:{2 * costs['ppo']}}}"
    plan = Plan.from_configs([config(budget)], Store(tmp_path))
    counts = [
        sum(n.name.startswith(f"{method},trial=") for n in plan.nodes.values())
        for method in ("dpo", "ppo")
    ]
    assert counts == [int(2 * costs["ppo"] // costs["dpo"]), 2]


@pytest.mark.slow
def test_what_the_grid_sets_is_not_searched() -> None:
    composed = config("budget.trials=3", "grid={dpo:{objective.beta:[0.1,1.0]}}")
    stages = expanded(composed, cost)
    assert stages["dpo,beta=1"]["fields"] == ["optimizer.learning_rate"]
    assert stages["dpo,beta=1"]["method"] == "dpo,beta=1"
    names = [n for n in stages if n.startswith("dpo,beta=1,trial=")]
    assert len(names) == 3
    assert {stages[n]["objective"]["beta"] for n in names} == {1.0}
    assert stages["evaluate_dpo,beta=1"]["inputs"]["policy"] == "dpo,beta=1"


@pytest.mark.slow
def test_a_method_can_be_left_as_it_is_but_only_by_saying_so() -> None:
    stages = expanded(config("budget.trials=2", "search.space.kto=null"), cost)
    assert trials(stages, "kto") == []
    assert stages["kto"] == config()["stages"]["kto"]
    composed = config()
    del composed["search"]["space"]["kto"]
    with pytest.raises(ConfigError, match=r"says nothing of 'kto'"):
        expanded(composed, cost)


@pytest.mark.slow
def test_a_space_for_a_stage_comes_before_that_of_its_objective() -> None:
    composed = config()
    stages = dict(composed["stages"])
    stages["ipo_sum"] = stages["ipo"]
    stages["evaluate_ipo_sum"] = {**stages["evaluate_ipo"]}
    stages["evaluate_ipo_sum"]["inputs"] = {**stages["evaluate_ipo"]["inputs"], "policy": "ipo_sum"}
    composed["search"]["space"]["ipo_sum"] = {"optimizer.weight_decay": [0.0, 0.1]}
    made = with_search(Draft(stages), composed, cost).stages
    assert made["ipo_sum"]["fields"] == ["optimizer.weight_decay"]
    assert made["ipo"]["fields"] == ["optimizer.learning_rate", "objective.tau"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"search": {"space": 3}}, ["search", "space"]),
        ({"budget": None}, ["budget.trials", "missing"]),
        ({"budget": {"trials": None, "tokens": None, "flops": None}}, ["budget", "never ends"]),
        ({"budget": {"trials": 0, "tokens": None, "flops": None}}, ["budget.trials"]),
        ({"search": None}, ["budget", "no search"]),
    ],
)
def test_refusals_say_where(change: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        expanded({**config(), **change}, cost)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        (("space", "dop"), {}, ["search.space.dop", "Did you mean 'dpo'?"]),
        (("space", "sft"), {}, ["search.space.sft", "no method"]),
        (("metric",), "golf", ["search.metric", "Did you mean 'gold'?"]),
        (("prompts",), 0, ["search.prompts"]),
        (("promts",), 3, ["search.promts", "Did you mean 'prompts'?"]),
    ],
)
def test_mistakes_in_a_search_are_found(path: Any, value: Any, parts: list[str]) -> None:
    composed = config()
    node = composed["search"]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        expanded(composed, cost)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.slow
def test_a_method_that_nothing_evaluates_cannot_be_searched() -> None:
    composed = config()
    stages = {n: node for n, node in composed["stages"].items() if n != "evaluate_kto"}
    with pytest.raises(ConfigError, match="no evaluation reads 'kto'"):
        expanded({**composed, "stages": stages}, cost)


@pytest.mark.long
def test_the_default_space_fits_every_shipped_method(tmp_path: Path) -> None:
    from alignlab.compose import conf_dir

    objectives = sorted(p.stem for p in (conf_dir() / "objective").glob("*.yaml"))
    for objective in objectives:
        composed = compose(
            [f"objective={objective}", "experiment=smoke", "search=default", "budget.trials=3"]
        )
        made = expanded(composed, cost)
        stages = {name: build_stage(node, f"stages.{name}") for name, node in made.items()}
        assert ordered(stages)
        assert len(trials(made, "preference")) == 3
    for stage in ("ppo", "grpo", "rloo", "gspo", "cispo", "reinforce_pp", "online_dpo"):
        composed = compose(
            ["pipeline=instructgpt", f"stage@stages.policy={stage}", "search=default"]
        )
        assert len(trials(expanded(composed, cost), "policy")) == 16
