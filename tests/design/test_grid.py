"""Grids: which stages there are afterwards, what each of them reads, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignlab.compose import compose
from alignlab.design.draft import Draft
from alignlab.design.expand import expanded
from alignlab.design.grid import with_grid
from alignlab.design.spelling import spelled, spelled_apart
from alignlab.errors import ConfigError
from alignlab.plan import Plan
from alignlab.run import Store

# sft ─┬─ annotate ─┬─ dpo ── evaluate_dpo
#      │            └─ reward ── ppo ── evaluate_ppo
#      └─ evaluate_sft
STAGES: dict[str, Any] = {
    "sft": {"_target_": "a.SFT", "inputs": {}, "optimizer": {"learning_rate": 1.0}},
    "annotate": {"_target_": "a.Annotate", "inputs": {"policy": "sft"}, "completions": 4},
    "dpo": {
        "_target_": "a.Preference",
        "inputs": {"init": "sft", "annotations": "annotate"},
        "objective": {"_target_": "a.dpo", "beta": 0.1},
        "optimizer": {"learning_rate": 2.0, "rates": {}},
    },
    "reward": {"_target_": "a.Reward", "inputs": {"init": "sft", "annotations": "annotate"}},
    "ppo": {"_target_": "a.PPO", "inputs": {"init": "sft", "reward": "reward"}, "kl_coef": 0.05},
    "evaluate_sft": {"_target_": "a.Evaluate", "inputs": {"policy": "sft"}, "best_of": 1},
    "evaluate_dpo": {"_target_": "a.Evaluate", "inputs": {"policy": "dpo", "reference": "sft"}},
    "evaluate_ppo": {"_target_": "a.Evaluate", "inputs": {"policy": "ppo", "reference": "sft"}},
}


def no_cost(stages: Any, name: str) -> Any:
    raise AssertionError("nothing asked for it")


def grid(stated: Any) -> dict[str, Any]:
    return dict(with_grid(Draft(STAGES), stated).stages)


def test_every_value_is_a_stage_with_its_own_evaluation() -> None:
    found = grid({"dpo": {"objective.beta": [0.03, 0.3]}})
    assert list(found) == [
        "sft",
        "annotate",
        "dpo,beta=0.03",
        "dpo,beta=0.3",
        "reward",
        "ppo",
        "evaluate_sft",
        "evaluate_dpo,beta=0.03",
        "evaluate_dpo,beta=0.3",
        "evaluate_ppo",
    ]
    assert found["dpo,beta=0.3"]["objective"] == {"_target_": "a.dpo", "beta": 0.3}
    assert found["dpo,beta=0.3"]["inputs"] == {"init": "sft", "annotations": "annotate"}
    evaluation = found["evaluate_dpo,beta=0.3"]
    assert evaluation["inputs"] == {"policy": "dpo,beta=0.3", "reference": "sft"}
    for shared in ("sft", "annotate", "reward", "ppo", "evaluate_ppo"):
        assert found[shared] is STAGES[shared]


def test_what_was_stated_is_not_changed() -> None:
    grid({"dpo": {"objective.beta": [0.03], "optimizer.rates.policy": [2]}})
    assert STAGES["dpo"]["objective"]["beta"] == 0.1
    assert STAGES["dpo"]["optimizer"]["rates"] == {}


def test_two_fields_of_a_stage_give_every_combination() -> None:
    found = grid({"dpo": {"objective.beta": [0.1, 1.0], "optimizer.learning_rate": [1e-5, 1e-4]}})
    points = {
        name: (node["objective"]["beta"], node["optimizer"]["learning_rate"])
        for name, node in found.items()
        if name.startswith("dpo")
    }
    assert points == {
        "dpo,beta=0.1,learning_rate=1e-5": (0.1, 1e-5),
        "dpo,beta=0.1,learning_rate=0.0001": (0.1, 1e-4),
        "dpo,beta=1,learning_rate=1e-5": (1.0, 1e-5),
        "dpo,beta=1,learning_rate=0.0001": (1.0, 1e-4),
    }


def test_a_grid_over_a_shared_stage_copies_everything_below_it() -> None:
    found = grid({"annotate": {"completions": [2, 8]}})
    # below annotate: dpo, reward, ppo and two evaluations; sft and its evaluation are shared
    assert len(found) == 2 + 2 * 6
    assert found["ppo,completions=8"]["inputs"] == {"init": "sft", "reward": "reward,completions=8"}
    assert found["reward,completions=8"]["inputs"]["annotations"] == "annotate,completions=8"
    assert found["evaluate_ppo,completions=2"]["inputs"]["policy"] == "ppo,completions=2"
    assert found["evaluate_sft"] is STAGES["evaluate_sft"]


def test_grids_above_one_another_multiply_whatever_their_order() -> None:
    above = {"annotate": {"completions": [2, 8]}}
    stage = {"dpo": {"objective.beta": [0.1, 1.0, 2.0]}}
    found = grid({**stage, **above})
    assert found == grid({**above, **stage})
    assert sum(name.startswith("dpo") for name in found) == 6
    inner = found["evaluate_dpo,completions=8,beta=2"]["inputs"]["policy"]
    assert inner == "dpo,completions=8,beta=2"
    assert found[inner]["inputs"]["annotations"] == "annotate,completions=8"
    assert sum(name.startswith("ppo") for name in found) == 2


def test_grids_beside_one_another_do_not() -> None:
    found = grid({"dpo": {"objective.beta": [1, 2]}, "ppo": {"kl_coef": [1, 2, 3]}})
    assert sum(name.startswith("evaluate_dpo") for name in found) == 2
    assert sum(name.startswith("evaluate_ppo") for name in found) == 3


def test_a_stage_that_reads_two_grids_is_there_for_every_pair() -> None:
    stages = {**STAGES, "judge": {"inputs": {"samples": "evaluate_dpo", "other": "evaluate_ppo"}}}
    stated = {"dpo": {"objective.beta": [1, 2]}, "ppo": {"kl_coef": [3, 4, 5]}}
    found = with_grid(Draft(stages), stated).stages
    judges = {n: tuple(found[n]["inputs"].values()) for n in found if n.startswith("judge")}
    assert len(judges) == 6
    assert judges["judge,beta=2,kl_coef=5"] == ("evaluate_dpo,beta=2", "evaluate_ppo,kl_coef=5")


def test_a_field_is_named_with_its_stage_where_two_of_a_name_meet() -> None:
    both = {"sft": {"optimizer.learning_rate": [1]}, "dpo": {"optimizer.learning_rate": [3]}}
    found = grid(both)
    assert "sft,sft.learning_rate=1" in found
    assert "dpo,sft.learning_rate=1,dpo.learning_rate=3" in found
    # dpo and ppo do not meet, so the short names are clear
    stages = {**STAGES, "ppo": {**STAGES["ppo"], "other": {"beta": 1}}}
    apart = {"dpo": {"objective.beta": [1]}, "ppo": {"other.beta": [2]}}
    found = dict(with_grid(Draft(stages), apart).stages)
    assert {"dpo,beta=1", "ppo,beta=2"} <= set(found)


def test_two_fields_with_one_last_word_are_written_in_full() -> None:
    stages = {"a": {"inputs": {}, "x": {"rate": 1}, "y": {"rate": 2}}}
    found = with_grid(Draft(stages), {"a": {"x.rate": [1], "y.rate": [2]}}).stages
    assert list(found) == ["a,x.rate=1,y.rate=2"]


def test_mappings_in_mappings_say_the_same_as_dots() -> None:
    nested = {"dpo": {"objective": {"beta": [0.1, 1.0]}}}
    assert grid(nested) == grid({"dpo": {"objective.beta": [0.1, 1.0]}})


def test_the_copies_know_what_they_are_copies_of() -> None:
    stated = {"sft": {"optimizer.learning_rate": [1, 2]}, "dpo": {"objective.beta": [5, 6]}}
    draft = with_grid(Draft(STAGES), stated)
    assert draft.origin("evaluate_dpo,learning_rate=1,beta=5") == "evaluate_dpo"
    assert draft.copies("dpo") == [
        f"dpo,learning_rate={rate},beta={beta}" for rate in (1, 2) for beta in (5, 6)
    ]
    assert draft.origin("nothing") == "nothing"


@pytest.mark.parametrize(
    ("stated", "parts"),
    [
        ("dpo", ["grid:", "expected stages"]),
        ({"dop": {"objective.beta": [1]}}, ["grid.dop", "Did you mean 'dpo'?"]),
        ({"dpo": 3}, ["grid.dpo", "expected fields"]),
        ({"dpo": {"objective.betta": [1]}}, ["grid.dpo.objective.betta", "Did you mean 'beta'?"]),
        ({"dpo": {"objektive.beta": [1]}}, ["objektive", "Did you mean 'objective'?"]),
        ({"ppo": {"kl_coef.x": [1]}}, ["grid.ppo.kl_coef.x", "no keys"]),
        ({"dpo": {"objective.beta": 0.1}}, ["grid.dpo.objective.beta", "a list"]),
        ({"dpo": {"objective.beta": []}}, ["grid.dpo.objective.beta", "a list"]),
        ({"dpo": {"objective.beta": [0.1, 0.2, 0.1]}}, ["objective.beta", "twice"]),
        ({"dpo": {"objective.beta": [1], "objective": {"beta": [2]}}}, ["named twice"]),
    ],
)
def test_refusals_say_where(stated: Any, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        grid(stated)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_without_a_design_nothing_is_touched() -> None:
    assert expanded({"stages": STAGES, "grid": None}, no_cost) is STAGES


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.03, "0.03"),
        (1e-5, "1e-5"),
        (3e-4, "0.0003"),
        (1e12, "1e12"),
        (16, "16"),
        (True, "true"),
        (None, "null"),
        ("best/worst of", "best-worst-of"),
        ([0.9, 0.95], "0.9-0.95"),
        ({"_target_": "alignlab.objectives.pairwise.ipo", "tau": 0.1}, "ipo-tau-0.1"),
        ([], "none"),
    ],
)
def test_values_are_spelled_for_names(value: Any, text: str) -> None:
    assert spelled(value) == text


def test_values_that_would_look_the_same_are_numbered() -> None:
    assert spelled_apart([0.1, 0.10000001, 0.2]) == ["0.1-1", "0.1-2", "0.2"]


@pytest.mark.slow
def test_the_command_line_takes_it(tmp_path: Path) -> None:
    config = compose(
        [
            "pipeline=compare",
            "experiment=smoke",
            "grid={dpo:{objective.beta:[0.03,0.1,0.3]},evaluate_best_of_n:{best_of:[2,4]}}",
        ]
    )
    plan = Plan.from_configs([config], Store(tmp_path))
    names = [node.name for node in plan.nodes.values()]
    assert [n for n in names if n.startswith("dpo")] == [f"dpo,beta={b}" for b in (0.03, 0.1, 0.3)]
    assert "evaluate_best_of_n,best_of=4" in names
    plain = Plan.from_configs([{**config, "grid": None}], Store(tmp_path))
    # β = 0.1 is what dpo has anyway: the same run; two more policies, two more evaluations, and
    # best of 2 and 4 in place of best of 3
    assert len(set(plan.nodes) - set(plain.nodes)) == 2 + 2 + 2
    assert len(set(plain.nodes) - set(plan.nodes)) == 1


def test_a_value_of_the_wrong_type_is_refused_by_the_stage(tmp_path: Path) -> None:
    config = compose(["experiment=smoke", "grid={preference:{objective.beta:[0.1,many]}}"])
    with pytest.raises(ConfigError, match=r"stages\.preference,beta=many\.objective\.beta"):
        Plan.from_configs([config], Store(tmp_path))
