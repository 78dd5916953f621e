"""Schedules of ULMFiT, WSD and the Transformer; rates by name and depth; layers that thaw."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from toy_training import ToyBackbone, ToyWork, engine, optimizer

from alignlab import typed
from alignlab.engine.algorithms import BITSANDBYTES, NAMES, require_whole
from alignlab.engine.groups import Layerwise
from alignlab.engine.loop import train
from alignlab.engine.optimizer import Optimizer
from alignlab.errors import ConfigError
from alignlab.run import Run


def parameter(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(*shape))


def scales(steps: int, **changes) -> list[float]:
    chosen = optimizer(**changes)
    return [chosen.scale(step, steps) for step in range(1, steps + 1)]


def test_slanted_triangle_by_hand() -> None:
    # Equation 3 with T = 10, cut_frac 0.2, ratio 4: cut = 2. t = 1: p = 1/2, (1 + 3/2) / 4 = 0.625;
    # t = 2: 1; then p = 1 - (t - 2) / 8 down to 0: the last rate is 1 / ratio.
    expected = [0.625, *((1 + 3 * (1 - k / 8)) / 4 for k in range(9))]
    found = scales(10, schedule="slanted_triangular", warmup=0.2, floor=0.25)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[-1] == 0.25
    # The paper's own form, wherever T cut_frac is whole
    total, fraction, ratio = 50, 0.1, 32
    cut = int(total * fraction)
    for t, mine in enumerate(
        scales(50, schedule="slanted_triangular", warmup=0.1, floor=1 / 32), 1
    ):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / fraction - 1))
        assert mine == pytest.approx((1 + p * (ratio - 1)) / ratio, rel=1e-12)


def test_no_triangle_goes_below_its_floor() -> None:
    # T cut_frac = 1.5: with cut = 1 the paper's denominator would be 9, and p end at 1 - 14/9 < 0.
    assert min(scales(15, schedule="slanted_triangular", warmup=0.1, floor=0.05)) == 0.05
    assert scales(1, schedule="slanted_triangular", warmup=0.1, floor=0.05) == [1.0]


def test_warmup_stable_decay_by_hand() -> None:
    # 10 steps, 2 of warm-up, 4 of decay: 1/2, 1, four times 1, then q = 0, 1/4, 1/2, 3/4.
    found = scales(10, schedule="wsd", warmup=2, decay=0.4, floor=0.2)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4], rel=1e-12)
    rooted = scales(10, schedule="wsd_sqrt", warmup=2, decay=4, floor=0.2)
    ends = [1 - 0.8 * math.sqrt(q) for q in (0, 0.25, 0.5, 0.75)]
    assert rooted == pytest.approx([0.5, *[1.0] * 5, *ends], rel=1e-12)
    # unstated: the last tenth, of 20 steps two; more than there is after the warm-up is cut
    assert scales(20, schedule="wsd", warmup=0, floor=0.0)[-3:] == pytest.approx([1, 1, 0.5])
    assert scales(4, schedule="wsd", warmup=2, decay=9, floor=0.0) == pytest.approx(
        [0.5, 1, 1, 0.5]
    )


def test_inverse_square_root_by_hand() -> None:
    found = scales(16, schedule="inverse_sqrt", warmup=4, floor=0.55)
    # up to the peak at the 4th step, √(4/9) at the 9th, and never below the floor: √(4/16) = 0.5
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[8] == pytest.approx(2 / 3, rel=1e-12)
    assert found[15] == 0.55


def test_rates_by_pattern_multiply_with_those_of_views() -> None:
    named = {
        "layers.0.q.lora_A.weight": parameter(2, 3),
        "layers.0.q.lora_B.weight": parameter(3, 2),
        "layers.1.q.lora_B.weight": parameter(3, 2),
    }
    other = {"layers.0.q.lora_B.weight": parameter(3, 2), "head.weight": parameter(1, 3)}
    chosen = optimizer(
        learning_rate=0.1, rates={"value": 3.0, "*.lora_B.*": 2.0, "value/head.*": 5.0}
    )
    groups = chosen.groups({"policy": named, "value": other}, {"*.lora_B.*": 8.0})
    peaks = [(len(g["params"]), pytest.approx(g["peak"])) for g in groups]
    # policy A: 0.1; both policy B: 0.1 · 2 · 8; value B: · 3; value's head: 0.1 · 3 · 5
    assert peaks == [(1, 0.1), (2, 1.6), (1, 4.8), (1, 1.5)]
    with pytest.raises(ConfigError, match=r"'\*\.lora_C\.\*', which matches no trained.*lora_A"):
        optimizer(rates={"*.lora_C.*": 2.0}).groups({"policy": named})
    with pytest.raises(ConfigError, match="the adapter's rates has the pattern"):
        optimizer().groups({"policy": named}, {"*.lora_C.*": 2.0})


NAMED = {
    "model.embed_tokens.weight": (9, 4),
    "model.layers.0.mlp.weight": (4, 4),
    "model.layers.0.norm.weight": (4,),
    "model.layers.1.mlp.weight": (4, 4),
    "model.norm.weight": (4,),
    "head.weight": (1, 4),
}


def test_discriminative_rates_by_hand() -> None:
    named = {name: parameter(*shape) for name, shape in NAMED.items()}
    groups = optimizer(learning_rate=1.0, layerwise=Layerwise(divide=2.0)).groups({"reward": named})
    peaks = {id(p): group["peak"] for group in groups for p in group["params"]}
    found = [peaks[id(p)] for p in named.values()]
    # head 1; the last layer with the norm above it 1/2; layer 0 1/4; embeddings 1/8
    assert found == [1 / 8, 1 / 4, 1 / 4, 1 / 2, 1 / 2, 1.0]
    # Without a head on top the last layer is the top group; equation 2 of ULMFiT divides by 2.6.
    del named["head.weight"]
    groups = optimizer(learning_rate=1.0, layerwise=Layerwise()).groups({"policy": named})
    peaks = {id(p): group["peak"] for group in groups for p in group["params"]}
    found = [peaks[id(p)] for p in named.values()]
    assert found == pytest.approx([1 / 2.6**2, 1 / 2.6, 1 / 2.6, 1.0, 1.0], rel=1e-12)


def test_layers_thaw_from_the_top() -> None:
    named = {name: parameter(*shape) for name, shape in NAMED.items()}
    chosen = optimizer(schedule="constant", warmup=0.0, layerwise=Layerwise(divide=1.0, thaw=0.25))
    made = chosen.build({"reward": named})
    learning = []
    for step in range(1, 9):  # 8 steps, every 2 another group
        chosen.set_rate(made, step, 8)
        rates = {id(p): g["lr"] for g in made.param_groups for p in g["params"]}
        assert all(p.requires_grad == (rates[id(p)] > 0) for p in named.values())
        learning.append(sum(rates[id(p)] > 0 for p in named.values()))
    assert learning == [1, 1, 3, 3, 5, 5, 6, 6]
    with pytest.raises(ConfigError, match=r"of 4 layer groups the lower 1 would not thaw.*3 steps"):
        chosen.set_rate(made, 1, 3)
    with pytest.raises(ConfigError, match="whole number of steps"):
        Layerwise(thaw=2.5)


def go(folder, *, stop: int = 0, **changes):
    backbone, run = ToyBackbone(seed=1), Run(folder / "toy-1")
    work = ToyWork()
    if stop:
        calls = iter(range(1, 1000))

        def fail(_micro) -> None:
            if next(calls) == stop:
                raise RuntimeError("stopped")

        work.before_loss = fail
    settings = engine(checkpoint_every_seconds=0.0)
    train(work, backbone, ["policy"], optimizer=optimizer(**changes), steps=8, run=run,
          engine=settings, seed=3)  # fmt: skip
    return backbone.weights()


def test_a_layer_that_waits_does_not_move_and_its_moments_do_not(tmp_path) -> None:
    waiting = Layerwise(divide=1.0, thaw=4)  # the lower layer trains in steps 5 to 8
    start = ToyBackbone(seed=1).weights()
    with pytest.raises(RuntimeError, match="stopped"):
        go(tmp_path / "half", stop=5, layerwise=waiting)
    folder = max((tmp_path / "half").glob("toy-1/state/step-*"))
    saved = torch.load(folder / "shared.pt", weights_only=True)
    weights, moments = saved["tensors"]["weights"], saved["tensors"]["exp_avg"]
    assert saved["step"] == 4
    assert set(moments) == {"policy/2.weight", "policy/2.bias"}
    assert torch.equal(weights["policy/0.weight"], start["policy.0.weight"])
    assert not torch.equal(weights["policy/2.weight"], start["policy.2.weight"])
    resumed = go(tmp_path / "half", layerwise=waiting)
    straight = go(tmp_path / "straight", layerwise=waiting)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert not torch.equal(straight["policy.0.weight"], start["policy.0.weight"])


def test_the_norm_counts_only_what_learns(tmp_path) -> None:
    go(tmp_path, layerwise=Layerwise(divide=1.0, thaw=4), max_grad_norm=None)
    go(tmp_path / "all", max_grad_norm=None)
    norms = [
        [row["grad_norm"] for row in Run(folder / "toy-1").metrics()]
        for folder in (tmp_path, tmp_path / "all")
    ]
    assert norms[0][0] < norms[1][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "adamw"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_a_stopped_training_continues_to_the_same_bits(name: str, tmp_path) -> None:
    if name in BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip(f"{name}: bitsandbytes is not installed (pip install 'alignlab[quantization]')")
    straight = go(tmp_path / "straight", name=name)
    with pytest.raises(RuntimeError, match="stopped"):
        go(tmp_path / "cut", name=name, stop=5)
    resumed = go(tmp_path / "cut", name=name)
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)


def test_what_shares_cannot_do_is_refused() -> None:
    require_whole(optimizer(), 2)
    with pytest.raises(ConfigError, match=r"name=muon with engine\.zero=2.*engine\.zero=0"):
        require_whole(optimizer(name="muon"), 2)
    with pytest.raises(ConfigError, match=r"thaw with engine\.zero=3"):
        require_whole(optimizer(layerwise=Layerwise(thaw=0.1)), 3)


def test_fields_that_came_later_are_optional_and_checked() -> None:
    good = typed.to_mapping(optimizer())
    assert {good[name] for name in Optimizer.unkeyed_if_null} == {None}
    known = {key: value for key, value in good.items() if key not in Optimizer.unkeyed_if_null}
    assert typed.build(Optimizer, known, "o") == optimizer()
    with pytest.raises(ConfigError, match=r"o\.layerwise\.divide"):
        typed.build(Optimizer, {**good, "layerwise": {"divide": 0.5}}, "o")
    with pytest.raises(ConfigError, match="Did you mean 'adafactor'"):
        typed.build(Optimizer, {**good, "name": "adafacter"}, "o")


RATES = {"adafactor": 0.1, "lion": 0.02, "muon": 0.1, "sgd": 0.02}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_every_optimizer_learns(name: str, tmp_path) -> None:
    if name in BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip(f"{name}: bitsandbytes is not installed (pip install 'alignlab[quantization]')")
    chosen = optimizer(name=name, learning_rate=RATES.get(name, 0.05), weight_decay=0.0)
    backbone, run, work = ToyBackbone(seed=1), Run(tmp_path / "toy-1"), ToyWork()

    def error() -> float:
        with torch.no_grad(), backbone.view("policy") as view:
            return float((view(work.inputs) - work.targets).square().mean())

    before = error()
    train(work, backbone, ["policy"], optimizer=chosen, steps=60, run=run,
          engine=engine(), seed=3)  # fmt: skip
    assert error() < 0.1 * before
