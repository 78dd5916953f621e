"""Every small mistake in an objective, and on the way to its log-probs, is noticed by a test.

The score counts what `ast_mutants` makes of a module and the tests named in `targets` notice; the
mutants in `equivalent` differ from the code in nothing that can be seen.
"""

from __future__ import annotations

import importlib
import textwrap
import types

import pytest
from ast_mutants import mutants
from equivalent import EQUIVALENT
from hunt import Check, hunt
from targets import TARGETS, Target, checks

LONG = {"models.logps", "models.grouped_attention", "models.attention_plan", "rollout.choose"}


def row(target: Target) -> object:
    subject = ", ".join([target.path, *target.functions])
    marks = [pytest.mark.conformance("mutation", subject, "every mutant is noticed")]
    if target.module in LONG:
        marks.append(pytest.mark.long)
    return pytest.param(target, marks=marks, id=target.module)


@pytest.mark.long
@pytest.mark.parametrize("target", [row(target) for target in TARGETS])
def test_every_mutant_is_noticed(target: Target, record_property):
    reasons = {
        tuple(named.split(": ", 1)): reason
        for reason, listed in EQUIVALENT.get(target.module, {}).items()
        for named in listed
    }
    live = importlib.import_module(f"alignlab.{target.module}")
    score = hunt(live, checks(target.tests), reasons, only=target.functions)
    record_property("measured", str(score))
    assert not score.survivors, "no test notices:\n" + "\n".join(score.survivors)
    assert not score.dead_equivalents, "not equivalent:\n" + "\n".join(score.dead_equivalents)
    assert len(score.equivalent) == len(reasons), (
        "mutants that do not exist (any more):\n"
        + "\n".join(set(map(": ".join, reasons)) - set(score.equivalent))
    )
    assert score.dead


def test_what_is_called_equivalent_belongs_to_a_target():
    assert set(EQUIVALENT) <= {target.module for target in TARGETS}


# -------------------------------------------------------------------- the machinery on toy modules


@pytest.fixture
def toy(tmp_path, monkeypatch):
    def make(source: str) -> types.ModuleType:
        (tmp_path / "toy_for_mutants.py").write_text(textwrap.dedent(source), encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(importlib.sys.modules, "toy_for_mutants", raising=False)
        return importlib.import_module("toy_for_mutants")

    return make


def test_the_mutants_of_one_line(toy):
    module = toy("def f(x, *, beta: float):\n    return -beta * x[1:] if x else 0.5\n")
    assert [m.what for m in mutants(module)] == [
        "-beta * x[1:] if x else 0.5 → -beta * x[1:]",
        "-beta * x[1:] if x else 0.5 → 0.5",
        "-beta * x[1:] → -beta / x[1:]",
        "-beta * x[1:] → -beta",
        "-beta * x[1:] → x[1:]",
        "-beta → beta",
        "beta → 1",
        "[1:] → [:]",
        "[1:] → [1:-1]",
        "1 → 2",
        "1 → 0",
        "0.5 → 1.0",
    ]


def test_a_mutant_is_planted_and_gone_again(toy):
    module = toy("def f(a, b=2):\n    return a - b\n")
    found = {}
    for mutant in mutants(module):
        with mutant.planted():
            found[mutant.what] = module.f(5)
        assert module.f(5) == 3
    assert found == {
        "a - b → a + b": 7,
        "a - b → a": 5,
        "a - b → b": 2,
        "default b=2 → 3": 2,
        "default b=2 → 1": 4,
    }


def test_the_score_tells_survivors_from_the_dead(toy, monkeypatch):
    monkeypatch.setattr("hunt.SECONDS", (0.05, 0.05))
    module = toy(
        """
        def countdown(n):
            while n > 0:
                n -= 1
            return n
        """
    )

    def check():
        assert module.countdown(3) == 0

    equivalent = {("countdown", "n > 0 → n <= 0"): "no", ("countdown", "1 → 0"): "no"}
    score = hunt(module, [Check("three", check)], equivalent)
    assert [s.split(": ", 1)[1] for s in score.survivors] == []
    dead = [named.split("\n")[0] for named in score.dead_equivalents]
    assert set(dead) == {"countdown: n > 0 → n <= 0", "countdown: 1 → 0"}
    assert any("stopped by the clock" in named for named in score.dead_equivalents)
    assert "countdown: drop n -= 1" in score.endless
    assert "countdown: n > 0 → n >= 0" in score.dead
    blind = hunt(module, [Check("blind", lambda: module.countdown(0))], {})
    assert "line 3, countdown: never n > 0" in blind.survivors


def test_one_slow_moment_kills_no_mutant(toy, monkeypatch):
    """A check that is slow once, as on a busy machine, is asked again; one that always is, dies."""
    monkeypatch.setattr("hunt.SECONDS", (0.05, 0.05))
    module = toy("def f():\n    return 1\n")
    asked = []

    def check():
        asked.append(module.f())
        slow = asked.count(2) == 1 or asked[-1] == 0
        while slow:
            pass

    score = hunt(module, [Check("slow once", check)], {("f", "1 → 2"): "no", ("f", "1 → 0"): "no"})
    assert score.equivalent == ["f: 1 → 2"]
    assert score.dead_equivalents == ["f: 1 → 0\n    RunsForEver: stopped by the clock, twice"]
