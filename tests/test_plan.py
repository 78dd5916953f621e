"""Graph, keys and merging of plans, over stages that are declared here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alignlab import plan as planning
from alignlab import spec
from alignlab.commands.text import plan_table
from alignlab.costs import Rates, Seen
from alignlab.errors import ConfigError, DataError
from alignlab.keys import stage_key
from alignlab.plan import Plan
from alignlab.run import Store
from alignlab.stages.stage import Estimate, Role, Stage

READ: list[str] = []  # what fingerprints were computed of


@dataclass(frozen=True, kw_only=True)
class Make(Stage):
    kind: ClassVar[str] = "make"
    version: ClassVar[int] = 1
    data: str
    size: int = 3

    def fingerprint(self) -> str:
        READ.append(self.data)
        if self.data == "bad":
            raise DataError("row 3 is broken.")
        return f"content of {self.data}"

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        return Estimate(
            params_total=100, params_trained=10, tokens=self.size, flops=6e3, memory_bytes=4096
        )

    def run(self, inputs: Any, run: Any, engine: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Use(Stage):
    kind: ClassVar[str] = "use"
    roles: ClassVar[Mapping[str, Role]] = {
        "first": Role(("make",)),
        "then": Role(("use", "make"), optional=True),
    }
    beta: float = 0.1

    def run(self, inputs: Any, run: Any, engine: Any) -> None: ...


class NewMake(Make):
    version: ClassVar[int] = 2


CLASSES = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in (Make, Use, NewMake)}


@pytest.fixture(autouse=True)
def located(monkeypatch: pytest.MonkeyPatch) -> None:
    READ.clear()
    monkeypatch.setattr(
        planning, "locate", lambda target, path: CLASSES.get(target) or spec.locate(target, path)
    )


def node(cls: type[Stage], inputs: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    target = f"{cls.__module__}.{cls.__qualname__}"
    return {"_target_": target, "seed": 0, "inputs": inputs or {}, **fields}


def job(**stages: Any) -> dict[str, Any]:
    return {"seed": 0, "stages": stages}


def plan_of(tmp_path: Path, *jobs: dict[str, Any]) -> Plan:
    return Plan.from_configs(list(jobs), Store(tmp_path))


def keys(plan: Plan) -> dict[str, str]:
    return {n.name: n.key for n in plan.nodes.values()}


def pair(make: dict[str, Any], **use: Any) -> dict[str, Any]:
    return job(use=node(Use, {"first": "make"}, **use), make=make)


def test_parents_come_first_whatever_the_order_in_the_file(tmp_path: Path) -> None:
    stages = {
        "c": node(Use, {"first": "a", "then": "b"}),
        "b": node(Use, {"first": "a"}),
        "a": node(Make, data="x"),
    }
    plan = plan_of(tmp_path, job(**stages))
    assert [n.name for n in plan.nodes.values()] == ["a", "b", "c"]
    a, b, c = plan.nodes.values()
    assert c.parents == {"first": a.run, "then": b.run}
    assert c.inputs == {"first": "a", "then": "b"}
    assert list(plan.jobs[0].stages) == ["c", "b", "a"]


def test_a_key_depends_on_every_field_and_on_every_input(tmp_path: Path) -> None:
    base = keys(plan_of(tmp_path, pair(node(Make, data="x"))))
    for changed in (
        node(Make, data="y"),
        node(Make, data="x", size=4),
        node(Make, data="x") | {"seed": 1},
        node(NewMake, data="x"),
    ):
        other = keys(plan_of(tmp_path, pair(changed)))
        assert other["make"] != base["make"]
        assert other["use"] != base["use"]
    beta = keys(plan_of(tmp_path, pair(node(Make, data="x"), beta=0.2)))
    assert (beta["make"], beta["use"] != base["use"]) == (base["make"], True)


def test_a_key_depends_on_the_data_and_on_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(make=node(Make, data="x"))
    before = keys(plan_of(tmp_path, config))
    monkeypatch.setattr(Make, "version", 2)
    version = keys(plan_of(tmp_path, config))
    monkeypatch.setattr(Make, "version", 1)
    assert keys(plan_of(tmp_path, config)) == before
    monkeypatch.setattr(Make, "fingerprint", lambda self: "other content")
    data = keys(plan_of(tmp_path, config))
    assert len({before["make"], version["make"], data["make"]}) == 3


def test_a_key_does_not_depend_on_names_labels_defaults_or_the_way_of_writing(
    tmp_path: Path,
) -> None:
    one = plan_of(tmp_path, pair(node(Make, data="x")))
    written = job(
        other=node(Make, data="x", size=3, label="a name"),
        use=node(Use, {"first": "other"}, beta=0.1),
    )
    two = plan_of(tmp_path, written)
    assert set(one.nodes) == set(two.nodes)


def test_the_key_is_this_one(tmp_path: Path) -> None:
    # sha256 of {"data":"content of x","fields":{"data":"x","seed":0,"size":3},"inputs":{},
    # "stage":"test_plan.Make","version":1}: were it to change, every store would turn stale.
    stage = Make(seed=0, inputs={}, data="x")
    content = (
        '{"data":"content of x","fields":{"data":"x","seed":0,"size":3},"inputs":{},'
        f'"stage":"{Make.__module__}.Make","version":1}}'
    )
    expected = hashlib.sha256(content.encode()).hexdigest()[:12]
    assert stage_key(stage, "content of x", {}) == expected
    assert keys(plan_of(tmp_path, job(a=node(Make, data="x"))))["a"] == expected


@dataclass(frozen=True)
class Inner:
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset({"later"})

    size: int = 3
    later: int | None = None
    always: int | None = None


@dataclass(frozen=True, kw_only=True)
class Nested(Make):
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset({"other"})

    inner: Inner = Inner()
    several: tuple[Inner, ...] = (Inner(),)
    other: Inner | None = None


def test_what_came_later_is_out_of_the_key_while_it_is_null_at_any_depth() -> None:
    stage = Nested(seed=0, inputs={}, data="x")
    inner = '{"always":null,"size":3}'
    content = (
        '{"data":"content of x","fields":{"data":"x","inner":' + inner + ',"seed":0,"several":['
        f'{inner}],"size":3}},"inputs":{{}},"stage":"{Nested.__module__}.Nested","version":1}}'
    )
    assert stage_key(stage, "content of x", {}) == hashlib.sha256(content.encode()).hexdigest()[:12]
    changes = (
        {"inner": Inner(later=1)},
        {"inner": Inner(always=1)},
        {"several": (Inner(later=1),)},
        {"other": Inner()},
    )
    found = {stage_key(replace(stage, **change), "content of x", {}) for change in changes}
    assert len(found | {stage_key(stage, "content of x", {})}) == 5


def test_equal_stages_of_many_jobs_are_one_node(tmp_path: Path) -> None:
    jobs = [pair(node(Make, data="x") | {"seed": s}, beta=b) for s in (0, 1) for b in (1, 2, 3)]
    plan = plan_of(tmp_path, *jobs)
    kinds = [n.kind for n in plan.nodes.values()]
    assert (kinds.count("make"), kinds.count("use")) == (2, 6)
    assert len({j.stages["make"] for j in plan.jobs}) == 2
    assert READ == ["x"]  # the data are read once for all seeds


def test_a_hundred_jobs_are_planned_at_once(tmp_path: Path) -> None:
    import time

    jobs = [pair(node(Make, data="x"), beta=float(i)) for i in range(100)]
    began = time.perf_counter()
    plan = plan_of(tmp_path, *jobs)
    assert len(plan.nodes) == 101
    assert time.perf_counter() - began < 2.0


def test_cached_means_that_the_run_is_done(tmp_path: Path) -> None:
    config = pair(node(Make, data="x"))
    make = next(iter(plan_of(tmp_path, config).nodes.values()))
    run = Store(tmp_path).run("make", make.key)
    run.update_record(kind="make")
    assert not any(n.cached for n in plan_of(tmp_path, config).nodes.values())
    run.finish()
    assert [n.cached for n in plan_of(tmp_path, config).nodes.values()] == [True, False]
    assert [n.name for n in plan_of(tmp_path, config).pending()] == ["use"]


@pytest.mark.parametrize(
    ("stages", "parts"),
    [
        ({}, ["stages", "pipeline"]),
        ({"a": {"seed": 0}}, ["stages.a", "_target_"]),
        ({"a": {"_target_": "alignlab.plan.Plan"}}, ["stages.a._target_", "not a stage"]),
        ({"a": {"_target_": "os.system"}}, ["stages.a._target_", "os.system"]),
        ({"a": node(Make, data="x", sise=1)}, ["stages.a.sise", "Did you mean 'size'?"]),
        ({"a": node(Make)}, ["stages.a.data", "missing"]),
        ({"a": node(Make, data="x", size="3")}, ["stages.a.size", "'3'"]),
        ({"a": node(Make, data="bad")}, ["stages.a: row 3 is broken"]),
        ({"a": node(Use)}, ["stages.a", "first", "missing"]),
        ({"a": node(Use, {"frist": "a"})}, ["stages.a", "frist", "Did you mean 'first'?"]),
        (
            {"make": node(Make, data="x"), "a": node(Use, {"first": "maek"})},
            ["stages.a.inputs.first", "Did you mean 'make'?"],
        ),
        (
            {
                "m": node(Make, data="x"),
                "u": node(Use, {"first": "m"}),
                "a": node(Use, {"first": "u"}),
            },
            ["stages.a.inputs.first", "'u' is of kind use", "takes make"],
        ),
        (
            {
                "m": node(Make, data="x"),
                "a": node(Use, {"first": "m", "then": "b"}),
                "b": node(Use, {"first": "m", "then": "a"}),
            },
            ["circle", "a → b → a"],
        ),
    ],
)
def test_refusals_name_the_key(tmp_path: Path, stages: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        plan_of(tmp_path, job(**stages))
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert caught.value.exit_code == 2


def test_json_is_the_contract(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, pair(node(Make, data="x")), pair(node(Make, data="x"), beta=1.0))
    found = json.loads(json.dumps(plan.to_json()))
    assert set(found) == {"stages", "jobs"}
    assert found["jobs"] == 2
    assert [s["name"] for s in found["stages"]] == ["make", "use", "use"]
    make, use, _ = found["stages"]
    assert make == {
        "name": "make",
        "kind": "make",
        "key": make["key"],
        "inputs": {},
        "cached": False,
        "upstream": None,
        "params_total": 100,
        "params_trained": 10,
        "tokens": 3,
        "flops": 6000.0,
        "memory_bytes": 4096,
        "seconds": make["seconds"],
    }
    assert use["inputs"] == {"first": "make"}


def test_the_table_shows_what_is_to_do(tmp_path: Path) -> None:
    config = pair(node(Make, data="x"))
    text = plan_table(plan_of(tmp_path, config))
    assert "2 stages of 1 job, 2 to do: 6k FLOPs" in text
    assert text.splitlines()[1].split()[:3] == ["make", *text.splitlines()[1].split()[1:2], "to"]
    for n in plan_of(tmp_path, config).nodes.values():
        Store(tmp_path).run(n.kind, n.key).finish()
    assert "nothing to do" in plan_table(plan_of(tmp_path, config))


def test_seconds_come_from_runs_of_the_same_kind_and_size() -> None:
    seen = [
        Seen("sft", params=1_000, flops=1e6, seconds=2.0),  # 2e-6 s per FLOP
        Seen("sft", params=1_000_000, flops=1e9, seconds=10.0),  # 1e-8
        Seen("ppo", params=1_000, flops=1e6, seconds=7.0),
        Seen("merge", params=0, flops=0.0, seconds=3.0),
        Seen("merge", params=0, flops=0.0, seconds=5.0),
    ]
    rates = Rates(seen, machine=1e9)
    assert rates.seconds("sft", Estimate(params_total=2_000, flops=3e6)) == pytest.approx(6.0)
    assert rates.seconds("sft", Estimate(params_total=900_000, flops=1e9)) == pytest.approx(10.0)
    # no run of that kind: the machine's rate
    assert rates.seconds("grpo", Estimate(params_total=2_000, flops=2e9)) == pytest.approx(2.0)
    # without FLOPs: the median of its kind, (3 + 5) / 2
    assert rates.seconds("merge", Estimate()) == pytest.approx(4.0)
    assert rates.seconds("other", Estimate()) == 0.0


def test_runs_on_a_gpu_tell_how_fast_that_gpu_is() -> None:
    seen = [
        Seen("sft", 1_000, 1e6, 2.0),  # on the CPU
        Seen("sft", 1_000, 1e6, 0.5, "NVIDIA H100 80GB HBM3", 2),  # 1e-6 s per FLOP and GPU
        Seen("ppo", 1_000, 1e6, 9.0, "NVIDIA H100 80GB HBM3"),
    ]
    rates, wanted = Rates(seen), Estimate(params_total=2_000, flops=4e6)
    assert rates.on("H100", "sft", wanted, 1) == pytest.approx(4.0)
    assert rates.on("H100", "sft", wanted, 4) == pytest.approx(1.0)
    for other in (("A100", "sft"), ("H100", "grpo"), ("", "sft")):
        assert rates.on(*other, wanted, 1) is None
    assert rates.on("H100", "sft", Estimate(params_total=10**9, flops=1e6), 1) is None
