"""What a plan needs of its device, as ``alignlab plan`` says it and ``alignlab run`` minds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alignlab.capacity.device import Device, visible_memory
from alignlab.capacity.forecast import Forecast, Need, Stated, forecast
from alignlab.capacity.memory import Memory, Setting
from alignlab.commands.text import columns, count
from alignlab.costs import Rates
from alignlab.engine.progress import clock
from alignlab.errors import ConfigError

if TYPE_CHECKING:
    from alignlab.engine.distributed import Engine
    from alignlab.launch.launcher import Launch
    from alignlab.launch.resources import Resources
    from alignlab.plan import Node, Plan
    from alignlab.run import Store

HERE = Device(
    name="this machine",
    kind="cpu",
    count=1,
    nodes=1,
    memory_gib="auto",
    tflops="auto",
    tflops_float32="auto",
    utilisation=0.25,
    bandwidth_gbs=20,
    layer_microseconds=150,
    interconnect_gbs=5,
    network_gbs=1,
    host_gbs=20,
    price_per_hour=None,
    gpu=None,
)
PARTS_HEADER = (
    "memory of a process", "at", "weights", "grads", "optim", "activ", "logits", "KV", "other",
    "all",
)  # fmt: skip
SHOWN = 16  # rows of the table of parts


def forecast_of(
    plan: Plan, engine: Engine, launch: Launch, device: Device | None, store: Store
) -> Forecast:
    """Work out what the stages of ``plan`` need where they are to be executed."""
    todo = {node.run for node in plan.pending()}
    settings: dict[tuple[str, str], Setting] = {}
    gpu = (device.gpu if device else None) or ""
    rates = Rates.of(store) if gpu else Rates([])

    def stated(node: Node) -> Stated:
        word = (node.name, node.kind)
        if word not in settings:
            given, together = launch.resources_of(node), node.stage.together
            settings[word] = setting_of(engine, given, device, together)
        return Stated(
            name=node.name,
            workload=node.estimate.workload,
            setting=settings[word],
            seconds=node.seconds,
            measured=rates.on(gpu, node.kind, node.estimate, settings[word].processes),
            parents=tuple(node.parents.values()),
            todo=node.run in todo,
        )

    stages = {run: stated(node) for run, node in plan.nodes.items()}
    return forecast(stages, device, present(engine), launch.width(plan))


def setting_of(
    engine: Engine, resources: Resources, device: Device | None, together: bool
) -> Setting:
    """How a stage is executed: in as many processes as are asked for, else on the whole device.

    One process where the others would have nothing to do.
    """
    default = replace(resources, nodes=1, processes="auto", gpus=0) == resources
    processes = resources.world if not default or device is None else device.devices
    return Setting(engine.budget, processes if together else 1, engine.zero, engine.offload)


def present(engine: Engine) -> Device:
    """Stand-in for this machine: its GPU where one is seen and not forbidden, else its CPU."""
    found = None if engine.device == "cpu" else visible_memory()
    if found is None:
        return HERE
    return replace(HERE, kind="cuda", memory_gib=found / 2**30, tflops=100.0, tflops_float32=20.0)


def to_json(plan: Plan, found: Forecast) -> dict[str, Any]:
    """Return the object that ``alignlab plan --json`` prints."""
    stated = plan.to_json()
    for stage, run in zip(stated["stages"], plan.nodes, strict=True):
        need = found.needs[run]
        stage |= {"seconds": need.seconds, **need.to_json()}
        if need.memory is not None:
            stage["memory_bytes"] = need.memory.total
    return {**stated, "forecast": found.to_json()}


def require_room(found: Forecast) -> None:
    """Refuse stages that do not fit, before anything is submitted.

    Raises:
        ConfigError: with the stages, what they need, and the nearest setting that fits.
    """
    if not found.misfits:
        return
    names = [f"{found.names[run]} needs {_total(found.needs[run])}" for run in found.misfits[:4]]
    more = len(found.misfits) - len(names)
    rest = f", and {more} more" if more else ""
    where = found.device.name if found.device else "the GPU of this machine"
    raise ConfigError(
        f"device: {', '.join(names)}{rest}, and {where} has {count(found.limit or 0, 'B')}. "
        f"{found.advice()} (`alignlab plan` shows the parts.)"
    )


def report(found: Forecast) -> str:
    """Memory by part and the totals on a named device; nothing without one."""
    if found.device is None:
        return "" if not found.misfits else f"\n\n{_verdict(found)}"
    return f"\n\n{parts_table(found)}\n\n{_verdict(found)}\n{_totals(found)}"


def parts_table(found: Forecast) -> str:
    """One row for every distinct stage: the widest moment of a process, part by part."""
    rows: list[Sequence[str]] = [PARTS_HEADER]
    seen: set[tuple[str, Memory]] = set()
    for run, need in found.needs.items():
        memory = need.memory
        if memory is None or (found.names[run], memory) in seen or len(rows) > SHOWN:
            continue
        seen.add((found.names[run], memory))
        other = memory.buffers + memory.overhead + memory.runtime
        cells = (
            memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits,
            memory.cache, other, memory.total,
        )  # fmt: skip
        mark = "" if need.fits else "  <- too much"
        rows.append(
            (found.names[run], memory.phase, *map(count, cells[:-1]), count(cells[-1]) + mark)
        )
    return columns(rows, right=range(2, 9))


def _verdict(found: Forecast) -> str:
    if not found.misfits:
        return "Every stage fits."
    names = ", ".join(dict.fromkeys(found.names[run] for run in found.misfits))
    return f"DOES NOT FIT into {count(found.limit or 0, 'B')}: {names}.\n{found.advice()}"


def _totals(found: Forecast) -> str:
    device = found.device
    assert device is not None
    nodes = f" x {device.nodes} nodes" if device.nodes > 1 else ""
    side = f"{found.width} stage{'s'[: found.width != 1]} at a time"
    money = "" if found.price is None else f", about ${found.price:,.2f}"
    hosts = (m.host * n.processes for n in found.needs.values() for m in n.moments)
    host = max(hosts, default=0)
    beside = f" Main memory of all processes: up to {count(host, 'B')}." if host else ""
    return (
        f"On {device.name}{nodes}: {clock(found.wall)} with {side}, critical path "
        f"{clock(found.critical)}{money}.{beside}"
    )


def _total(need: Need) -> str:
    return count(need.memory.total if need.memory else 0, "B")
