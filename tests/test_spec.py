"""Specs are located, bound and checked when the plan is made."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from alignlab import spec, typed
from alignlab.errors import ConfigError
from alignlab.spec import Spec

TOY = """
from __future__ import annotations
import subprocess
from subprocess import run as borrowed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal
from alignlab.spec import Spec
from alignlab.typed import Range
if TYPE_CHECKING:
    from nowhere import Tensor

def dpo(policy: Tensor, reference: Tensor, *, beta: Annotated[float, Range(min=0)],
        kind: Literal["sigmoid", "hinge"] = "sigmoid", label_smoothing: float = 0.0):
    return policy, reference, beta, kind, label_smoothing

def _hidden(): ...

@dataclass(frozen=True, kw_only=True)
class File:
    path: str
    limit: int | None = None
    def __post_init__(self):
        if self.limit == 0:
            raise ValueError("limit must not be 0")

@dataclass(frozen=True)
class Learned:
    run: Tensor
    scale: float = 1.0

@dataclass(frozen=True, kw_only=True)
class Sum:
    parts: tuple[Spec, ...]
    best: Spec | None = None

class Plain:
    def __init__(self, model: Tensor, *, size: int) -> None:
        self.model, self.size = model, size
"""


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    module = ModuleType("alignlab.toy")
    monkeypatch.setitem(sys.modules, "alignlab.toy", module)
    exec(compile(TOY, "toy.py", "exec"), module.__dict__)


def refused(node, path="objective") -> str:
    with pytest.raises(ConfigError) as caught:
        spec.parse(node, path)
    return str(caught.value)


def toy(name, **arguments):
    return {"_target_": f"alignlab.toy.{name}", **arguments}


def test_function_binds_hyperparameters_and_leaves_tensors():
    parsed = spec.parse(toy("dpo", beta="1e-1"), "objective")
    # Defaults are part of the spec, so that a changed default changes the key.
    assert parsed.arguments == {"beta": 0.1, "kind": "sigmoid", "label_smoothing": 0.0}
    assert spec.function(parsed)("p", "r") == ("p", "r", 0.1, "sigmoid", 0.0)
    assert list(spec.late(parsed)) == ["policy", "reference"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (toy("dpo", bta=0.5, beta=1), "objective.bta: unknown argument of dpo. Did you mean 'bet"),
        (toy("dpo"), "objective.beta: missing, expected a number >= 0."),
        (toy("dpo", beta="???"), "objective.beta: missing"),
        (toy("dpo", beta=-1), "objective.beta: expected a number >= 0, got -1 (int)."),
        (toy("dpo", beta=1, kind="hing"), "objective.kind: expected one of 'sigmoid', 'hinge'"),
        (toy("dpo", beta=1, policy=1), "objective.policy: is given by the stage"),
        (toy("dop"), "objective._target_: alignlab.toy has no class or function 'dop'. Did you"),
        (toy("_hidden"), "objective._target_: 'alignlab.toy._hidden' is refused, '_hidden' is pri"),
        (toy("borrowed"), "objective._target_: alignlab.toy has no class or function 'borrowed'"),
        (toy("subprocess"), "objective._target_: alignlab.toy has no class or function"),
        (toy("subprocess.run"), "objective._target_: there is no module 'alignlab.toy.subprocess'"),
        ({"_target_": "os.system"}, "objective._target_: 'os.system' is not a class or function"),
        ({"_target_": "alignlabx.toy.dpo"}, "objective._target_: 'alignlabx.toy.dpo' is not"),
        ({"_target_": "alignlab.specs.x"}, "objective._target_: there is no module"),
        ({"_target_": 3}, "objective._target_: expected a dotted name, got 3 (int)."),
        ({"beta": 3}, "objective: expected a mapping with '_target_', got {'beta': 3} (dict)."),
        (toy("File"), "objective.path: missing, expected text."),
        (toy("File", path=3), "objective.path: expected text, got 3 (int)."),
        (toy("File", path="x", limit=0), "objective: limit must not be 0"),
        (toy("File", path="x", limt=1), "objective.limt: unknown key of File. Did you mean 'limi"),
        (toy("Learned", run="x"), "objective.run: is given by the stage"),
        (toy("Plain"), "objective.size: missing, expected a whole number."),
        (toy("Sum", parts=[toy("dpo")]), "objective.parts[0].beta: missing"),
        (toy("Sum", parts=[], best=toy("File", path=1)), "objective.best.path: expected text"),
    ],
)
def test_refusals_name_the_key(node, message):
    assert refused(node).startswith(message)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    (tmp_path / "needy.py").write_text("import surely_not_installed\n")
    monkeypatch.setattr(sys.modules["alignlab"], "__path__", [str(tmp_path)])
    message = refused({"_target_": "alignlab.needy.thing"})
    assert "needs the package 'surely_not_installed', which is not installed" in message


def test_wrong_module_is_suggested():
    assert "Did you mean 'typed'?" in refused({"_target_": "alignlab.typd.build"})


def test_dataclass_is_built_with_late_fields():
    file = spec.build(spec.parse(toy("File", path="a"), "data"))
    assert (file.path, file.limit) == ("a", None)
    learned = spec.parse(toy("Learned", scale=2), "reward")
    assert spec.build(learned, run="late").scale == 2.0
    assert spec.build(spec.parse(toy("Plain", size=2), "x"), "model").model == "model"


def test_class_and_function_are_not_confused():
    with pytest.raises(ConfigError, match="is a function"):
        spec.build(spec.parse(toy("dpo", beta=1), "x"))
    with pytest.raises(ConfigError, match="is a class"):
        spec.function(spec.parse(toy("File", path="a"), "x"))


@dataclass(frozen=True, kw_only=True)
class Holder:
    objective: Spec
    others: tuple[Spec, ...] = ()
    reward: Spec | None = None


def test_typed_reads_specs_and_collects_their_problems():
    node = {"objective": toy("dpo", beta=1), "others": [toy("File", path="a")]}
    holder = typed.build(Holder, node, "stages.policy")
    assert holder.objective.target == "alignlab.toy.dpo"
    assert typed.build(Holder, typed.to_mapping(holder)) == holder
    bad = {"objective": toy("dpo", beta="x", c=1), "reward": toy("dpo"), "x": 1}
    with pytest.raises(ConfigError) as caught:
        typed.build(Holder, bad, "stages.policy")
    for part in ("objective.beta: exp", "objective.c: unk", "reward.beta: miss", "policy.x: unk"):
        assert part in str(caught.value)


def test_spec_is_frozen_hashable_and_travels():
    parsed = spec.parse(toy("dpo", beta=1), "x")
    assert hash(parsed) == hash(spec.parse(toy("dpo", beta=1.0), "x"))
    assert parsed == spec.parse(toy("dpo", beta=1.0), "x")
    assert pickle.loads(pickle.dumps(parsed)) == parsed
    arguments = {"beta": 1}
    made = Spec("alignlab.toy.dpo", arguments)
    arguments["beta"] = 2
    assert made.arguments == {"beta": 1}


def test_leaves_import_nothing_heavy():
    import subprocess

    code = (
        "import sys, alignlab.typed, alignlab.spec, alignlab.run\n"
        "bad = {'torch', 'numpy', 'transformers', 'wandb', 'hydra'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
