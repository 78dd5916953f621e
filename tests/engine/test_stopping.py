"""Early stopping beside what else moves weights, averages and ranks; and when it cannot work."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from test_loop import assert_same_bits, early, fail_at, go
from toy_training import ToyBackbone, ToyWork, engine, optimizer

from alignlab.engine.stopping import Patience
from alignlab.errors import ConfigError


def test_the_average_that_was_best_comes_back(tmp_path):
    """With a moving average that is what is evaluated, and what is kept and put back."""
    backbone, seen = ToyBackbone(dropout=0.2), []
    scores = [3.0, 1.0, 2.0, 2.0]

    def evaluate():
        seen.append(backbone.weights())
        return {"score": scores[len(seen) - 1]}

    rule = early(mode="min", patience=2)
    averaged = {"optimizer": optimizer(ema=0.8), "evaluate_every": 2, "early_stopping": rule}
    _, run, result = go(tmp_path / "a", backbone=backbone, evaluate=evaluate, **averaged)
    assert (result.steps, result.best_step, len(seen)) == (8, 4, 4)
    assert all(torch.equal(value, seen[1][name]) for name, value in backbone.weights().items())
    last, _, _ = go(tmp_path / "b", steps=4, optimizer=optimizer(ema=None))
    assert any(not torch.equal(v, seen[1][n]) for n, v in last.weights().items())  # no last weights
    assert "warnings" not in run.record


def test_a_best_average_survives_a_cut_in_the_middle_of_patience(tmp_path):
    def options():
        scores = iter([3.0, 1.0, 2.0, 2.5, 0.0])
        return {
            "evaluate": lambda: {"score": next(scores)},
            "evaluate_every": 2,
            "early_stopping": early(mode="min", patience=2),
            "optimizer": optimizer(ema=0.8),
            "engine": engine(checkpoint_every_seconds=0),
        }

    straight, _, result = go(tmp_path / "a", **options())
    assert (result.steps, result.best_step) == (8, 4)
    cut, work = options(), ToyWork()
    work.before_loss = fail_at(7, RuntimeError("power cut"))  # one bad evaluation behind it
    with pytest.raises(RuntimeError):
        go(tmp_path / "b", work, **cut)
    resumed, _, again = go(tmp_path / "b", **cut)
    assert (again.steps, again.best_step) == (8, 4)
    assert_same_bits(straight, resumed)


def test_a_measure_that_is_no_number_is_no_gain():
    rule = Patience(early(mode="min", patience=3), {"w": torch.zeros(1)})
    assert not rule.update(1, {"score": math.nan})
    assert rule.best is None
    assert not rule.update(2, {"score": 1.0})
    assert (rule.best_step, rule.bad) == (2, 0)
    assert not rule.update(3, {"score": math.nan})
    assert not rule.update(4, {"score": 0.95})  # min_delta 0.1: too small a gain
    assert rule.update(5, {"score": 1.0})


def test_what_cannot_stop_anything_is_said(tmp_path):
    options = {"evaluate": lambda: {"score": 1.0}, "early_stopping": early()}
    _, run, result = go(tmp_path / "a", steps=3, evaluate_every=5, **options)
    assert result.best_step is None
    assert "evaluate_every=5, and there are 3 steps" in run.record["warnings"][0]
    with pytest.raises(ConfigError, match="no held-out rows"):
        go(tmp_path / "b", evaluate_every=1, **{**options, "evaluate": dict})


def test_ranks_that_were_not_dealt_out_yet_are_said(tmp_path):
    """AdaLoRA's budget falls over the steps: earlier weights have more ranks."""
    from alignlab.models.allocation import Allocation

    config = SimpleNamespace(total_step=10, tfinal=3)
    allocators = {"policy": SimpleNamespace(peft_config=config)}
    allocation = Allocation(None, SimpleNamespace(rank=4), allocators, {})
    assert allocation.taken_early(7) is None  # dealt out for good at step 10 − 3
    assert "until step 7" in allocation.taken_early(6)

    class Dealing(ToyBackbone):
        def changing(self, names):
            own = SimpleNamespace(
                begin=lambda steps: None, before=lambda counts: None, after=lambda: None,
                state=dict, load_state=lambda state: None, taken_early=allocation.taken_early,
            )  # fmt: skip
            return own

    scores = iter([1.0, 5.0, 1.0, 1.0, 1.0])
    _, run, result = go(
        tmp_path, backbone=Dealing(), evaluate=lambda: {"score": next(scores)}, evaluate_every=2,
        early_stopping=early(patience=2),
    )  # fmt: skip
    assert result.best_step == 4
    assert "more than adapter.rank=4" in run.record["warnings"][0]
