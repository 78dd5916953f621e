"""Laws that every preference objective obeys: the tests walk conf/objective, new files included."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.objectives.declaration import declaration
from alignlab.tensors import PairLogps, SingleLogps

CONF = Path(__file__).parents[2] / "conf" / "objective"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))

# Value at policy = reference, where both answers have 4 tokens and −4 nats. A method that is not in
# the table is held to every other law.
AT_REFERENCE = {
    "dpo": math.log(2),
    "cdpo": math.log(2),
    "rdpo": math.log(2),
    "dpo_norm": math.log(2),
    "ipo": 25.0,  # (1/(2·0.1))²
    "ipo_sum": 25.0,
    "hinge": 1.0,
    "kto": 0.5,
    "orpo": 1 + 0.1 * math.log(2),
    "simpo": math.log1p(math.exp(1)),  # −log σ(−2·0.5)
    "slic": 1 + 0.1 * 4,
}


@functools.cache
def objective(name: str):
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    module, _, function = values.pop("_target_").rpartition(".")
    return functools.partial(getattr(importlib.import_module(module), function), **values)


@dataclasses.dataclass(frozen=True)
class Data:
    """B examples in the view that an objective wants, built from four columns of log-probs."""

    policy: PairLogps | SingleLogps
    reference: PairLogps | SingleLogps

    def loss(self, name: str, z: float = 0.25) -> torch.Tensor:
        f, needs = objective(name), declaration(objective(name))
        arguments = [self.policy]
        arguments += [self.reference] if needs.needs_reference else []
        point = {"kl_point": torch.tensor(z)} if needs.needs_kl_point else {}
        return f(*arguments, **point)

    def map(self, f) -> Data:
        return Data(
            *(type(x)(**{k: f(v) for k, v in vars(x).items()}) for x in vars(self).values())
        )


def data(name: str, rows: list[tuple], dtype=torch.float64) -> Data:
    """Rows of (log-prob policy a, b, reference a, b, length a, b); b is unused for single ones."""
    columns = list(zip(*rows, strict=True))
    logps = [torch.tensor(c, dtype=dtype) for c in columns[:4]]
    lengths = [torch.tensor(c) for c in columns[4:]]
    if declaration(objective(name)).view == "pair":
        return Data(PairLogps(*logps[:2], *lengths), PairLogps(*logps[2:], *lengths))
    thumbs = lengths[1] % 2 == 0
    return Data(
        SingleLogps(logps[0], lengths[0], thumbs), SingleLogps(logps[2], lengths[0], thumbs)
    )


def logp(low: float, high: float):
    return st.floats(low, high, allow_nan=False)


def rows(low: float, high: float, at_least: int = 1):
    length = st.integers(1, 40)
    row = st.tuples(*[logp(low, high)] * 4, length, length)
    return st.lists(row, min_size=at_least, max_size=6)


def gradients(batch: Data, name: str, **options) -> list[torch.Tensor]:
    leaves = {
        k: v.clone().requires_grad_() if v.is_floating_point() else v
        for k, v in vars(batch.policy).items()
    }
    loss = Data(type(batch.policy)(**leaves), batch.reference).loss(name, **options)
    wanted = [v for v in leaves.values() if v.is_floating_point()]
    return list(torch.autograd.grad(loss.sum(), wanted))


def test_there_is_a_yaml_per_method():
    assert set(AT_REFERENCE) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(rows=rows(-1e5, 0.0))
def test_loss_and_gradient_are_finite_at_extreme_log_probs(name, rows):
    batch = data(name, rows, torch.float32)
    assert batch.loss(name).shape == (len(rows),)
    assert torch.isfinite(batch.loss(name)).all()
    assert all(torch.isfinite(g).all() for g in gradients(batch, name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chosen", [0.0, -1e-9, -1e-6, -1e5])
@pytest.mark.parametrize("rejected", [0.0, -1e-9, -1e-6, -1e5])
def test_certainty_and_impossibility_are_finite(name, chosen, rejected):
    batch = data(name, [(chosen, rejected, rejected, chosen, 1, 2)], torch.float32)
    assert torch.isfinite(batch.loss(name)).all()
    assert all(torch.isfinite(g).all() for g in gradients(batch, name))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(rows=rows(-300.0, -0.01, at_least=2), seed=st.integers(0, 99))
def test_permuting_the_examples_permutes_the_losses(name, rows, seed):
    batch = data(name, rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(batch.map(lambda x: x[order]).loss(name), batch.loss(name)[order])


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(rows=rows(-300.0, -0.01, at_least=2))
def test_the_parts_of_a_batch_are_the_batch(name, rows):
    batch, cut = data(name, rows), len(rows) // 2
    parts = [batch.map(lambda x: x[:cut]), batch.map(lambda x: x[cut:])]
    assert torch.equal(torch.cat([part.loss(name) for part in parts]), batch.loss(name))
    halves = [torch.cat(g) for g in zip(*(gradients(p, name) for p in parts), strict=True)]
    for half, whole in zip(halves, gradients(batch, name), strict=True):
        assert torch.equal(half, whole)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(rows=rows(-300.0, -0.01))
def test_float32_agrees_with_float64(name, rows):
    exact = data(name, rows, torch.float32).map(  # the same rounded inputs for both
        lambda x: x.double() if x.is_floating_point() else x
    )
    rounded = exact.map(lambda x: x.float() if x.is_floating_point() else x)
    scale = max(1.0, *(abs(v) for row in rows for v in row[:4]))
    # 1e-5 relative, and a few roundings of log-probs of this size times the loss's slope
    slope = max(1.0, *(float(g.abs().max()) for g in gradients(exact, name)))
    torch.testing.assert_close(
        rounded.loss(name).double(), exact.loss(name), rtol=1e-5, atol=1e-6 * scale * slope
    )


@pytest.mark.parametrize("name", [n for n in NAMES if n in AT_REFERENCE])
def test_value_at_the_reference(name):
    same = data(name, [(-4.0, -4.0, -4.0, -4.0, 4, 4), (-4.0, -4.0, -4.0, -4.0, 4, 4)])
    torch.testing.assert_close(
        same.loss(name, z=0.0), torch.full((2,), AT_REFERENCE[name], dtype=torch.float64)
    )


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(mean=logp(-5.0, -0.05), lengths=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_at_the_reference_a_step_prefers_the_chosen(name, mean, lengths):
    a, b = (mean * n for n in lengths)
    if declaration(objective(name)).view == "pair":
        if not declaration(objective(name)).needs_reference:
            lengths, b = (lengths[0], lengths[0]), a  # equal answers: no margin is met yet
        chosen, rejected = gradients(data(name, [(a, b, a, b, *lengths)]), name)
        assert chosen.item() < 0 < rejected.item()
    else:
        up, down = gradients(data(name, [(a, 0, a, 0, 3, 2), (b, 0, b, 0, 3, 1)]), name, z=0.0)[0]
        assert up.item() < 0 < down.item()


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_the_yaml_is_used(name):
    """Changing any number changes the loss of some example: no dead hyperparameter."""
    rows = [(-9.0, -7.0, -8.0, -9.5, 3, 5), (-2.0, -9.0, -4.0, -3.0, 4, 2)]
    before, f = data(name, rows).loss(name), objective(name)
    for key, value in f.keywords.items():
        if isinstance(value, str):
            continue
        other = functools.partial(f.func, **{**f.keywords, key: 0.7 * value + 0.04})
        needs, batch = declaration(other), data(name, rows)
        arguments = [batch.policy, batch.reference] if needs.needs_reference else [batch.policy]
        point = {"kl_point": torch.tensor(0.25)} if needs.needs_kl_point else {}
        assert not torch.allclose(other(*arguments, **point), before), key


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_line_of_the_yaml_is_explained(path):
    head, *lines = path.read_text().splitlines()
    assert head.startswith("# ")
    assert lines[0].startswith("_target_: alignlab.objectives.")
    assert all("# " in line for line in lines[1:]), "a value without a comment"
