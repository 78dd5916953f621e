"""Every yaml composes, types and plans; every value in conf/ is a field and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alignlab.compose import compose, conf_dir
from alignlab.errors import ConfigError
from alignlab.plan import Plan
from alignlab.run import Store

CONF = conf_dir()
PIPELINES = sorted(p.stem for p in (CONF / "pipeline").glob("*.yaml"))
ADAPTERS = sorted(p.stem for p in (CONF / "adapter").glob("*.yaml"))
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
OBJECTIVES = sorted(p.stem for p in (CONF / "objective").glob("*.yaml"))


def plan(tmp_path: Path, *overrides: str) -> Plan:
    return Plan.from_configs([compose(overrides)], Store(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_every_pipeline_plans(pipeline: str, adapter: str, tmp_path: Path) -> None:
    made = plan(tmp_path, f"pipeline={pipeline}", f"adapter={adapter}", "experiment=smoke")
    assert made.nodes
    assert not any(node.cached for node in made.nodes.values())


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [a for a in ADAPTERS if a != "bitfit"])  # there are no biases
def test_every_adapter_plans_with_its_own_key(adapter: str, tmp_path: Path) -> None:
    smoke = ("pipeline=instructgpt", "experiment=smoke", "backbone=reviews_lm")
    kinds = {n.kind: n for n in plan(tmp_path, f"adapter={adapter}", *smoke).nodes.values()}
    assert all(kinds[kind].estimate.params_trained > 0 for kind in ("sft", "reward", "ppo"))
    plain = {n.run for n in plan(tmp_path, "adapter=lora", *smoke).nodes.values()}
    assert (adapter == "lora") == bool(plain & {n.run for n in kinds.values()})


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_plans(objective: str, tmp_path: Path) -> None:
    made = plan(tmp_path, "pipeline=preference", f"objective={objective}", "experiment=smoke")
    assert sum(node.kind == "preference" for node in made.nodes.values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if e != "smoke"])
def test_every_experiment_plans(experiment: str, tmp_path: Path) -> None:
    assert plan(tmp_path, f"experiment={experiment}", "backbone=tiny").nodes


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    ["dr_grpo", "dapo", "rloo", "gspo", "cispo", "reinforce_pp", "reinforce_pp_baseline"],
)
def test_the_relatives_of_grpo_plan(stage: str, tmp_path: Path) -> None:
    made = plan(
        tmp_path, "pipeline=instructgpt", f"stage@stages.policy={stage}", "experiment=smoke"
    )
    assert any(node.kind == "grpo" for node in made.nodes.values())


@pytest.mark.slow
def test_methods_share_their_stages(tmp_path: Path) -> None:
    jobs = [
        compose(["pipeline=preference", f"objective={o}", "experiment=smoke"])
        for o in ("dpo", "ipo", "orpo")
    ]
    made = Plan.from_configs(jobs, Store(tmp_path))
    kinds = [node.kind for node in made.nodes.values()]
    # one SFT run, one annotated set, one SFT evaluation; three preference runs and evaluations
    assert sorted(kinds) == ["annotate"] + ["evaluate"] * 4 + ["preference"] * 3 + ["sft"]


@pytest.mark.slow
def test_the_key_of_sft_is_the_same_in_two_pipelines(tmp_path: Path) -> None:
    keys = {
        node.key
        for pipeline in ("instructgpt", "preference", "compare")
        for node in plan(tmp_path, f"pipeline={pipeline}", "experiment=smoke").nodes.values()
        if node.kind == "sft"
    }
    assert len(keys) == 1


@pytest.mark.slow
def test_where_a_stage_runs_is_outside_its_key(tmp_path: Path) -> None:
    one = plan(tmp_path, "experiment=smoke").nodes
    two = plan(tmp_path, "experiment=smoke", "engine.token_budget=64", "tracking=disabled").nodes
    assert set(one) == set(two)


@pytest.mark.slow
def test_what_a_stage_does_is_in_its_key(tmp_path: Path) -> None:
    one = plan(tmp_path, "experiment=smoke").nodes
    other = plan(tmp_path, "experiment=smoke", "stages.sft.optimizer.learning_rate=0.1").nodes
    assert not set(one) & set(other)  # everything descends from SFT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.preference.batsh=4", "batch"),
        ("+stages.preference.batsh=4", "batch"),
        ("stages.preference.batch=many", "stages.preference.batch"),
        ("stages.preference.batch=0", "stages.preference.batch"),
        ("stages.preference.inputs.init=stf", "sft"),
        ("+objective.betta=0.3", "beta"),
        ("objective.beta=-1", "beta"),
        ("objective._target_=os.system", "alignlab"),
        ("objective=dppo", "dpo"),
        ("stages.preference.optimizer.schedule=cosin", "cosine"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, "experiment=smoke", override)


@pytest.mark.parametrize(
    ("override", "near"),
    [("experiment=smok", "smoke"), ("search=defalt", "default"), ("pipeline=compar", "compare")],
)
def test_a_misspelt_choice_is_refused(override: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{near}'"):
        compose([override])


def test_every_value_has_a_comment_in_stage_yamls() -> None:
    for path in (CONF / "stage").glob("*.yaml"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# "), path
        assert yaml.safe_load(path.read_text()), path
