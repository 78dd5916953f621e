"""Resources by kind and name of a stage, and the launch of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toys
import yaml
from lab import Lab
from slurm_lab import CONF, slurm
from toys import toy

from alignlab import typed
from alignlab.compose import compose
from alignlab.errors import ConfigError
from alignlab.launch.launcher import Launch, launch_of
from alignlab.launch.resources import STAGE_KINDS, Resources
from alignlab.stages.stage import Stage


def test_a_name_goes_before_a_kind_and_a_kind_before_the_default() -> None:
    found = slurm(
        default={"gpus": 1, "time": "1:00:00"},
        ppo={"gpus": 4, "memory": "64G"},
        policy={"time": "2-00:00:00"},
    )
    assert found.resources("sft", "sft") == Resources(gpus=1, time="1:00:00")
    assert found.resources("x", "ppo") == Resources(gpus=4, memory="64G", time="1:00:00")
    policy = found.resources("policy", "ppo")
    assert policy == Resources(gpus=4, memory="64G", time="2-00:00:00")


def test_an_empty_text_takes_the_default_away() -> None:
    found = slurm(default={"constraint": "a100"}, evaluate={"constraint": ""})
    assert found.resources("evaluate", "evaluate").constraint is None
    assert found.resources("sft", "sft").constraint == "a100"


def test_processes_follow_the_gpus() -> None:
    assert Resources().ranks == 1
    assert Resources(gpus=4).ranks == 4
    assert Resources(gpus=4, processes=1).ranks == 1
    assert Resources(gpus=4, nodes=2).world == 8
    assert Resources(processes=3, nodes=2).world == 6


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("30", 1800),  # Slurm's own rules: minutes
        ("30:10", 1810),
        ("12:00:00", 43200),
        ("2-00", 172800),
        ("1-02:03", 93780),  # 86400 + 2·3600 + 3·60
        ("1-02:03:04", 93784),
        ("UNLIMITED", None),
    ],
)
def test_times_are_read_as_slurm_reads_them(time: str, seconds: int | None) -> None:
    assert Resources(time=time).seconds == seconds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward": {"gpu": 2}}, r"launch\.reward\.gpu: .*Did you mean 'gpus'"),
        ({"reward": {"gpus": -1}}, r"launch\.reward\.gpus"),
        ({"reward": 2}, r"launch\.reward: unknown key of launch=slurm"),
        ({"setupp": []}, r"launch\.setupp: unknown key.*Did you mean 'setup'"),
        ({"ppo": {"time": 43200}}, r"launch\.ppo\.time: .*in quotes"),
        ({"ppo": {"time": "noon"}}, r"launch\.ppo: time='noon'.*12:00:00"),
        ({"default": {"memory": "64 GB"}}, r"launch\.default: memory='64 GB'"),
        ({"sft": {"gpus": 2, "processes": 3}}, "every process needs a GPU of its own"),
        ({"sft": {"extra": ["exclusive"]}}, "no option of sbatch"),
        ({"sft": {"extra": ["--array=1-9"]}}, "--array is set by the launcher"),
        ({"sft": {"extra": ["--comment=x\nrm"]}}, "no option of sbatch"),
        ({"signal_seconds": 0}, r"launch\.signal_seconds"),
        ({"kind": "slrum"}, "Did you mean 'slurm'"),
    ],
)
def test_a_mistake_is_named_with_its_path(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        slurm(**given)


def test_resources_of_no_stage_are_refused_with_the_plan(lab: Lab) -> None:
    plan = lab.plan({"first": toy(1)})
    slurm(first={"cpus": 2}, toy={"cpus": 3}, ppo={"gpus": 1}, report={"cpus": 1}).check(plan)
    with pytest.raises(ConfigError, match=r"launch\.frist: .*Did you mean 'first'"):
        slurm(frist={"cpus": 2}).check(plan)


def test_a_limit_that_leaves_no_time_to_work_is_refused(lab: Lab) -> None:
    plan = lab.plan({"first": toy(1)})
    with pytest.raises(ConfigError, match="signal_seconds=120"):
        slurm(toy={"time": "0:04:00"}).check(plan)
    slurm(toy={"time": "0:04:01"}).check(plan)


def test_the_report_takes_a_place_in_the_queue_and_no_gpus() -> None:
    found = slurm(default={"gpus": 8, "nodes": 4, "partition": "gpu", "account": "lab"})
    assert found.of_report() == Resources(partition="gpu", account="lab")
    found = slurm(default={"partition": "gpu"}, report={"partition": "cpu", "time": "1:00:00"})
    assert found.of_report() == Resources(partition="cpu", time="1:00:00")


def test_every_kind_of_stage_has_resources_in_the_file() -> None:
    stated = yaml.safe_load(CONF.read_text())
    kinds = {
        yaml.safe_load(file.read_text())["_target_"].rpartition(".")[2].lower()
        for file in (toys.ROOT / "conf" / "stage").glob("*.yaml")
        if "_target_" in yaml.safe_load(file.read_text())
    }
    named = {kind.replace("_", "") for kind in STAGE_KINDS}
    assert kinds <= named, kinds - named
    for kind in (*STAGE_KINDS, "report"):
        assert stated[kind] == dict.fromkeys(Resources.__dataclass_fields__), kind
    assert stated["default"].keys() == Resources.__dataclass_fields__.keys()
    assert issubclass(toys.Toy, Stage)


@pytest.mark.slow
def test_the_command_line_sets_resources_and_mistakes_are_near() -> None:
    words = ["launch=slurm", "launch.reward.gpus=2", "launch.ppo.time=12:00:00",
             "+launch.policy.nodes=2", "launch.setup=[module load cuda]"]  # fmt: skip
    found = launch_of(compose(words)["launch"])
    assert found.resources("policy", "ppo") == Resources(nodes=2, time="12:00:00")
    assert found.resources("rm", "reward").gpus == 2
    with pytest.raises(ConfigError, match="Did you mean 'reward'"):
        compose(["launch=slurm", "launch.rewrd.gpus=2"])
    with pytest.raises(ConfigError, match="Did you mean 'gpus'"):
        compose(["launch=slurm", "launch.reward.gpu=2"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inprocess", "local", "slurm"])
def test_a_launch_survives_its_record(kind: str) -> None:
    found = launch_of(compose([f"launch={kind}"])["launch"])
    written = typed.to_mapping(found)
    assert launch_of(written) == found
    assert typed.convert(Launch, written, "launch") == found
    assert "reward" not in written  # nothing that only repeats the default


def test_a_process_of_one_s_own_gives_no_resources() -> None:
    with pytest.raises(ConfigError, match="gives no resources"):
        launch_of({"kind": "inprocess", "jobs": 1, "reward": {"gpus": 1}})


def test_every_field_of_the_file_has_a_comment() -> None:
    lines = Path(CONF).read_text().splitlines()
    fields = [ln for ln in lines if ln[:1].isalpha() and not ln.endswith(("*as_default", ":"))]
    assert len(fields) > 8
    assert all("#" in line or "&as_default" in line for line in fields if line != "kind: slurm")
