"""What every stage of a plan needs of a device: memory, time, money, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from alignlab.capacity.device import Device
from alignlab.capacity.duration import Duration, duration
from alignlab.capacity.fit import Change, Placed, nearest
from alignlab.capacity.memory import PARTS, Memory, Setting, peak, phases
from alignlab.capacity.schedule import critical_path, makespan
from alignlab.capacity.workload import Workload

HOUR = 3600.0


@dataclass(frozen=True)
class Stated:
    """One stage as it would be executed."""

    name: str
    workload: Workload | None
    setting: Setting
    seconds: float  # by what the store has seen here
    measured: float | None  # by what it has seen on the named device
    parents: tuple[str, ...]
    todo: bool


@dataclass(frozen=True)
class Need:
    """What one stage needs of its device."""

    memory: Memory | None  # of each process, at the widest moment; None: computes with no model
    moments: tuple[Memory, ...]
    duration: Duration | None  # worked out; None where there is nothing to work it out from
    by: Literal["model", "store"]  # where `seconds` are from
    seconds: float
    processes: int
    price: float | None
    fits: bool

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "memory": None if self.memory is None else described(self.memory),
            "moments": [described(moment) for moment in self.moments],
            "duration": None if self.duration is None else vars(self.duration),
            "processes": self.processes,
            "seconds_by": self.by,
            "hours": self.seconds / HOUR,
            "price": self.price,
            "fits": self.fits,
        }


def described(memory: Memory) -> dict[str, Any]:
    """Bytes of a moment by part, and in all."""
    parts = {name: getattr(memory, name) for name in PARTS}
    return {"phase": memory.phase, **parts, "total": memory.total, "host": memory.host}


@dataclass(frozen=True)
class Forecast:
    """The needs of a plan's stages, by run name, and of all together."""

    device: Device | None
    limit: int | None  # bytes of one device; None: nobody knows
    needs: Mapping[str, Need]
    names: Mapping[str, str]
    todo: frozenset[str]
    change: Change | None  # with which all would fit, where something does not
    width: int  # stages at a time
    critical: float  # seconds of the longest chain of what is to do
    wall: float  # seconds until all is done, `width` at a time
    price: float | None

    @property
    def misfits(self) -> list[str]:
        """Run names of the stages that are to do and do not fit."""
        return [run for run, need in self.needs.items() if run in self.todo and not need.fits]

    def advice(self) -> str:
        """Say the nearest setting that fits, as overrides; or that there is none."""
        if self.change is None:
            return "No setting that is known here makes all of them fit: use a larger device."
        words = " ".join(self.change.overrides(self.device))
        return f"The nearest setting that fits: {words}"

    def to_json(self) -> dict[str, Any]:
        """Everything about all stages together."""
        return {
            "device": None if self.device is None else self.device.name,
            "memory_bytes_of_a_device": self.limit,
            "fits": not self.misfits,
            "nearest": None if self.change is None else self.change.overrides(self.device),
            "at_a_time": self.width,
            "critical_path_hours": self.critical / HOUR,
            "hours": self.wall / HOUR,
            "price": self.price,
        }


def forecast(
    stages: Mapping[str, Stated], device: Device | None, here: Device, width: int
) -> Forecast:
    """Work out all stages; ``here`` stands for the present machine where no device is named."""
    place = device or here
    needs: dict[str, Need] = {}
    known: dict[tuple[int, Setting], Need] = {}  # stages of a sweep share their workloads
    for run, stage in stages.items():
        key = (id(stage.workload), stage.setting)
        if key not in known:
            known[key] = _need(stage, device, place)
        need = known[key]
        needs[run] = _timed(need, stage, place)
    todo = {run: needs[run].seconds for run, stage in stages.items() if stage.todo}
    parents = {run: stages[run].parents for run in todo}
    prices = [needs[run].price for run in todo]
    return Forecast(
        device=device,
        limit=place.memory if device is not None or place.kind == "cuda" else None,
        needs=needs,
        names={run: stage.name for run, stage in stages.items()},
        todo=frozenset(todo),
        change=_change({run: stages[run] for run in todo}, needs, place),
        width=width,
        critical=critical_path(todo, parents),
        wall=makespan(todo, parents, width),
        price=None if None in prices else sum(p for p in prices if p is not None),
    )


def _need(stage: Stated, device: Device | None, place: Device) -> Need:
    work = stage.workload
    if work is None:
        return Need(None, (), None, "store", 0.0, 1, None, True)
    allocation = place.allocation(work.model.dtype)
    moments = tuple(phases(work, stage.setting, allocation))
    memory = peak(work, stage.setting, allocation)
    taken = None
    if device is not None and device.kind != "cpu":
        taken = duration(work, stage.setting, device)
    bounded = device is not None or place.kind == "cuda"
    fits = not bounded or memory.total <= place.memory
    return Need(memory, moments, taken, "model", 0.0, stage.setting.processes, None, fits)


def _timed(need: Need, stage: Stated, place: Device) -> Need:
    """Seconds as they were seen on this device; else worked out, where one is named; else here."""
    by: Literal["model", "store"] = "store"
    seconds = stage.seconds if stage.measured is None else stage.measured
    if stage.measured is None and need.duration is not None:
        seconds, by = need.duration.seconds, "model"
    return replace(need, seconds=seconds, by=by, price=_price(stage, place, seconds))


def _price(stage: Stated, place: Device, seconds: float) -> float | None:
    if place.price_per_hour is None:
        return None
    processes = stage.setting.processes if stage.workload is not None else 0  # no device is used
    return seconds / HOUR * place.price_per_hour * processes


def _change(
    stages: Mapping[str, Stated], needs: Mapping[str, Need], place: Device
) -> Change | None:
    """Nearest change with which all stages fit, those included that fit as they are."""
    if all(needs[run].fits for run in stages):
        return None
    distinct: dict[tuple[int, Setting], Placed] = {}
    for stage in stages.values():
        if stage.workload is not None:
            key = (id(stage.workload), stage.setting)
            distinct[key] = Placed(stage.workload, stage.setting, place)
    tight: Sequence[Placed] = sorted(distinct.values(), key=lambda placed: -placed.memory().total)[
        :8
    ]
    return nearest(tight)
