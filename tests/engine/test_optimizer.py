"""Schedules, groups, clipping and the average, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from toy_training import optimizer

from alignlab import typed
from alignlab.engine.optimizer import Ema, Optimizer, clip
from alignlab.errors import ConfigError


def parameter(*values: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values))


def test_linear_schedule_by_hand():
    o = optimizer(schedule="linear", warmup=0.2, floor=0.1)
    # 10 steps, w = 2: 1/2, 2/2, then p = (step - 3) / 8 and 1 - 0.9 p
    expected = [0.5, 1.0, *(1 - 0.9 * k / 8 for k in range(8))]
    assert [o.scale(s, 10) for s in range(1, 11)] == pytest.approx(expected, rel=1e-12)


def test_cosine_schedule_by_hand():
    o = optimizer(schedule="cosine", warmup=4, floor=0.2)
    # 12 steps, w = 4: 1/4 .. 4/4; step 9: p = 4/8, 0.2 + 0.8 * (1 + cos 90°) / 2 = 0.6
    assert [o.scale(s, 12) for s in (1, 2, 3, 4, 5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert o.scale(9, 12) == pytest.approx(0.6, rel=1e-12)
    # step 11: p = 6/8, cos 135° = -0.70711: 0.2 + 0.4 * 0.29289
    assert o.scale(11, 12) == pytest.approx(0.2 + 0.4 * (1 - math.sqrt(0.5)), rel=1e-12)


def test_constant_schedule_and_warmup_edges():
    o = optimizer(schedule="constant", warmup=0.0, floor=0.0)
    assert {o.scale(s, 5) for s in range(1, 6)} == {1.0}
    longer = optimizer(schedule="linear", warmup=100, floor=0.0)  # longer than the training
    assert longer.scale(5, 5) == 0.05
    assert optimizer(warmup=1, floor=0.0).scale(1, 1) == 1.0  # one step, not a share of 1
    assert optimizer(warmup=0.25).scale(1, 5) == 0.5  # ceil(1.25) = 2 steps
    with pytest.raises(ValueError, match=r"not in 1\.\.5"):
        o.scale(0, 5)


def test_groups_decay_only_matrices_and_follow_the_rates():
    matrix, bias, head = torch.nn.Parameter(torch.ones(2, 2)), parameter(1.0), parameter(2.0, 3.0)
    o = optimizer(learning_rate=0.1, weight_decay=0.5, rates={"value": 3.0})
    groups = o.groups({"policy": {"w": matrix, "b": bias}, "value": {"h": head, "w": matrix}})
    found = [(len(g["params"]), g["weight_decay"], g["peak"]) for g in groups]
    # the shared matrix belongs to the policy alone
    assert found == [(1, 0.5, 0.1), (1, 0.0, 0.1), (1, 0.0, pytest.approx(0.3))]
    assert groups[0]["params"][0] is matrix


def test_first_adamw_step_by_hand():
    # Adam's first step is lr * g / (|g| + eps) = lr * sign(g); decay first takes lr * wd * w.
    matrix = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    bias = parameter(1.0)
    o = optimizer(learning_rate=0.1, weight_decay=0.5, warmup=2, schedule="constant", eps=1e-12)
    adamw = o.build({"policy": {"w": matrix, "b": bias}})
    matrix.grad, bias.grad = torch.tensor([[4.0, -0.5]]), torch.tensor([-3.0])
    assert o.set_rate(adamw, 1, 10) == 0.05
    adamw.step()
    # w: 1 - 0.05*0.5*1 - 0.05 = 0.925; -2 + 0.05*0.5*2 + 0.05 = -1.9; b: 1 + 0.05
    torch.testing.assert_close(matrix.data, torch.tensor([[0.925, -1.9]]), rtol=1e-6, atol=0)
    torch.testing.assert_close(bias.data, torch.tensor([1.05]), rtol=1e-6, atol=0)


def test_rates_of_unknown_views_and_empty_views_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'value'"):
        optimizer(rates={"valeu": 2.0}).groups({"policy": {}, "value": {"h": parameter(1.0)}})
    with pytest.raises(ConfigError, match="Nothing to train"):
        optimizer().groups({"policy": {}})


def test_clip_by_hand():
    a, b, unused = parameter(0.0), parameter(0.0, 0.0), parameter(0.0)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([0.0, 4.0])
    assert float(clip([a, b, unused], None)) == 5.0  # sqrt(9 + 16), nothing changed
    assert a.grad.item() == 3.0
    assert float(clip([a, b, unused], 1.0)) == 5.0
    torch.testing.assert_close(a.grad, torch.tensor([0.6]), rtol=1e-5, atol=0)
    torch.testing.assert_close(b.grad, torch.tensor([0.0, 0.8]), rtol=1e-5, atol=0)
    assert float(clip([a, b], 2.0)) == pytest.approx(1.0, rel=1e-5)  # already short: untouched
    assert float(clip([unused], 1.0)) == 0.0


def test_ema_by_hand():
    weight = parameter(1.0)
    ema = Ema([weight], decay=0.75)
    weight.data.fill_(5.0)
    ema.update()  # 0.75 * 1 + 0.25 * 5 = 2
    assert ema.average[0].item() == 2.0
    weight.data.fill_(10.0)
    ema.update()  # 0.75 * 2 + 0.25 * 10 = 4
    with ema.swapped():
        assert weight.item() == 4.0
    assert weight.item() == 10.0
    ema.swap_in()
    assert weight.item() == 4.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 0.0),
        ("betas", [0.9, 1.0]),
        ("weight_decay", -0.1),
        ("warmup", 2.5),
        ("floor", 1.5),
        ("max_grad_norm", 0.0),
        ("ema", 1.0),
        ("schedule", "linaer"),
        ("rates", {"value": 0.0}),
    ],
)
def test_bad_values_are_refused_by_name(key, value):
    good = typed.to_mapping(optimizer())
    assert typed.build(Optimizer, good, "o") == optimizer()
    with pytest.raises(ConfigError, match=rf"^o.*{key}"):
        typed.build(Optimizer, {**good, key: value}, "o")
