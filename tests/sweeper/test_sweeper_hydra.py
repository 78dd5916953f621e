"""Hydra's sweep syntax: what `alignlab run -m` runs is what Hydra's own basic sweeper would."""

from __future__ import annotations

import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from alignlab.compose import compose_all, conf_dir, expand, sweep
from alignlab.errors import ConfigError


def hydras(overrides: list[str]) -> list[list[str]]:
    """Jobs of Hydra's basic sweeper."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        return BasicSweeper.split_arguments(parser.parse_overrides(overrides), None)[0]


SWEEPS = [
    ["seed=1,2", "objective=dpo,ipo"],
    ["seed=choice(3,1)"],
    ["seed=range(3)"],
    ["seed=range(1,10,3)"],
    ["seed=range(5,1,-2)"],
    ["stages.preference.optimizer.learning_rate=range(0,1,0.25)"],
    ["stages.preference.optimizer.learning_rate=float(range(1,4))"],
    ["seed=int(1.5,2.5)"],
    ["study=str(1,2)"],
    ["seed=sort(3,1,2)"],
    ["seed=sort(3,1,2,reverse=true)"],
    ["seed=sort(range(1,5),reverse=true)"],
    ["study=choice(a,'b c')"],
    ["study='a,b','c'"],
    ["study=\"a,b\",'it\\'s'"],
    ["+stages.x=[1,2],[3,4]"],
    ["+stages.x={a:1},{a:2,b:[x,y]}"],
    ["++stages.x=1,2", "seed=4"],
    ["study=null,x", "report=true,false"],
    ["backbone=glob(*)"],
    ["backbone=glob([t*,s*],exclude=sm*)"],
    ["objective=glob(*po)", "seed=1,2"],
    ["~search", "seed=1,2"],
    ["stage@stages.preference=preference,sft"],
    ["reward@gold=glob(v*)"],
    ["data.path='a b.jsonl','c,d.jsonl'"],
    ["study=a\\,b,c"],
    ["study=${oc.env:HOME},x"],
    ["seed=1,2", "seed=3,4"],  # the later one counts, as in Hydra
    ["seed=1,2", "objective=ipo", "seed=7"],
    ["seed=tag(some,choice(1,2))"],
    ["study=", "report=false"],
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", SWEEPS, ids=" ".join)
def test_jobs_are_those_of_hydra(overrides: list[str]) -> None:
    ours, theirs = expand(overrides, multirun=True), hydras(overrides)
    # Hydra writes ~key with the value null; both remove whatever is there.
    assert ours == [[line.replace("~search=null", "~search") for line in job] for job in theirs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("seed=shuffle(1,2,3,4,5,6,7,8)", range(1, 9)),
        ("seed=shuffle(range(1,9))", range(1, 9)),
        ("seed=shuffle(choice(1,2,3,4,5,6,7,8))", range(1, 9)),
    ],
)
def test_shuffled_jobs_are_the_same_jobs(override: str, values: range) -> None:
    orders = {tuple(job[0] for job in expand([override], multirun=True)) for _ in range(8)}
    assert {frozenset(order) for order in orders} == {frozenset(f"seed={v}" for v in values)}
    assert len(orders) > 1  # 8 alike of 8! orders: 1 in 10^32


def test_a_shuffled_list_is_one_list_for_all_jobs() -> None:
    jobs = expand(["+stages.x=shuffle([1,2,3,4,5,6,7,8])", "seed=range(5)"], multirun=True)
    assert len({job[0] for job in jobs}) == 1  # parsed again for each job there would be five
    assert sorted(jobs[0][0]) == sorted("+stages.x=[1,2,3,4,5,6,7,8]")


@pytest.mark.slow
def test_what_is_swept_arrives_in_the_configuration() -> None:
    swept = ["objective=dpo,ipo", "stages.preference.batch=range(4,9,4)", "~search", "+grid.x=[1]"]
    configs = compose_all(expand(["experiment=smoke", *swept], multirun=True))
    found = [(c["objective"]["_target_"][-3:], c["stages"]["preference"]["batch"]) for c in configs]
    assert found == [("dpo", 4), ("dpo", 8), ("ipo", 4), ("ipo", 8)]
    assert all(c["search"] is None and c["grid"] == {"x": [1]} for c in configs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("seed=interval(0,1)", ["interval has no list", "hydra/sweeper=optuna"]),
        ("seed=range(1,5,0)", ["must not be zero"]),
        ("seed=range(5,1)", ["matches nothing"]),
        ("seed=range(1,3),5", ["seed=range(1,3),5"]),
        ("backbone=glob(q*)", ["matches nothing"]),
        ("seed=choice(", ["cannot read the override 'seed=choice('"]),
        ("seed=sort(a,1)", ["cannot read", "sort"]),
        ("seed=1,", ["cannot read the override"]),
        ("hydra/launcher=submitit_slurm", ["hydra/launcher", "launch=slurm"]),
        ("hydra.launcher.timeout_min=5", ["hydra.launcher.timeout_min", "launch=slurm"]),
        ("hydra.sweep.dir=x", ["hydra.sweep.dir", "store=FOLDER"]),
        ("hydra.run.dir=x", ["hydra.run.dir", "store=FOLDER"]),
        ("hydra.mode=MULTIRUN", ["hydra.mode", "-m"]),
        ("hydra.verbose=true", ["hydra.verbose: nothing here reads"]),
        ("hydra/sweeper=optna", ["hydra/sweeper=optna", "Did you mean 'optuna'?"]),
        ("hydra/sweeper=optuna,basic", ["cannot be over its own sweeper"]),
        ("hydra.sweeper.max_batch_sizes=3", ["unknown key", "Did you mean 'max_batch_size'?"]),
        ("hydra.sweeper.max_batch_size=3", ["planned together", "launch.jobs"]),
        ("+hydra.sweeper.params.seed='1,2'", ["hydra.sweeper.params"]),
    ],
)
def test_what_cannot_be_swept_is_refused(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        expand([override], multirun=True)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("override", ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3"])
def test_a_sweeper_without_m_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="needs -m"):
        expand([override], multirun=False)


def test_hydras_own_settings_are_refused_without_m_as_well() -> None:
    with pytest.raises(ConfigError, match="store=FOLDER"):
        compose_all([["hydra.run.dir=x"]])


@pytest.mark.slow
def test_a_command_that_lists_its_jobs_refuses_a_sweeper_that_chooses() -> None:
    with pytest.raises(ConfigError, match="has to know all jobs"):
        expand(["hydra/sweeper=optuna", "seed=1,2"], multirun=True)


def test_an_experiment_may_state_the_sweeper_and_its_space(toys) -> None:
    found = sweep(["experiment=tuned", "hydra.sweeper.n_trials=7", "seed=1,2"])
    assert found.sweeper is not None
    assert (found.sweeper["objective"], found.sweeper["n_trials"]) == ("bowl/loss", 7)
    assert "params" not in found.sweeper
    assert [o.get_key_element() for o in found.overrides] == ["stages.bowl.x", "experiment", "seed"]
