"""Merging rules: by hand, laws, PEFT's functions as oracle, and low-rank factors of updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from alignlab.errors import ConfigError, DataError
from alignlab.models.merge import factored
from alignlab.models.merging import (
    dare,
    dare_ties,
    linear,
    magnitude_cut,
    slerp,
    slerp_deltas,
    task_arithmetic,
    ties,
)
from alignlab.spec import parse

NAMES = ("linear", "slerp", "slerp_deltas", "task_arithmetic", "ties", "dare", "dare_ties")


def drawn(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def sources(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def close(a: Tensor, b: Tensor | Sequence[float], tolerance: float = 1e-6) -> bool:
    return torch.allclose(a, torch.as_tensor(b).to(a), rtol=tolerance, atol=tolerance)


@pytest.mark.conformance("law", "linear merge", "a weighted average; shares 3 : 1 by hand")
def test_linear_by_hand() -> None:
    # ¾ · (4, −8) + ¼ · (8, 0) = (3 + 2, −6 + 0)
    assert close(linear([tensor([4.0, -8.0]), tensor([8.0, 0.0])], tensor([0.75, 0.25])), [5, -6])
    # extrapolation with shares 1.5 and −0.5: (6 − 4, −12 − 0)
    assert close(linear([tensor([4.0, -8.0]), tensor([8.0, 0.0])], tensor([1.5, -0.5])), [2, -12])


@pytest.mark.conformance(
    "law", "SLERP", "sin((1−t)Ω)/sin Ω and sin(tΩ)/sin Ω, by hand at 60° and 90°"
)
def test_slerp_by_hand() -> None:
    # Ω = 90°, t = ⅓: sin 60° · (2, 0) + sin 30° · (0, 4) = (√3, 2)
    merged = slerp([tensor([2.0, 0.0]), tensor([0.0, 4.0])], tensor([2 / 3, 1 / 3]))
    assert close(merged, [math.sqrt(3), 2.0])
    # Ω = 60°, t = ½: sin 30° / sin 60° = 1/√3 each; the mean direction keeps the length 1
    sixty = tensor([0.5, math.sqrt(3) / 2])
    half = slerp([tensor([1.0, 0.0]), sixty], tensor([0.5, 0.5]))
    assert close(half, [1.5 / math.sqrt(3), 0.5])
    assert close(half.norm(), tensor(1.0))


def test_slerp_of_nearly_parallel_models_is_nearly_linear_and_exact_at_the_ends() -> None:
    one = drawn(1, 50, 40)[0]
    two = one + 1e-4 * drawn(1, 50, 40, seed=1)[0]
    shares = tensor([0.3, 0.7])
    assert close(slerp([one, two], shares), linear([one, two], shares))
    far = drawn(1, 50, 40, seed=2)[0]
    assert close(slerp([one, far], tensor([1.0, 0.0])), one)
    assert close(slerp([one, far], tensor([0.0, 1.0])), far)


def test_slerp_of_a_zero_tensor_is_linear_and_of_opposite_ones_refused() -> None:
    zero, one = torch.zeros(3), tensor([0.0, 2.0, 0.0])
    assert close(slerp([zero, one], tensor([0.25, 0.75])), [0, 1.5, 0])
    with pytest.raises(DataError, match="opposite"):
        slerp([one, -one], tensor([0.5, 0.5]))


@pytest.mark.conformance(
    "law", "SLERP", "turning what was learned keeps its length; an average loses √2"
)
def test_slerp_of_orthogonal_changes_keeps_their_length() -> None:
    pair, half = [tensor([3.0, 0.0]), tensor([0.0, 3.0])], tensor([0.5, 0.5])
    assert close(slerp_deltas(pair, half).norm(), tensor(3.0))
    assert close(linear(pair, half).norm(), tensor(3 / math.sqrt(2)))


@pytest.mark.conformance(
    "law", "task arithmetic", "λ Σ w δ by hand; a weight of −1 takes a task away"
)
def test_task_arithmetic_by_hand() -> None:
    # 0.5 · (1 · (2, 4) − 1 · (6, 0)) = (−2, 2)
    merged = task_arithmetic(
        [tensor([2.0, 4.0]), tensor([6.0, 0.0])], tensor([1.0, -1.0]), scale=0.5
    )
    assert close(merged, [-2, 2])


@pytest.mark.conformance("law", "TIES", "trim, elect, disjoint mean: three models by hand")
def test_ties_by_hand() -> None:
    deltas = [
        tensor([5.0, -3.0, 0.1, 2.0, 1.0]),
        tensor([-1.0, -4.0, 0.2, 3.0, -9.0]),
        tensor([3.0, 2.0, 6.0, -7.0, 0.3]),
    ]
    # The 3 largest of 5 each: cuts 2, 3, 3. Kept:
    #    5  −3   0   2   0
    #    0  −4   0   3  −9
    #    3   0   6  −7   0
    # sum 8  −7   6  −2  −9: signs + − + − −; means of those that agree: 8/2, −7/2, 6, −7, −9
    cuts = tensor([2.0, 3.0, 3.0])
    merged = ties(deltas, torch.ones(3), cuts, density=0.6, scale=1.0)
    assert close(merged, [4, -3.5, 6, -7, -9])
    assert close(ties(deltas, torch.ones(3), cuts, density=0.6, scale=0.5), 0.5 * merged)


def test_ties_with_weights_by_hand() -> None:
    # Weights 3 and 1: sums 3·1 − 1·2 = 1 → +; 3·1 − 1·5 = −2 → −; both agree: (3·1 + 1·5)/4 = 2
    deltas = [tensor([1.0, 1.0, 1.0]), tensor([-2.0, -5.0, 5.0])]
    merged = ties(deltas, tensor([3.0, 1.0]), torch.zeros(2), density=1.0, scale=1.0)
    assert close(merged, [1, -5, 2])
    # a negative weight: that model's change counts the other way round: −(4) against 1 → −4
    one, four = tensor([1.0]), tensor([4.0])
    signs = tensor([1.0, -1.0])
    negative = ties([one, four], signs, torch.zeros(2), density=1.0, scale=1.0)
    assert close(negative, [-4])


def test_ties_changes_nothing_where_all_cancel() -> None:
    merged = ties([tensor([2.0, 0.0]), tensor([-2.0, 0.0])], torch.ones(2), torch.zeros(2),
                  density=1.0, scale=1.0)  # fmt: skip
    assert close(merged, [0, 0])


@pytest.mark.conformance("law", "DARE", "dropped at the rate 1 − d, the rest divided by d, by hand")
def test_dare_drops_and_rescales() -> None:
    delta = torch.full((40_000,), 2.0)
    merged = dare([delta], torch.ones(1), sources(1), density=0.25, scale=1.0)
    assert set(merged.tolist()) == {0.0, 8.0}  # 2 / 0.25
    share = float((merged > 0).float().mean())
    assert abs(share - 0.25) < 0.01  # four deviations: 4 · √(0.25 · 0.75 / 40000) = 0.009
    again = dare([delta], torch.ones(1), sources(1), density=0.25, scale=1.0)
    other = dare([delta], torch.ones(1), sources(1, seed=9), density=0.25, scale=1.0)
    assert torch.equal(merged, again)
    assert not torch.equal(merged, other)


def test_dare_draws_for_every_model_by_itself() -> None:
    ones = [torch.ones(1000), torch.ones(1000)]
    merged = dare(ones, torch.ones(2), sources(2), density=0.5, scale=1.0)
    assert set(merged.tolist()) == {0.0, 2.0, 4.0}  # neither, one, both


def test_dare_ties_elects_among_what_was_not_dropped() -> None:
    # With nothing dropped: signs of 1 − 3 = −2 and 1 + 3 = 4: −3, and the mean 2
    deltas = [tensor([1.0, 1.0]), tensor([-3.0, 3.0])]
    merged = dare_ties(deltas, torch.ones(2), sources(2), density=1.0, scale=0.5)
    assert close(merged, [-1.5, 1.0])


@pytest.mark.conformance(
    "law", "merging", "a model merged with itself is that model, under every rule"
)
def test_a_model_with_itself() -> None:
    delta = drawn(1, 30, 20)[0]
    same = [delta, delta]
    shares, ones, generators = tensor([0.3, 0.7]), torch.ones(2), sources(2)
    assert torch.equal(linear(same, shares), delta)
    assert torch.equal(slerp(same, shares), delta)
    assert torch.equal(slerp_deltas(same, shares), delta)
    assert torch.equal(task_arithmetic(same, ones, scale=0.5), delta)
    assert close(ties(same, ones, torch.zeros(2), density=1.0, scale=1.0), delta)
    assert torch.equal(dare(same, ones, generators, density=1.0, scale=0.5), delta)
    assert close(dare_ties(same, ones, generators, density=1.0, scale=1.0), delta)


def rules() -> dict[str, Callable[[list[Tensor], Tensor], Tensor]]:
    """Every rule as a function of models and weights (shares for those that divide by the sum)."""

    def shared(rule: Any) -> Callable[[list[Tensor], Tensor], Tensor]:
        return lambda models, weights: rule(models, weights / weights.sum())

    cuts = torch.full((2,), 0.5)
    kept = partial(dare, density=1.0, scale=0.7)
    return {
        "linear": shared(linear),
        "slerp": shared(slerp),
        "slerp_deltas": shared(slerp_deltas),
        "task_arithmetic": partial(task_arithmetic, scale=0.7),
        "ties": lambda m, w: ties(m, w, cuts, density=0.6, scale=0.7),
        "dare": lambda m, w: kept(m, w, sources(2)),
        "dare_ties": lambda m, w: dare_ties(m, w, sources(2), density=1.0, scale=0.7),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.conformance(
    "law", "merging", "the order of the models is of no meaning, that of the weights is"
)
def test_the_order_of_models_and_weights(name: str) -> None:
    rule, models, weights = rules()[name], drawn(2, 30, 20), tensor([3.0, 1.0])
    merged = rule(models, weights)
    assert close(rule(models[::-1], weights.flip(0)), merged, 1e-5)
    assert not close(rule(models, weights.flip(0)), merged, 1e-2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.conformance("law", "merging", "scaling all models scales the result")
def test_scaling_the_models(name: str) -> None:
    if name == "ties":
        scaled = partial(ties, cuts=torch.full((2,), 1.0), density=0.6, scale=0.7)  # the cut too
    else:
        scaled = rules()[name]
    models, weights = drawn(2, 30, 20), tensor([3.0, 1.0])
    merged = rules()[name](models, weights)
    assert close(scaled([2 * m for m in models], weights), 2 * merged, 1e-5)


@pytest.mark.conformance(
    "oracle", "TIES", "equal to PEFT's function for equal weights and one tensor"
)
@pytest.mark.parametrize("density", [0.1, 0.37, 1.0])
def test_ties_against_peft(density: float) -> None:
    from peft.utils import merge_utils

    deltas = drawn(3, 40, 25)
    cuts = tensor([magnitude_cut(lambda d=d: [d], density) for d in deltas])
    ours = ties(deltas, torch.ones(3), cuts, density=density, scale=1.0)
    theirs = merge_utils.ties(deltas, torch.ones(3), density)  # warns at 1
    assert close(ours, theirs, 1e-5)
    assert float((ours == 0).float().mean()) == pytest.approx((1 - density) ** 3, abs=0.03)


@pytest.mark.conformance("oracle", "task arithmetic", "equal to PEFT's function")
def test_task_arithmetic_against_peft() -> None:
    from peft.utils import merge_utils

    deltas, weights = drawn(3, 40, 25), tensor([0.5, -1.0, 2.0])
    assert close(
        task_arithmetic(deltas, weights, scale=1.0), merge_utils.task_arithmetic(deltas, weights)
    )


@pytest.mark.parametrize("density", [0.0005, 0.2, 0.5, 1.0])
def test_the_cut_is_a_quantile_of_the_whole_model(density: float) -> None:
    parts = [*drawn(2, 30, 20), torch.zeros(7), *drawn(1, 900, seed=4)]
    flat = torch.cat([p.flatten() for p in parts]).abs().sort(descending=True).values
    found = magnitude_cut(lambda: parts, density)
    wanted = int(density * len(flat))
    assert found == (float(flat[wanted - 1]) if wanted else math.inf)
    if 0 < wanted < 2100:
        assert int((flat >= found).sum()) == wanted


def test_an_update_of_low_rank_is_factored_exactly_and_any_other_as_near_as_can_be() -> None:
    (a1, a2), (b1, b2) = drawn(2, 2, 12), drawn(2, 9, 2, seed=1)
    spaces, update = [(a1, b1), (a2, b2)], 0.3 * b1 @ a1 - 2.0 * b2 @ a2
    down, up = factored(update, 4, spaces)
    assert (down.shape, up.shape) == ((4, 12), (9, 4))
    assert close(up @ down, update, 1e-5)
    s = torch.linalg.svdvals(update)
    down, up = factored(update, 3, spaces)  # one singular value is left out
    assert close((update - up @ down).norm(), s[3], 1e-4)
    other = drawn(1, 9, 12, seed=5)[0]  # lies in no small space
    s = torch.linalg.svdvals(other)
    down, up = factored(other, 4, spaces)
    assert close((other - up @ down).norm(), s[4:].norm(), 1e-4)
    down, up = factored(other, 11, spaces)  # more than the matrix has: zeros
    assert (down.shape, up.shape) == ((11, 12), (9, 11))
    assert close(up @ down, other, 1e-5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("density", 0.0, "density"), ("density", 1.5, "density"), ("dnsity", 0.5, "density")],
)
def test_a_wrong_setting_is_refused(name: str, value: float, message: str) -> None:
    node = {"_target_": "alignlab.models.merging.ties", "density": 0.2, "scale": 1.0, name: value}
    with pytest.raises(ConfigError, match=message):
        parse(node, "rule")
