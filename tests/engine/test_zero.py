"""Training in shares (ZeRO 1, 2, 3) is training: the weights, the norms, the checkpoints of one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sharded_training import STEPS, Case, do, open_backbone, start

from alignlab.engine.masters import FlatMasters
from alignlab.engine.sharded import Sharded
from alignlab.engine.shares import Reader, Share
from alignlab.engine.work import Micro
from alignlab.errors import ConfigError
from alignlab.run import Run

pytestmark = pytest.mark.scale

ALONE = {
    "full": Case("full"),
    "lora": Case("lora", rank=3),
    "selective": Case("selective", last_layers=1),
    "average": Case("average", ema=0.6),
    "best": Case("best", rank=3, patience=True, max_norm=None),
    "untied": Case("untied", model="untied"),
    "experts": Case("experts", model="experts"),
    "attention": Case("attention", model="experts", rank=3, layers=("q_proj", "v_proj")),
    "bf16": Case("bf16", rank=3, dtype="bfloat16", checkpointing=True),
}


def stages(name: str, *which: int, **changes: Any) -> list[Case]:
    return [replace(ALONE[name], name=f"{name}z{zero}", zero=zero, **changes) for zero in which]


TOGETHER = [
    *stages("full", 1, 2, 3),
    *stages("lora", 2, 3),
    *stages("selective", 2, 3),
    *stages("average", 1, 3),
    *stages("best", 3),
    *stages("untied", 3),
    *stages("experts", 2, 3),
    *stages("attention", 3),
    *stages("bf16", 3),
    *[
        replace(ALONE[name], name=f"{name}z{zero}{offload}", zero=zero, offload=offload)
        for name, zero, offload in (
            ("full", 2, "optimizer"),
            ("full", 3, "optimizer"),
            ("lora", 3, "all"),
        )
    ],
]
# Stopped after two steps by two processes and continued: by two again, and by one.
AGAIN = [*stages("average", 1), *stages("best", 3)]
AGAIN = [replace(case, name=f"{case.name}again") for case in AGAIN]
DOWN = [replace(case, name=f"{case.name}down") for case in stages("average", 2, 3)]
# Stopped by one, and continued by two.
UP = [replace(case, name=f"{case.name}up") for case in stages("average", 0, 3)]
BROKEN = [
    Case(f"{broken}z{zero}", zero=zero, broken=broken)
    for zero in (0, 2, 3)
    for broken in ("loss", "gradient")
]


# One process, whose optimizer states wait elsewhere: a group of one.
SINGLE = replace(ALONE["full"], name="fullz2alone", zero=2, offload="optimizer")


def stopped(cases: list[Case], **changes: Any) -> list[Case]:
    return [replace(case, stop_after=2, **changes) for case in cases]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All trainings, in two groups of processes: starting one costs more than its trainings."""
    folder = tmp_path_factory.mktemp("zero")
    start(folder, [*ALONE.values(), *stopped(UP, zero=0), *stopped([SINGLE]), SINGLE], 1)
    start(folder, [*TOGETHER, *BROKEN, *stopped(AGAIN), *AGAIN, *stopped(DOWN), *UP], 2)
    for case in DOWN:
        do(replace(case, zero=0), folder)
    return folder


def run_of(folder: Path, case: Case | str) -> Path:
    return folder / f"toy-{case if isinstance(case, str) else case.name}"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All trained weights, and what the saved folders hold."""
    found = {
        f"{view}/{name}": value
        for view in ("policy", "value")
        for name, value in torch.load(folder / f"{view}.pt").items()
    }
    for path in sorted(folder.glob("*/*.safetensors")):
        place = f"{path.parent.name}/{path.name}"
        found |= {f"{place}/{name}": value for name, value in load_file(path).items()}
    return found


def largest_gap(one: Path, other: Path) -> float:
    """Largest difference of two runs' weights, relative to the largest weight of the tensor."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    return max(
        float((theirs[k] - v).abs().max() / v.abs().max().clamp(min=0.1)) for k, v in mine.items()
    )


