"""Every optimizer against the update equations of its paper, and its state through a checkpoint."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from toy_training import optimizer

from alignlab.engine.algorithms import BITSANDBYTES, NAMES
from alignlab.engine.moments import moments_of, restore, updates_of
from alignlab.engine.shares import Reader
from alignlab.errors import ConfigError

RATE, DECAY = 0.01, 0.1


def available(name: str) -> None:
    if name in BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip(f"{name}: bitsandbytes is not installed (pip install 'alignlab[quantization]')")


def settings(name: str, **changes):
    values = {"learning_rate": RATE, "weight_decay": DECAY, "schedule": "constant", "warmup": 0.0}
    return optimizer(name=name, **{**values, **changes})


def trained(name: str, start: torch.Tensor, gradients, *, called="model.layers.0.w", **changes):
    """Weights after each step from ``start`` along ``gradients``."""
    available(name)
    weight = torch.nn.Parameter(start.clone())
    chosen = settings(name, **changes)
    made = chosen.build({"policy": {called: weight}})
    found = []
    for step, gradient in enumerate(gradients, 1):
        weight.grad = gradient.clone()
        chosen.set_rate(made, step, len(gradients))
        made.step()
        found.append(weight.detach().clone())
    return found


def draws(*shape: int, steps: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(steps)]


def close(found, expected, rtol: float) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=rtol, atol=rtol * 1e-2)


def adamw_by_equation(start, gradients, betas=(0.9, 0.999), eps=1e-8):
    # Algorithm 2: m = β1 m + (1-β1) g; v = β2 v + (1-β2) g²; θ -= η (m̂ / (√v̂ + ε) + λ θ)
    weight, m, v, found = start.double(), 0.0, 0.0, []
    for t, gradient in enumerate(gradients, 1):
        g = gradient.double()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        step = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        weight = weight - RATE * (step + DECAY * weight)
        found.append(weight)
    return found


@pytest.mark.parametrize("name", ["adamw", "adamw_paged"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_adamw_is_the_paper_s(name: str) -> None:
    start, *gradients = draws(5, 3, steps=6)
    found = trained(name, start, gradients)
    # The paper decays with the weight of before, and so does ours: to float32 rounding.
    close(found, adamw_by_equation(start, gradients), 2e-5)


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_8bit_paged"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_adamw_in_8_bits_stays_near(name: str) -> None:
    start, *gradients = draws(64, 64, steps=9)  # 4,096 elements, from which on it is quantised
    found = trained(name, start, gradients)
    exact = adamw_by_equation(start, gradients)
    moved = (exact[-1] - start).norm()
    error = (found[-1].double() - exact[-1]).norm() / moved
    assert 0 < float(error) < 0.03  # not the same numbers, and near in what was moved


@pytest.mark.parametrize(
    ("called", "size", "dtype"),
    [
        ("model.layers.0.w", 64, torch.uint8),
        ("model.layers.0.w", 63, torch.float32),  # 63 · 64 = 4,032 elements: too small
        ("model.embed_tokens.weight", 64, torch.float32),  # Dettmers et al., section 2.3
    ],
)
def test_what_is_kept_in_8_bits(called: str, size: int, dtype: torch.dtype) -> None:
    available("adamw_8bit")
    weight = torch.nn.Parameter(torch.ones(size, 64))
    made = settings("adamw_8bit").build({"policy": {called: weight}})
    weight.grad = torch.ones_like(weight)
    made.step()
    assert made.state[weight]["state1"].dtype == made.state[weight]["state2"].dtype == dtype


def test_lion_by_hand() -> None:
    # Step 1: c = 0.1 g, sign +-+; θ = (1 - 0.001) θ - 0.01 sign. m = 0.01 g = (0.04, -0.02, 0.01).
    # Step 2, g = (-0.3, -1, 0): c = 0.9 m + 0.1 g = (0.036 - 0.03, -0.118, 0.009), sign +-+: the
    # first keeps its way although its gradient has turned.
    start = torch.tensor([[1.0, -2.0, 0.5]])
    gradients = [torch.tensor([[4.0, -2.0, 1.0]]), torch.tensor([[-0.3, -1.0, 0.0]])]
    found = trained("lion", start, gradients, betas=(0.9, 0.99))
    one = torch.tensor([[0.999 - 0.01, -1.998 + 0.01, 0.4995 - 0.01]])
    two = 0.999 * one + torch.tensor([[-0.01, 0.01, -0.01]])
    close(found, [one, two], 1e-6)
    still = trained("lion", start, [torch.zeros(1, 3)], betas=(0.9, 0.99), weight_decay=0.0)
    assert torch.equal(still[0], start)  # sign(0) = 0


def test_lion_is_algorithm_2() -> None:
    start, *gradients = draws(4, 3, steps=7)
    weight, m, expected = start.double(), 0.0, []
    for gradient in gradients:
        g = gradient.double()
        c = 0.9 * m + 0.1 * g
        weight = weight - RATE * (torch.sign(c) + DECAY * weight)
        m = 0.99 * m + 0.01 * g
        expected.append(weight)
    close(trained("lion", start, gradients, betas=(0.9, 0.99)), expected, 1e-6)


def test_adafactor_by_hand() -> None:
    # The first step forgets everything before it (β̂2 = 1 - 1^-0.8 = 0). |g| of rank one is its own
    # factored estimate, so U = sign(g), of RMS 1; θ's RMS is √(25/4) = 2.5: each moves 2.5 η.
    start = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    gradient = torch.tensor([[1.0, -2.0], [2.0, 4.0]])
    [found] = trained("adafactor", start, [gradient], weight_decay=0.0)
    expected = start - 0.025 * torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def adafactor_by_equation(start, gradients):
    # Algorithms 4 (matrices) and 5 (vectors), with sums as there; decoupled decay is torch's.
    rms = lambda x: float((x**2).mean().sqrt())  # noqa: E731
    weight, r, c, v, found = start.double(), 0.0, 0.0, 0.0, []
    for t, gradient in enumerate(gradients, 1):
        g2, beta = gradient.double() ** 2, 1 - t**-0.8
        alpha = max(1e-3, rms(weight)) * min(RATE, 1 / math.sqrt(t))
        if g2.dim() == 2:
            r = beta * r + (1 - beta) * g2.sum(1, keepdim=True)
            c = beta * c + (1 - beta) * g2.sum(0, keepdim=True)
            estimate = r @ c / r.sum()
        else:
            estimate = v = beta * v + (1 - beta) * g2
        update = gradient.double() / estimate.sqrt()
        update = update / max(1.0, rms(update) / 1.0)
        decayed = DECAY if g2.dim() == 2 else 0.0  # vectors are not decayed
        weight = weight * (1 - RATE * decayed) - alpha * update
        found.append(weight)
    return found


@pytest.mark.parametrize("shape", [(5, 3), (4,)])
def test_adafactor_is_the_paper_s(shape: tuple[int, ...]) -> None:
    start, *gradients = draws(*shape, steps=6)
    found = trained("adafactor", start, gradients)
    close(found, adafactor_by_equation(start, gradients), 1e-4)


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.slow
def test_muon_is_orthogonal_momentum() -> None:
    start, *gradients = draws(6, 9, steps=4)
    found = trained("muon", start, gradients, momentum=0.9)
    weight, buffer = start.double(), torch.zeros(6, 9, dtype=torch.float64)
    for gradient, mine in zip(gradients, found, strict=True):
        g = gradient.double()
        buffer = 0.9 * buffer + 0.1 * g
        step = newton_schulz(0.1 * g + 0.9 * buffer)  # Nesterov
        # Liu et al. 2025, equation 4: 0.2 √max(A, B) makes it as large as AdamW's usual step
        weight = weight - RATE * (0.2 * math.sqrt(9) * step + DECAY * weight)
        torch.testing.assert_close(mine.double(), weight, rtol=0, atol=RATE * 0.6 * 0.03)  # bf16
        weight = mine.double()
    moved = (found[0].double() - (1 - RATE * DECAY) * start.double()) / (-RATE * 0.6)
    values = torch.linalg.svdvals(moved)
    assert 0.6 < float(values.min()) < float(values.max()) < 1.25


def test_muon_leaves_the_rest_to_adamw() -> None:
    shapes = {
        "model.embed_tokens.weight": (8, 4),
        "model.layers.0.mlp.weight": (4, 4),
        "model.layers.0.norm.weight": (4,),
        "lm_head.weight": (8, 4),
    }
    named = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    made = settings("muon").build({"policy": named})
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    kinds = {name: sorted(made.state[p]) for name, p in named.items()}
    adamw = ["exp_avg", "exp_avg_sq", "step"]
    assert kinds.pop("model.layers.0.mlp.weight") == ["momentum_buffer"]
    assert list(kinds.values()) == [adamw] * 3
    assert sum(len(g["params"]) for g in made.param_groups) == 4


def test_sgd_by_hand() -> None:
    # v1 = g1 + λθ = 2 + 0.1; θ = 1 - 0.021 = 0.979; v2 = 0.5 · 2.1 - 1 + 0.0979 = 0.1479
    found = trained(
        "sgd", torch.ones(1, 1), [torch.full((1, 1), 2.0), torch.full((1, 1), -1.0)], momentum=0.5
    )
    assert [float(w) for w in found] == pytest.approx([0.979, 0.979 - 0.001479], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_state_comes_back_to_the_bit(name: str, tmp_path) -> None:
    available(name)
    start, *gradients = draws(65, 64, steps=5)
    vector = draws(7, steps=5, seed=1)

    def fresh():
        pair = torch.nn.Parameter(start.clone()), torch.nn.Parameter(vector[0].clone())
        named = {"policy/layers.0.w": pair[0], "policy/b": pair[1]}
        chosen = settings(name)
        by_view = {"policy": {"layers.0.w": pair[0], "b": pair[1]}}
        return named, chosen, chosen.build(by_view)

    def step(named, chosen, made, number: int) -> None:
        for parameter, gradient in zip(named.values(), (gradients, vector[1:]), strict=True):
            parameter.grad = gradient[number].clone()
        chosen.set_rate(made, number + 1, 4)
        made.step()

    named, chosen, made = fresh()
    assert updates_of(made, named) == {}
    step(named, chosen, made, 0)
    step(named, chosen, made, 1)
    # through a file, as a checkpoint is
    saved = {
        "weights": {n: p.detach().clone() for n, p in named.items()},
        **moments_of(made, named),
    }
    torch.save({k: dict(v) for k, v in saved.items()}, tmp_path / "state.pt")
    counts = updates_of(made, named)
    read = Reader(torch.load(tmp_path / "state.pt", mmap=True, weights_only=True), [])
    other, chosen_too, made_too = fresh()
    for key, parameter in other.items():
        parameter.data.copy_(read.whole("weights", key))
        restore(made_too, parameter, key, read, counts[key])
    for number in (2, 3):
        step(named, chosen, made, number)
        step(other, chosen_too, made_too, number)
    for key in named:
        assert torch.equal(named[key], other[key]), (name, key)
        assert not torch.equal(named[key].detach(), read.whole("weights", key))


def test_settings_of_another_algorithm_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"momentum=0\.5 is for sgd and muon"):
        optimizer(name="lion", momentum=0.5)
    with pytest.raises(ConfigError, match=r"decay=0\.2 is the last phase of wsd"):
        optimizer(decay=0.2)
    with pytest.raises(ConfigError, match=r"decay is 2\.5"):
        optimizer(decay=2.5, schedule="wsd")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_the_plan_counts_the_bytes_of_the_state(name: str) -> None:
    available(name)
    named = {
        "model.embed_tokens.weight": torch.nn.Parameter(torch.ones(512, 64)),
        "model.layers.0.w": torch.nn.Parameter(torch.ones(512, 512)),
    }
    chosen = settings(name)
    made = chosen.build({"policy": named})
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    kinds = moments_of(made, named)
    held = sum(t.numel() * t.element_size() for part in kinds.values() for t in part.values())
    weights = sum(p.numel() for p in named.values())
    share = named["model.layers.0.w"].numel() / weights
    # Adafactor's 2 · 512 and 512 + 64 numbers are 0.02 bytes a weight, which the plan leaves out
    assert held / weights == pytest.approx(chosen.state_bytes(share), abs=0.03)
