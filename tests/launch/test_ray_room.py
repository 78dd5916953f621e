"""What Ray is asked for, and what is refused before it is asked: no Ray is needed here."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import yaml

from alignlab.compose import conf_dir
from alignlab.errors import ConfigError
from alignlab.launch.launcher import launch_of
from alignlab.launch.ray.cluster import connected, demand, require, require_room, size_of
from alignlab.launch.ray.crew import variables_of
from alignlab.launch.resources import Resources

STATED: dict[str, Any] = yaml.safe_load((conf_dir() / "launch/ray.yaml").read_text())
SMALL = {"CPU": 2.0, "memory": 4.0 * 2**30}
LARGE = {"CPU": 16.0, "GPU": 8.0, "memory": 256.0 * 2**30}


def test_what_a_stage_asks_of_one_machine() -> None:
    assert demand(Resources()) == {"CPU": 1.0}
    # three processes with two CPUs each
    assert demand(Resources(processes=3, cpus=2)) == {"CPU": 6.0}
    # one process for each GPU
    found = demand(Resources(gpus=4, cpus=8, memory="64G", nodes=2))
    assert found == {"CPU": 32.0, "GPU": 4.0, "memory": 64.0 * 2**30}


@pytest.mark.parametrize(
    ("text", "size"), [("64G", 64 * 2**30), ("500M", 500 * 2**20), ("3", 3 * 2**20)]
)
def test_sizes_are_read_as_slurm_reads_them(text: str, size: int) -> None:
    assert size_of(text) == size


def test_there_is_room() -> None:
    require_room({"a": Resources(gpus=8, cpus=2), "b": Resources(nodes=2)}, [SMALL, LARGE])


@pytest.mark.parametrize(
    ("resources", "parts"),
    [
        (Resources(cpus=32), ["32 CPU on 1 machine,", "0 of 2", "16 CPU"]),
        (Resources(gpus=1, nodes=2), ["1 GPU on 2 machines", "1 of 2"]),
        (Resources(memory="512G"), ["512G memory", "256G memory", "launch.elastic=true"]),
        # each is somewhere, but not together
        (Resources(cpus=1, nodes=3), ["on 3 machines", "2 of 2"]),
    ],
)
def test_what_would_wait_for_ever_is_refused(resources: Resources, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        require_room({"sft": Resources(), "ppo": resources}, [SMALL, LARGE])
    assert all(part in str(caught.value) for part in ["'ppo'", *parts]), str(caught.value)


def test_processes_meet_by_torchruns_names() -> None:
    asked = Resources(nodes=2, processes=2, cpus=3)
    found = [v for node in (0, 1) for v in variables_of(asked, node, ("10.0.0.1", 99))]
    assert [(v["RANK"], v["LOCAL_RANK"]) for v in found] == [
        ("0", "0"),
        ("1", "1"),
        ("2", "0"),
        ("3", "1"),
    ]
    for own in found:
        assert (own["WORLD_SIZE"], own["LOCAL_WORLD_SIZE"]) == ("4", "2")
        assert (own["MASTER_ADDR"], own["MASTER_PORT"]) == ("10.0.0.1", "99")
        assert own["OMP_NUM_THREADS"] == "3"
    [alone] = variables_of(Resources(cpus=2), 0, ("10.0.0.1", 99))
    assert "WORLD_SIZE" not in alone
    assert alone["OMP_NUM_THREADS"] == "2"


def test_the_file_of_the_group_is_read_and_written_back() -> None:
    launch = launch_of({**STATED, "reward": {"gpus": 2, "cpus": 4}})
    assert launch.kind == "ray"
    assert launch.resources("reward", "reward") == Resources(gpus=2, cpus=4)
    assert launch.resources("sft", "sft") == Resources()
    assert launch_of(launch.to_node()) == launch
    with pytest.raises(ConfigError, match="Did you mean 'address'"):
        launch_of({**STATED, "adress": "auto"})


def test_without_the_package_the_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"alignlab\[ray\]"):
        require()


@pytest.mark.parametrize(
    ("address", "part"),
    [("127.0.0.1:1", "cannot reach Ray at '127.0.0.1:1'"), ("somewhere", "expected auto, HOST")],
)
def test_a_cluster_that_is_not_there_is_refused(
    address: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignlab.launch.ray.cluster.require", lambda: None)
    with pytest.raises(ConfigError, match=part), connected(address):
        raise AssertionError("connected to nothing")


@pytest.mark.parametrize("field", ["time", "partition", "qos"])
def test_what_only_slurm_knows_is_refused(field: str, lab, monkeypatch) -> None:
    import toys

    monkeypatch.setattr("alignlab.launch.ray.launcher.require", lambda: None)
    value = "12:00:00" if field == "time" else "big"
    launch = launch_of({**STATED, "default": {field: value}})
    with pytest.raises(ConfigError, match=f"{field}='{value}', which is Slurm's"):
        launch.check(lab.plan({"a": toys.toy(1)}))