def said(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out.json").read_text())


@pytest.mark.slow
def test_shares_give_the_weights_of_one_process(trained: Path, record_property: Any) -> None:
    """Every stage; adapters, all weights, averages, the best weights, bfloat16, offload.

    In bfloat16, two computations of the same (the adapters' products are peft's under ZeRO 3, and
    joint in one process) differ by less than either differs from float32.
    """
    largest, float32 = 0.0, run_of(trained, "lora")
    rounding = min(largest_gap(float32, run_of(trained, name)) for name in ("bf16", "bf16z3"))
    for case in [*TOGETHER, SINGLE]:
        one, two = run_of(trained, case.name.split("z")[0]), run_of(trained, case)
        exact = case.dtype == "float32"
        gap = largest_gap(one, two)
        largest = max(largest, gap if exact else 0.0)
        assert gap < (1e-5 if exact else rounding), case
        mine, theirs = said(one), said(two)
        assert (theirs["steps"], theirs["best"]) == (mine["steps"], mine["best"]), case
        assert theirs["counts"] == mine["counts"], case
        assert theirs["reference"] == pytest.approx(mine["reference"], rel=1e-2), case
        rows = Run(one).metrics(), Run(two).metrics()
        assert len(rows[0]) == len(rows[1]) == STEPS + 2
        for first, second in zip(*rows, strict=True):
            for key in first.keys() & {"loss", "grad_norm", "nll"}:
                expected = pytest.approx(first[key], rel=1e-5 if exact else 3e-2, abs=1e-6)
                assert second[key] == expected, (case, key)
    record_property("measured", f"largest relative difference {largest:.0e}")
    assert max(row["grad_norm"] for row in Run(run_of(trained, "full")).metrics("train")) > 0.5


@pytest.mark.slow
def test_a_continued_training_is_an_undisturbed_one(trained: Path) -> None:
    """On as many processes in the same bits; on others, and in other shares, up to rounding."""
    for case in AGAIN:
        undisturbed = run_of(trained, case.name.removesuffix("again"))
        assert largest_gap(undisturbed, run_of(trained, case)) == 0, case
    for case in [*DOWN, *UP]:
        run = run_of(trained, case)
        assert largest_gap(run_of(trained, "average"), run) < 1e-5, case
        assert said(run)["world"] == (1 if case in DOWN else 2)
        assert [row["step"] for row in Run(run).metrics("train")] == [1, 2, 3, 4, 5]
        [warning] = Run(run).record["warnings"]
        assert "continued at step 2 on" in warning


@pytest.mark.slow
def test_what_is_not_finite_anywhere_is_not_applied(trained: Path) -> None:
    for case in BROKEN:
        error = said(run_of(trained, case))["error"]
        broken = "The loss of micro-batch row" if case.broken == "loss" else "The gradient norm is"
        assert error.startswith(broken), (case, error)
        assert "at step 3; the weights are still those of step 2" in error, (case, error)
    wholes = [weights(run_of(trained, case)) for case in BROKEN]
    for other in wholes[1:]:
        for name, value in wholes[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_process_holds_its_share_and_the_record_says_so(trained: Path) -> None:
    """4896 + 4913 trained weights (twice 4896, and a head of 16 + 1), 4896 frozen ones."""
    whole = 4896 + 4913
    held = {z: Run(run_of(trained, f"fullz{z}")).record["sharding"] for z in (1, 2, 3)}
    assert [held[z]["stage"] for z in (1, 2, 3)] == [1, 2, 3]
    for z in (1, 2, 3):
        # Flat groups are cut evenly, so that a share is a half and at most a few filling zeros.
        half = pytest.approx(whole / 2, abs=60)
        assert held[z]["processes"] == 2
        assert held[z]["master_weights"] == half
        assert held[z]["optimizer"] == 2 * held[z]["master_weights"]
        assert held[z]["gradients"] == (whole if z == 1 else half)
        assert held[z]["parameters"] == (
            pytest.approx((whole + 4896) / 2, abs=60) if z == 3 else whole + 4896
        )
    assert "sharding" not in Run(run_of(trained, "full")).record


def test_adapters_on_fused_experts_are_refused_in_shares(tmp_path: Path) -> None:
    """Found to train wrongly in silence: gradients off from the first step, weights by 10 %."""
    case = Case("fused", model="experts", rank=3)
    backbone = open_backbone(case, tmp_path)
    backbone.shard(weights=False)
    with pytest.raises(ConfigError, match=r"adapters on .*experts.*target_modules"):
        backbone.shard(weights=True)


def test_a_share_is_a_run_of_elements_and_all_of_them_are_the_whole() -> None:
    whole = torch.arange(10.0).view(2, 5)
    shares = [Share(rank, 4) for rank in range(4)]
    parts = [share.of(whole) for share in shares]  # ceil(10 / 4) = 3: 3 + 3 + 3 + 1
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    padded = [share.padded(part, 10) for share, part in zip(shares, parts, strict=True)]
    assert padded[3].tolist() == [9, 0, 0]
    assert all(
        torch.equal(share.trimmed(full, 10), part)
        for share, full, part in zip(shares, padded, parts, strict=True)
    )
    read = Reader({}, [{"weights": {"w": part}} for part in parts])
    assert torch.equal(read.whole("weights", "w"), whole.flatten())
    assert Share(3, 4).of(torch.arange(3.0)).numel() == 0  # 1 + 1 + 1 + nothing
    assert Share(3, 4).trimmed(torch.zeros(1), 3).numel() == 0


SIZES = {"a": 3, "b": 4, "c": 2}


def flat_masters(rank: int, world: int = 2) -> tuple[FlatMasters, torch.optim.AdamW]:
    """Weights of 3, 4 and 2 elements in two groups, laid out as DeepSpeed does (8 and 4)."""
    weights = {
        "a": torch.nn.Parameter(torch.tensor([0.0, 1, 2])),
        "b": torch.nn.Parameter(torch.tensor([[3.0, 4], [5, 6]])),
        "c": torch.nn.Parameter(torch.tensor([7.0, 8])),
    }
    groups = [[weights["a"], weights["b"]], [weights["c"]]]
    flats = []
    for group in groups:
        flat = torch.cat([p.detach().flatten() for p in group])
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % (2 * world)))
        flats.append(flat.chunk(world)[rank].clone().requires_grad_())
    optimizer = torch.optim.AdamW([{"params": [flat]} for flat in flats])
    return FlatMasters(weights, groups, optimizer, rank), optimizer


