"""From swept overrides to Optuna's distributions, and the settings of the sweeper."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import yaml

from alignlab.commands.sweeper.settings import Objective, Settings, settings_of
from alignlab.commands.sweeper.space import space_of
from alignlab.compose import conf_dir, sweep
from alignlab.errors import ConfigError

pytest.importorskip("optuna", reason="hydra/sweeper=optuna needs the package optuna")
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

ASKED = ["hydra/sweeper=optuna"]


def space(*overrides: str) -> Any:
    return space_of(sweep([*ASKED, *overrides]).overrides)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=1,2", CategoricalDistribution([1, 2])),
        ("seed=choice(1,0.5,true)", CategoricalDistribution([1, 0.5, True])),
        ("objective=dpo,ipo", CategoricalDistribution(["dpo", "ipo"])),
        ("objective=glob(ipo*)", CategoricalDistribution(["ipo", "ipo_sum"])),
        ("study='a,b',c", CategoricalDistribution(["'a,b'", "c"])),
        ("+stages.x=[1,2],[3]", CategoricalDistribution(["[1,2]", "[3]"])),
        ("seed=null,1", CategoricalDistribution(["null", 1])),
        # as in Hydra and Python the end is not in it: 1, 2, 3 and 0, 0.25, 0.5, 0.75
        ("seed=range(1,4)", IntDistribution(1, 3)),
        ("seed=range(1,10,3)", IntDistribution(1, 7, step=3)),
        ("seed=range(7,0,-3)", IntDistribution(1, 7, step=3)),
        ("seed=range(0,1,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("seed=shuffle(range(1,4))", IntDistribution(1, 3)),
        ("seed=tag(log,range(1,9))", IntDistribution(1, 8, log=True)),
        ("seed=interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("seed=tag(log,interval(1e-5,1))", FloatDistribution(1e-5, 1.0, log=True)),
        ("seed=int(interval(1,8))", IntDistribution(1, 8)),
        ("seed=tag(log,int(interval(1,8)))", IntDistribution(1, 8, log=True)),
    ],
)
def test_what_is_swept_becomes_a_distribution(override: str, expected: Any) -> None:
    found = space(override, "report=false")
    assert list(found.axes.values()) == [expected]
    assert found.fixed == ("report=False",)  # as Hydra writes it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed=tag(lgo,interval(1,2))", "the tag 'lgo' means nothing"),
        ("seed=tag(log,interval(0,1))", "low"),
        ("seed=tag(log,choice(1,2))", "no logarithm"),
        ("seed=interval(2,1)", "interval(2,1)"),
        ("seed=range(4,1)", "matches nothing"),
        ("seed=1,1", "named twice"),
        ("seed=1", "no override is swept"),
    ],
)
def test_spaces_that_cannot_be_are_refused(override: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space(override)
    assert part in str(caught.value)


@pytest.mark.slow
def test_a_trial_is_written_as_overrides_that_hydra_reads_back() -> None:
    found = space("objective=dpo,ipo", "stages.preference.batch=range(2,9)", "study='a,b',c",
                  "stages.sft.optimizer.learning_rate=interval(0,1)", "report=false")  # fmt: skip
    params = {
        "objective": "ipo",
        "stages.preference.batch": 4,
        "study": "'a,b'",
        "stages.sft.optimizer.learning_rate": 1.5e-07,
    }
    from alignlab.compose import compose

    config = compose(found.overrides(params))
    assert config["stages"]["preference"]["batch"] == 4
    assert config["stages"]["sft"]["optimizer"]["learning_rate"] == 1.5e-07
    assert (config["study"], config["report"]) == ("a,b", False)
    assert config["objective"]["_target_"].endswith(".ipo")


def test_the_later_of_two_values_counts() -> None:
    assert space("seed=1,2", "seed=3", "report=true,false").fixed == ("seed=3",)


def settings(**given: Any) -> Settings:
    words = [f"hydra.sweeper.{key}={value}" for key, value in given.items()]
    return settings_of(sweep([*ASKED, *words, "seed=1,2"]).sweeper or {})


@pytest.mark.slow
def test_settings_and_objectives() -> None:
    one = settings(objective="evaluate/gold", direction="maximize", n_trials=3)
    assert one.objectives == [Objective("evaluate", "gold", "maximize")]
    assert (one.n_trials, one.n_jobs, one.split) == (3, 2, "validation")
    two = settings(objective="[evaluate/gold,evaluate/kl]", direction="[maximize,minimize]")
    assert [o.name for o in two.objectives] == ["evaluate/gold", "evaluate/kl"]
    assert [o.direction for o in two.objectives] == ["maximize", "minimize"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"direction": "maximize"}, "objective: missing"),
        ({"objective": "a/b"}, "direction: missing"),
        ({"objective": "gold", "direction": "maximize"}, "STAGE/METRIC"),
        ({"objective": "a/b", "direction": "maximise"}, "Did you mean 'maximize'?"),
        ({"objective": "[a/b,a/c]", "direction": "maximize"}, "1 for 2 objectives"),
        ({"objective": "[a/b,a/b]", "direction": "[maximize,minimize]"}, "named twice"),
        ({"objective": "a/b", "direction": "maximize", "n_trials": 0}, "n_trials"),
        ({"objective": "a/b", "direction": "maximize", "seeds": "[1,1]"}, "different seeds"),
        ({"objective": "a/b", "direction": "maximize", "sampler.seed": -1}, "sampler.seed"),
        ({"objective": "a/b", "direction": "maximize", "n_trails": 3}, "Did you mean 'n_trials'?"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**given)
    assert part in str(caught.value)


def test_another_sweeper_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"some\.AxSweeper is a plugin of Hydra"):
        settings_of({"_target_": "some.AxSweeper"})


def test_every_field_is_in_the_file_and_has_a_comment() -> None:
    folder = conf_dir() / "hydra/sweeper"
    stated = yaml.safe_load((folder / "optuna.yaml").read_text())
    own = {f.name for f in fields(Settings)} - {"sampler"}  # a group of its own
    assert set(stated) - {"defaults"} == own | {"params"}  # params is read with the overrides
    for file in (folder / "optuna.yaml", *sorted((folder / "sampler").glob("*.yaml"))):
        lines = file.read_text().splitlines()
        assert lines[0].startswith("# ")
        body = [line for line in lines if line[:1].isalpha() and ":" in line]
        assert all("#" in line or line.startswith(("defaults", "_target_")) for line in body), file


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(p.stem for p in (conf_dir() / "hydra/sweeper/sampler").glob("*.yaml"))
)
def test_every_sampler_is_made_and_proposes(name: str) -> None:
    import optuna

    from alignlab.spec import function

    if name == "cmaes":
        pytest.importorskip("cmaes", reason="the sampler cmaes needs the package cmaes")
    stated = ["hydra.sweeper.objective=a/b", "hydra.sweeper.direction=minimize"]
    words = [*ASKED, f"hydra/sweeper/sampler={name}", *stated, "seed=interval(0,1)"]
    found = sweep(words)
    asked = settings_of(found.sweeper or {})
    study = optuna.create_study(sampler=function(asked.sampler)(0))
    values = []
    for number in range(3):
        study.sampler = function(asked.sampler)(number)
        trial = study.ask(dict(space_of(found.overrides).axes))
        values.append(trial.params["seed"])
        study.tell(trial, values[-1])
    assert len(set(values)) == 3  # one seed for all trials would propose one point three times
