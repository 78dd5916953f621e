"""What is proposed where something does not fit: it fits, and nothing nearer does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from capacity_cases import DEVICE, SMALL, full, lora, sampling, update, work

from alignlab.capacity.fit import LAST, RANKS, _changes, become, nearest
from alignlab.capacity.fit import Placed as PlacedStage
from alignlab.capacity.memory import Setting, peak
from alignlab.capacity.workload import Model
from alignlab.compose import conf_dir


class Roomy(PlacedStage):
    """A stage on a device without runtime and slack, of a stated number of bytes."""

    room = 0

    def memory(self, change=None):
        work_, setting = self.workload, self.setting
        if change is not None:
            work_, setting = change.applied(work_, setting)
        place = replace(self.device.allocation("bfloat16"), runtime=0, slack=0.0)
        return peak(work_, setting, place)

    def fits(self, change=None):
        return self.memory(change).total <= self.room


def placed(workload, setting, room: int):
    made = Roomy(workload, setting, DEVICE)
    object.__setattr__(made, "room", room)
    return made


# 512 groups of 16 tokens: states of 24,000 bytes, gradients of 8,000, then activations.
LONG = work(update=update(tokens=8192))


def test_the_token_budget_is_halved_as_often_as_needed() -> None:
    at = {b: placed(LONG, Setting(b), 0).memory().total for b in (512, 256, 128, 64)}
    assert at[512] > at[256] > at[128] > at[64]
    for wanted in (256, 128, 64):
        stage = placed(LONG, Setting(512), at[wanted])
        change = nearest([stage])
        assert change is not None
        assert (change.token_budget, change.checkpointing, change.zero) == (wanted, False, None)


@pytest.mark.slow
@pytest.mark.parametrize("room", [25_000, 40_000, 60_000, 80_000, 120_000, 200_000])
def test_nothing_cheaper_fits(room: int) -> None:
    stage = placed(replace(LONG, decode=sampling(rows=64, batch=64)), Setting(512), room)
    change = nearest([stage])
    changes = list(_changes([stage]))
    if change is None:
        assert not any(stage.fits(each) for each in changes)
        return
    assert stage.fits(change)
    assert not any(stage.fits(each) for each in changes if each.cost < change.cost)


def test_shares_are_proposed_only_where_there_are_several_processes() -> None:
    alone, four = Setting(64), Setting(64, processes=4)
    assert all(c.zero is None for c in _changes([placed(LONG, alone, 0)]) if c.factor == 1)
    assert any(c.zero == 3 and c.factor == 1 for c in _changes([placed(LONG, four, 0)]))


def test_adapters_come_last_and_only_where_all_is_trained() -> None:
    assert not any(c.adapter == "lora" for c in _changes([placed(work(lora()), Setting(64), 0)]))
    change = nearest([placed(work(), Setting(64), 25_000)])
    assert change is None or change.cost <= 40


def test_a_base_of_four_bits_is_the_last_resort_and_counted() -> None:
    """Adapters of rank 64 on a base of 1152 matrix elements at 0.516 bytes, the rest in float32."""
    room = placed(work(lora()), Setting(64), 0).memory().total - 1500
    change = nearest([placed(work(lora(checkpointing=True)), Setting(64), room)])
    assert change is None or change.adapter != "qlora"  # rank 64 is more than the base here
    large = replace(SMALL, matrices=10**6, total=10**6 + 848, linear_widths=2 * 136)
    tuned = replace(lora(checkpointing=True), dimensions=large)
    stage = placed(work(tuned), Setting(64), 1_000_000)
    change = nearest([stage])
    assert change is not None
    assert change.adapter == "qlora"
    assert change.overrides(DEVICE)[-1] == "adapter=qlora"
    saved = stage.memory().weights - stage.memory(change).weights
    # 2 bytes against ½ + (1 + 4/256)/64 of each of 10⁶; 64 · 272 numbers against 544, in float32
    assert saved == pytest.approx(10**6 * (2 - 0.51587) - (64 * 272 - 544) * 4, abs=20)
    assert not any(
        c.adapter == "qlora" for c in _changes([placed(work(tuned), Setting(64, zero=2), 0)])
    )
    packed = replace(tuned, packed=0.5)
    assert not any(c.adapter for c in _changes([placed(work(packed), Setting(64), 0)]))


def test_what_is_proposed_is_what_the_techniques_can() -> None:
    def stages(model: Model, adapter: str | None) -> set[int]:
        found = _changes([placed(work(model), Setting(64, processes=4), 0)])
        return {c.zero or 0 for c in found if c.adapter == adapter}

    assert stages(lora(), None) == {0, 1, 2, 3}
    assert stages(lora(zero=2), None) == {0, 1, 2}
    assert stages(full(), "qlora") == {0}
    for name, rank in RANKS.items():
        stated = yaml.safe_load((conf_dir() / "adapter" / f"{name}.yaml").read_text())
        assert stated["rank"] == rank
    stated = yaml.safe_load((conf_dir() / "adapter" / "last_layers.yaml").read_text())
    assert stated["last_layers"] == LAST
    # Two of four blocks: a quarter each of 1,152 elements of matrices, and two norms of 8.
    made = become(full(dimensions=replace(SMALL, layers=4)), "last_layers")
    assert (made.adapter, made.reached, made.rank) == (2 * (288 + 16), 2, 0)


def test_one_change_for_all_stages() -> None:
    small, large = work(update=update(tokens=64)), LONG
    room = placed(large, Setting(128), 0).memory().total
    both = [placed(small, Setting(512), room), placed(large, Setting(512), room)]
    change = nearest(both)
    assert change is not None
    assert all(stage.fits(change) for stage in both)
    assert change.token_budget == 128


def test_a_change_is_written_as_overrides() -> None:
    changes = {
        change.cost: change for change in _changes([placed(LONG, Setting(512, processes=2), 0)])
    }
    assert changes[1].overrides(DEVICE) == ["engine.token_budget=256"]
    words = [w for c in changes.values() for w in c.overrides(DEVICE)]
    keys = {w.split("=")[0] for w in words}
    assert keys <= {
        "engine.token_budget", "engine.zero", "engine.offload", "adapter", "device.count",
        "device.nodes", "backbone.gradient_checkpointing", "decode_batch",
    }  # fmt: skip


def test_more_rows_than_fit_are_sampled_in_turns() -> None:
    stage = work(full(), trained=0, update=None, frozen=1, decode=sampling(rows=512, batch=256))
    at = placed(replace(stage, decode=sampling(rows=512, batch=64)), Setting(64), 0).memory().total
    change = nearest([placed(stage, Setting(64), at)])
    assert change is not None
    assert change.overrides(DEVICE) == ["decode_batch=64"]