def test_moments_of_flat_groups_go_out_and_in() -> None:
    """The first process holds 0 1 2 3 | 7 8, the second 4 5 6 and a zero | two zeros."""
    shares = []
    for rank in (0, 1):
        masters, optimizer = flat_masters(rank)
        assert masters.moments() == {}
        for group in optimizer.param_groups:  # moments that tell which weight they are of
            [flat] = group["params"]
            moments = {"exp_avg": flat.detach() * 10, "exp_avg_sq": flat.detach() * 100}
            optimizer.state[flat] = {"step": torch.tensor(3.0), **moments}
        shares.append(masters.moments())
    assert shares[0]["exp_avg"]["b"].tolist() == [30]
    assert shares[1]["exp_avg"]["b"].tolist() == [40, 50, 60]
    assert shares[1]["exp_avg_sq"]["c"].numel() == 0
    read = Reader({"weights": {n: torch.full((9,), -1.0)[:k] for n, k in SIZES.items()}}, shares)
    assert read.whole("exp_avg", "b").tolist() == [30, 40, 50, 60]
    assert read.whole("exp_avg_sq", "a").tolist() == [0, 100, 200]
    masters, optimizer = flat_masters(0, world=1)  # another number of processes
    masters.load(read, dict.fromkeys(SIZES, 3))
    [first, second] = [group["params"][0] for group in optimizer.param_groups]
    assert first.tolist() == [-1] * 7 + [0]
    assert optimizer.state[first]["exp_avg"].tolist() == [0, 10, 20, 30, 40, 50, 60, 0]
    assert optimizer.state[second]["exp_avg_sq"].tolist() == [700, 800]
    assert float(optimizer.state[second]["step"]) == 3


def test_another_layout_than_the_known_one_is_noticed() -> None:
    _, optimizer = flat_masters(0)
    [flat] = optimizer.param_groups[0]["params"]
    flat.detach().add_(1)
    weights = {name: torch.nn.Parameter(torch.arange(3.0)) for name in ("a",)}
    with pytest.raises(RuntimeError, match="in another way"):
        FlatMasters(weights, [[weights["a"]], []], optimizer, 0)


def test_every_view_gets_as_many_passes_as_the_busiest_process_makes() -> None:
    dealt = [["policy", "policy", "value"], ["policy"]]
    micros = [Micro(view, f"data {i}", 5, "row") for i, view in enumerate(dealt[0])]

    class Two:
        def gather(self, own: Any) -> list[Any]:
            return dealt

    def evened(own: list[Micro]) -> list[tuple[str, Any, int]]:
        update = object.__new__(Sharded)
        update.workers = Two()  # type: ignore[assignment]
        return [(m.view, m.data, m.tokens) for m in update.even(own)]

    both = [("policy", "data 0", 5), ("policy", "data 1", 5), ("value", "data 2", 5)]
    assert evened(micros) == both
    assert evened(micros[:1]) == [both[0], ("policy", None, 0), ("value", None, 0)]
