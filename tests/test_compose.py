"""Composition and sweeps over a small configuration folder written here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignlab import compose as door
from alignlab.compose import compose, compose_all, expand
from alignlab.errors import ConfigError
from alignlab.reading import Reading

FILES = {
    "config.yaml": """
defaults:
  - backbone: tiny
  - data: reviews
  - pipeline: preference
  - _self_
seed: 0
study: null
store: null
""",
    "backbone/tiny.yaml": "path: random:tiny\nrank: 8\n",
    "backbone/small.yaml": "path: small\nrank: 2\n",
    "data/reviews.yaml": "_target_: reviews\nrows: 3\n",
    "data/file.yaml": "_target_: file\npath: ???\n",
    "stage/sft.yaml": "seed: ${seed}\nbackbone: ${backbone}\ninputs: {}\nlr: 1.0e-3\n",
    "pipeline/preference.yaml": """# @package _global_
defaults:
  - /stage@stages.sft: sft
  - /stage@stages.policy: sft
stages:
  policy:
    inputs: {init: sft}
""",
}


@pytest.fixture(autouse=True)
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(door, "conf_dir", lambda: tmp_path)
    return tmp_path


def test_composition_is_plain_and_resolved() -> None:
    config = compose(["seed=3", "backbone=small", "stages.policy.lr=0.5"])
    assert type(config) is dict
    assert type(config["stages"]["sft"]["backbone"]) is dict
    assert config["stages"]["sft"] == {
        "seed": 3,
        "backbone": {"path": "small", "rank": 2},
        "inputs": {},
        "lr": 0.001,
    }
    assert config["stages"]["policy"]["lr"] == 0.5
    assert config["stages"]["policy"]["inputs"] == {"init": "sft"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["backbone=tny"], ["backbone=tny", "Did you mean 'tiny'?", "small, tiny"]),
        (["bakbone=tiny"], ["bakbone: unknown key", "Did you mean 'backbone'?"]),
        (["backbone.rnk=3"], ["backbone.rnk: unknown key", "Did you mean 'rank'?"]),
        (["stages.plicy.lr=1"], ["stages.plicy: unknown key", "Did you mean 'policy'?"]),
        (["stages.policy.lrr=3"], ["stages.policy.lrr", "Did you mean 'lr'?"]),
        (["seed.x=1"], ["seed.x", "'seed' is the value 0"]),
        (["stage@stages.sft=xx"], ["no stage named 'xx'", "sft"]),
        (["seed"], ["'seed'", "missing EQUAL", "key=value"]),
        (["seed=[1"], ["'seed=[1'"]),
        (["~foo"], ["foo: unknown key"]),
        (["seed=${nope}"], ["stages.sft.seed", "'nope'"]),
        (["~backbone"], ["stages.sft.backbone"]),
        (["=1"], []),
        (["+seedd=1"], ["seedd: unknown key", "Did you mean 'seed'?"]),
        (["++stores=x"], ["stores: unknown key", "Did you mean 'store'?"]),
        (["stages.sft.backbone.rank=3"], ["is a copy: set backbone.rank."]),
        (["seed=1", "sed=2", "backbone.rnk=3"], ["backbone.rnk", "sed"]),
    ],
)
def test_mistakes_are_refused_by_name(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    message = str(caught.value)
    if len(overrides) == 3:  # two mistakes: either may be named first, with its path
        assert any(f"{part}: unknown key" in message for part in parts)
    else:
        assert all(part in message for part in parts), message
    assert "Traceback" not in message


def test_added_key_below_the_top_is_kept_for_the_typed_stage_to_judge() -> None:
    assert compose(["+stages.sft.lrr=3"])["stages"]["sft"]["lrr"] == 3


def test_data_path_alone_means_the_file_group() -> None:
    assert compose(["data.path=x.jsonl"])["data"] == {"_target_": "file", "path": "x.jsonl"}
    assert compose(["data=file", "data.path=y"])["data"]["path"] == "y"
    with pytest.raises(ConfigError, match=r"data\.path"):  # the user's choice of a group stands
        compose(["data=reviews", "data.path=x.jsonl"])


def test_sweep_is_the_ordered_product() -> None:
    assert expand(["seed=0,1", "study=s", "backbone=tiny,small"], multirun=True) == [
        ["seed=0", "study=s", "backbone=tiny"],
        ["seed=0", "study=s", "backbone=small"],
        ["seed=1", "study=s", "backbone=tiny"],
        ["seed=1", "study=s", "backbone=small"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("seed=range(3)", ["seed=0", "seed=1", "seed=2"]),
        ("seed=choice(4,2)", ["seed=4", "seed=2"]),
        ("backbone=glob(*)", ["backbone=small", "backbone=tiny"]),
        ("backbone=glob(*,exclude=t*)", ["backbone=small"]),
        ("+stages.sft.x=1,2", ["+stages.sft.x=1", "+stages.sft.x=2"]),
        ("study='a,b'", ["study='a,b'"]),
        ("stages.sft.lr=[1,2]", ["stages.sft.lr=[1,2]"]),
    ],
)
def test_sweep_syntax(override: str, values: list[str]) -> None:
    assert expand([override], multirun=True) == [[value] for value in values]
    compose_all(expand([override], multirun=True))


@pytest.mark.parametrize(
    ("override", "multirun", "part"),
    [
        ("seed=1,2", False, "needs -m"),
        ("seed=interval(0,1)", True, "interval"),
        ("backbone=glob(q*)", True, "matches nothing"),
        ("seed=[1", True, "cannot read"),
    ],
)
def test_sweep_refusals(override: str, multirun: bool, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        expand([override], multirun=multirun)


@pytest.mark.slow
def test_jobs_of_a_sweep_compose_as_they_do_alone() -> None:
    jobs = [
        ["seed=1", "backbone=small"],
        ["backbone=small", "seed=2", "stages.sft.lr=0.5", "stages.sft.lr=0.25"],
        ["backbone=small", "backbone.path=other", "stages.policy.inputs={init: policy}"],
        ["backbone.rank=${seed}", "seed=7"],
        ["+stages.sft.x=1", "stages.sft.x=2"],
        ["data.path=x", "seed=null"],
        ["stage@stages.sft=sft", "~stages.policy"],
    ]
    assert compose_all(jobs) == [compose(job) for job in jobs]
    for bad in (["sed=1"], ["backbone.rnk=1"], ["backbone=tny"], ["seed.x=1"], ["+sed=1"]):
        with pytest.raises(ConfigError) as alone:
            compose(bad)
        with pytest.raises(ConfigError) as together:
            compose_all([["seed=1"], bad])
        assert str(together.value) == str(alone.value)


BY_MARK = [
    ["seed=1"],
    ["seed=null"],
    ["backbone.rank=5", "seed=7"],
    ["seed=2", "seed=3"],
    ["stages.sft.lr=1e-4", "study='one two'"],
]
COMPOSED = [
    ["stages.policy.inputs={init: policy}"],  # a mapping is merged
    ["stages.sft.lr=[0.5,0.6]"],
    ["study='${seed}'"],  # becomes an interpolation itself
    ["stages.sft.backbone=null"],  # a mapping gives way
]


@pytest.mark.slow
def test_values_are_put_in_place_without_composing_again(monkeypatch) -> None:
    jobs = [*BY_MARK, *COMPOSED]
    alone = [compose(job) for job in jobs]
    again = []
    one = door._compose_one
    monkeypatch.setattr(door, "_compose_one", lambda job: again.append(list(job)) or one(job))
    assert compose_all(jobs) == alone
    assert again == COMPOSED
    assert {config["stages"]["sft"]["seed"] for config in alone} == {0, 1, 3, 7, None}
    assert alone[2]["stages"]["policy"]["backbone"]["rank"] == 5


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("a: 1\nb: ${a}", True),
        ("a: 1\nb: {c: [0, '${a}']}", True),
        ("a: 1\nb: x${a}", False),  # part of a text
        ("a: '1'\nb: {'1': 5, '2': 6}\nc: ${b[${a}]}", False),  # chooses what to copy
        ("a: 1\nb: ${oc.select:a,2}", False),
        ("a: {d: 1}\nb: ${a}", False),  # the value is no scalar
    ],
)
def test_only_plain_copies_are_followed(text: str, exact: bool) -> None:
    from omegaconf import OmegaConf

    found = Reading(OmegaConf.create(text)).with_values([("a", 2)])
    if not exact:
        assert found is None
        return
    config = OmegaConf.create(text)
    config.a = 2
    assert found == OmegaConf.to_container(config, resolve=True)


@pytest.mark.long
def test_ten_thousand_runs_are_planned_in_half_a_minute(tmp_path: Path) -> None:
    # In a process of its own, with the real conf/.
    code = """
from alignlab.cli import main
from alignlab.launch.execute import peak_memory
sweep = ["objective=dpo,ipo,hinge,cdpo,slic", "seed=range(500)"]
sweep += ["stages.preference.steps=10,20,30,40", "pipeline=preference"]
assert main(["plan", "-m", *sweep]) == 0
print(peak_memory())
"""
    began = sum(os.times()[2:4])  # processor time, not the clock of a busy machine
    environment = {**os.environ, "ALIGNLAB_RUNS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert sum(os.times()[2:4]) - began < 30
    peak = done.stdout.split()[-1]
    assert "of 10000 jobs" in done.stdout
    assert int(peak) < 10**9  # bytes


def test_hydra_is_left_as_it_was_found() -> None:
    from hydra.core.global_hydra import GlobalHydra

    compose([])
    assert not GlobalHydra.instance().is_initialized()


def test_importing_the_module_imports_no_hydra() -> None:
    code = "import sys, alignlab.compose; print('hydra' in sys.modules, 'omegaconf' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
