"""Configuration mappings become frozen dataclasses, or one message that names every problem."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignlab import typed
from alignlab.annotations import hints
from alignlab.errors import ConfigError
from alignlab.typed import Range

Positive = Annotated[float, Range(min=0, min_open=True)]


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: Positive
    mode: Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    inner: Inner
    betas: tuple[float, float] = (0.9, 0.999)
    names: tuple[str, ...] = ()
    warmup: Annotated[float | None, Range(min=0)] = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    dropout: Annotated[float, Range(min=0, max=1, max_open=True)] = 0.0
    flag: bool = False
    where: Path | None = None
    members: tuple[Inner, ...] = ()
    target: str | tuple[str, ...] = "all"
    cap: Annotated[int, Range(min=1)] | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.steps == 13:
            raise ValueError("13 steps are not allowed")


GOOD: dict[str, Any] = {"steps": 3, "inner": {"rate": 0.1, "mode": "cosine"}}


def problem(change: Mapping[str, Any], path: str = "stages.policy") -> str:
    with pytest.raises(ConfigError) as caught:
        typed.build(Outer, {**GOOD, **change}, path)
    return str(caught.value)


def test_builds_nested_and_freezes_lists():
    built = typed.build(
        Outer,
        {
            **GOOD,
            "betas": [0, 1],
            "names": ["a", "b"],
            "inputs": {"init": "sft"},
            "where": "x/y",
            "members": [{"rate": 1, "mode": "constant"}],
            "target": ["q", "v"],
            "cap": 4,
        },
    )
    assert built.inner == Inner(rate=0.1, mode="cosine")
    assert built.betas == (0.0, 1.0)
    assert all(type(beta) is float for beta in built.betas)
    assert built.names == ("a", "b")
    assert built.where == Path("x/y")
    assert built.members[0].rate == 1.0
    assert built.target == ("q", "v")
    assert built.cap == 4


def test_text_with_exponent_is_a_number_because_of_yaml():
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load("1e-4") == "1e-4"  # what makes the exception necessary
    assert typed.build(Inner, {"rate": "1e-4", "mode": "cosine"}).rate == 1e-4
    assert typed.build(Outer, {**GOOD, "warmup": "5E2"}).warmup == 500.0
    assert "expected a number" in problem({"inner": {"rate": "0.1", "mode": "cosine"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": True}, "stages.policy.steps: expected a whole number, got True (bool)."),
        ({"steps": 3.0}, "stages.policy.steps: expected a whole number, got 3.0 (float)."),
        ({"steps": None}, "stages.policy.steps: expected a whole number, got null."),
        ({"flag": 1}, "stages.policy.flag: expected true or false, got 1 (int)."),
        ({"dropout": True}, "stages.policy.dropout: expected a number, got True (bool)."),
        ({"dropout": math.nan}, "stages.policy.dropout: expected a number, got nan (float)."),
        (
            {"dropout": 1},
            "stages.policy.dropout: expected a number >= 0 and < 1, got 1 (int).",
        ),
        ({"names": ["a", 1]}, "stages.policy.names[1]: expected text, got 1 (int)."),
        ({"names": "ab"}, "stages.policy.names: expected a list, each text, got 'ab' (str)."),
        (
            {"betas": [0.9]},
            "stages.policy.betas: expected a list of 2: a number, a number, got [0.9] (list).",
        ),
        (
            {"inner": {"rate": 1, "mode": "cosin"}},
            "stages.policy.inner.mode: expected one of 'constant', 'cosine', got 'cosin' (str)."
            " Did you mean 'cosine'?",
        ),
        (
            {"inner": {"rate": 0, "mode": "cosine"}},
            "stages.policy.inner.rate: expected a number > 0, got 0 (int).",
        ),
        ({"inner": 3}, "stages.policy.inner: expected a mapping, got 3 (int)."),
        ({"stepz": 3}, "stages.policy.stepz: unknown key of Outer. Did you mean 'steps'?"),
        ({"steps": "???"}, "stages.policy.steps: missing, expected a whole number."),
        ({"inputs": {"init": 3}}, "stages.policy.inputs.init: expected text, got 3 (int)."),
        ({"warmup": "soon"}, "stages.policy.warmup: expected a number or null, got 'soon' (str)."),
        ({"members": [{"rate": 1}]}, "stages.policy.members[0].mode: missing"),
        (
            {"cap": "autp"},
            "stages.policy.cap: expected a whole number >= 1 or one of 'auto', got 'autp' (str)."
            " Did you mean 'auto'?",
        ),
        ({"steps": 13}, "stages.policy: 13 steps are not allowed"),
        ({"_target_": "alignlab.Else"}, "stages.policy._target_: expected 'test_typed.Outer'"),
    ],
)
def test_each_problem_names_path_value_type_and_expectation(change, message):
    assert problem(change).startswith(message)


def test_all_problems_are_told_at_once():
    text = problem({"steps": "x", "inner": {"rate": -1}, "stepz": 1})
    assert text.splitlines()[0] == "4 problems in the configuration:"
    for part in ("policy.steps:", "inner.rate:", "inner.mode: missing", "policy.stepz: unknown"):
        assert part in text


def test_own_target_is_accepted():
    name = f"{Outer.__module__}.Outer"
    assert typed.build(Outer, {**GOOD, "_target_": name}) == typed.build(Outer, GOOD)


def test_unsupported_annotation_is_a_mistake_of_the_programmer():
    @dataclass
    class Odd:
        value: complex

    with pytest.raises(TypeError, match="cannot hold the type"):
        typed.build(Odd, {"value": 1})


def test_names_for_type_checkers_do_not_hide_the_others():
    @dataclass
    class Half:
        tensor: NotImported  # noqa: F821
        number: int

    assert hints(Half)["number"] is int
    assert not typed.expressible(hints(Half)["tensor"])


def test_union_prefers_the_member_that_takes_the_value_as_it_is():
    assert typed.convert(float | int, 3, "x") == 3
    assert type(typed.convert(float | int, 3, "x")) is int
    assert typed.convert(float | str, "1e-4", "x") == "1e-4"


inners = st.builds(
    Inner,
    rate=st.floats(min_value=0, exclude_min=True, allow_infinity=True),
    mode=st.sampled_from(["constant", "cosine"]),
)
outers = st.builds(
    Outer,
    steps=st.integers(0, 12),
    inner=inners,
    names=st.lists(st.text()).map(tuple),
    warmup=st.none() | st.floats(0, 1e6),
    inputs=st.dictionaries(st.text(min_size=1), st.text()),
    flag=st.booleans(),
    where=st.none() | st.just(Path("a/b")),
    members=st.lists(inners, max_size=2).map(tuple),
    target=st.just("all") | st.just(("q", "v")),
    cap=st.just("auto") | st.integers(1, 9),
)


@pytest.mark.slow
@given(outers)
def test_to_mapping_is_the_inverse_of_build(outer):
    import json

    text = json.dumps(typed.to_mapping(outer), allow_nan=False)
    assert typed.build(Outer, json.loads(text)) == outer


def test_to_mapping_refuses_what_is_not_configuration():
    with pytest.raises(TypeError, match="object"):
        typed.to_mapping({"x": object()})
    with pytest.raises(TypeError, match="text keys"):
        typed.to_mapping({1: 2})
    assert typed.to_mapping({"b": {"z", "a"}, "x": math.inf}) == {"b": ["a", "z"], "x": "inf"}


@dataclass(frozen=True)
class Plain:
    width: int


@dataclass(frozen=True)
class Wide:
    width: int
    method: Literal["wide"] = "wide"


@dataclass(frozen=True)
class Deep:
    depth: int
    method: Literal["deep"] = "deep"


@dataclass(frozen=True)
class Chosen:
    kind: Plain | Wide | Deep


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"width": 2}, Plain(2)),
        ({"width": 2, "method": "wide"}, Wide(2)),
        ({"method": "deep", "depth": 3}, Deep(3)),
    ],
)
def test_one_of_several_dataclasses_is_told_by_its_method(
    stated: dict[str, Any], expected: Any
) -> None:
    built = typed.build(Chosen, {"kind": stated})
    assert built.kind == expected
    assert typed.build(Chosen, typed.to_mapping(built)) == built
    assert ("method" in typed.to_mapping(built)["kind"]) == ("method" in stated)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"method": "wied", "width": 2}, "kind.method: expected one of deep, wide.*'wide'"),
        ({"method": "deep", "width": 2}, "kind.width: unknown key of Deep"),
        ({"depth": 2}, "kind.depth: unknown key of Plain"),
        ({"method": None, "width": 2}, "kind.method: unknown key of Plain"),
    ],
)
def test_a_wrong_one_of_several_names_what_is_wrong(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        typed.build(Chosen, {"kind": stated})
