"""The nearest setting that fits: searched, over what a user can change, by how much it changes.

A change of the token budget, of the rows sampled together or of where states lie changes no result;
checkpointing costs time; to train less is another method and comes last: adapters, the last layers
alone (whose backward pass is short), adapters on a base of four bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from alignlab.capacity.device import Device
from alignlab.capacity.memory import Memory, Offload, Setting, peak
from alignlab.capacity.workload import Model, Workload
from alignlab.models.quantized import packed_bytes

Proposed = Literal["lora", "last_layers", "qlora"]

# What each costs more than the first; ranks and layers are those of conf/adapter.
PROPOSED: dict[Proposed, int] = {"lora": 0, "last_layers": 2, "qlora": 30}
RANKS = {"lora": 16, "qlora": 64}
LAST = 2
LEAST = 64  # rows or tokens below which nothing is proposed
# What a change costs, in steps of a halved token budget.
CHECKPOINTING, SHARDING, TO_HOST, ALL_TO_HOST, DOUBLING, ADAPTERS = 3, 4, 8, 14, 10, 40


@dataclass(frozen=True)
class Change:
    """What is set otherwise, and at which cost; None: as it is."""

    cost: int
    token_budget: int | None = None
    rows: int | None = None  # sampled side by side
    checkpointing: bool = False
    zero: int | None = None
    offload: Offload | None = None
    factor: int = 1  # times as many devices
    adapter: Proposed | None = None

    def overrides(self, device: Device | None) -> list[str]:
        """Write it as overrides of the command line."""
        words = []
        if self.zero is not None:
            words.append(f"engine.zero={self.zero}")
        if self.offload is not None:
            words.append(f"engine.offload={self.offload}")
        if self.token_budget is not None:
            words.append(f"engine.token_budget={self.token_budget}")
        if self.checkpointing:
            words.append("backbone.gradient_checkpointing=true")
        if self.rows is not None:
            words.append(f"decode_batch={self.rows}")
        if self.adapter is not None:
            words.append(f"adapter={self.adapter}")
        if self.factor > 1 and device is not None:
            wide = device.count * self.factor
            if wide <= 8 and device.nodes == 1:
                words.append(f"device.count={wide}")
            else:
                words.append(f"device.nodes={device.nodes * self.factor}")
        return words

    def applied(self, work: Workload, setting: Setting) -> tuple[Workload, Setting]:
        """Return the workload and the setting with this change."""
        model = work.model
        if self.checkpointing:
            model = replace(model, checkpointing=True)
        if self.adapter is not None and can_become(model, self.adapter):
            model = become(model, self.adapter)
        decode = work.decode
        if self.rows is not None and decode is not None:
            decode = replace(decode, batch=min(decode.batch, self.rows))
        factor = self.factor if work.update is not None else 1  # others run in one process
        changed = Setting(
            token_budget=self.token_budget or setting.token_budget,
            processes=setting.processes * factor,
            zero=setting.zero if self.zero is None else self.zero,
            offload=self.offload or setting.offload,
        )
        return replace(work, model=model, decode=decode), changed


def can_become(model: Model, adapter: Proposed) -> bool:
    """Whether a training of this model is near enough to one with these adapters."""
    if adapter == "qlora":
        return model.packed is None and (model.adapter is None or model.rank > 0)
    return model.adapter is None


def become(model: Model, adapter: Proposed) -> Model:
    """The same base with these adapters, or with its last layers trained alone."""
    d = model.dimensions
    plain = replace(
        model, packed=None, drops=False, freed=3, kept=0, still=False, reached=None, zero=3
    )
    if adapter == "last_layers":
        own = LAST * (d.matrices // d.layers + 2 * d.hidden)  # with two norms each
        return replace(plain, adapter=own, rank=0, adapted=0, reached=LAST)
    rank, four_bits = RANKS[adapter], adapter == "qlora"
    packed = packed_bytes(double=True) if four_bits else None
    own = rank * d.linear_widths
    return replace(
        plain, adapter=own, rank=rank, adapted=d.linear_count, packed=packed, drops=four_bits
    )


@dataclass(frozen=True)
class Placed:
    """A stage's workload as it would be executed, and how much memory there is for it."""

    workload: Workload
    setting: Setting
    device: Device

    def memory(self, change: Change | None = None) -> Memory:
        """Widest moment, after a change."""
        work, setting = self.workload, self.setting
        if change is not None:
            work, setting = change.applied(work, setting)
        return peak(work, setting, self.device.allocation(work.model.dtype))

    def fits(self, change: Change | None = None) -> bool:
        """Whether it fits, after a change."""
        return self.memory(change).total <= self.device.memory


def nearest(placed: Sequence[Placed]) -> Change | None:
    """Cheapest change with which all of ``placed`` fit; None: none of those that are known."""
    for change in sorted(_changes(placed), key=lambda change: change.cost):
        if all(each.fits(change) for each in placed):
            return change
    return None


def _changes(placed: Sequence[Placed]) -> Iterator[Change]:
    budget = max(p.setting.token_budget for p in placed)
    floor = min((p.workload.update.group for p in placed if p.workload.update), default=budget)
    rows = max((p.workload.decode.batch for p in placed if p.workload.decode), default=0)
    setting = placed[0].setting
    trained = [p.workload.model for p in placed if p.workload.trained]
    shards, limit = range(setting.zero, 4), min((model.zero for model in trained), default=3)
    offloads: tuple[Offload, ...] = ("none", "optimizer", "all")
    cuda = placed[0].device.kind == "cuda"
    adapters: list[Proposed] = [a for a in PROPOSED if any(can_become(m, a) for m in trained)]
    choices = itertools.product(
        _halved(budget, max(floor, LEAST)),
        _halved(rows, LEAST // 8) if rows else [(0, None)],
        (False, True) if not placed[0].workload.model.checkpointing else (False,),
        shards,
        offloads[offloads.index(setting.offload) :] if cuda else (setting.offload,),
        (1, 2, 4, 8, 16),
        (None, *adapters),
    )
    for (a, tokens), (b, side), again, zero, offload, factor, adapter in choices:
        many = setting.processes * factor > 1
        if (zero > setting.zero and not many) or (offload != "none" and not zero):
            continue
        if offload == "all" and zero < 3:
            continue
        if zero > max(setting.zero, 0 if adapter == "qlora" else limit):
            continue
        if adapter == "qlora" and (zero or offload != "none"):
            continue
        if adapter == "last_layers" and offload != setting.offload:  # little is there to move
            continue
        cost = a + b + CHECKPOINTING * again + SHARDING * (zero - setting.zero)
        cost += {"none": 0, "optimizer": TO_HOST, "all": ALL_TO_HOST}[offload]
        cost += DOUBLING * (factor.bit_length() - 1)
        cost += ADAPTERS * (adapter is not None and any(m.adapter is None for m in trained))
        cost += 0 if adapter is None else PROPOSED[adapter]
        yield Change(
            cost=cost,
            token_budget=tokens,
            rows=side,
            checkpointing=again,
            zero=None if zero == setting.zero else zero,
            offload=None if offload == setting.offload else offload,
            factor=factor,
            adapter=adapter,
        )


def _halved(number: int, floor: int) -> list[tuple[int, int | None]]:
    """``number`` as it is, and halved again and again down to ``floor``, with the halvings."""
    found: list[tuple[int, int | None]] = [(0, None)]
    while number // 2 >= floor:
        number //= 2
        found.append((len(found), number))
    return found
