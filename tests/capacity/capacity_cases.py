"""Models, workloads and devices small enough to be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alignlab.capacity.allocator import Allocation
from alignlab.capacity.device import Device
from alignlab.capacity.workload import Decode, Model, Update, Workload
from alignlab.models.dimensions import Dimensions
from alignlab.models.memory import llama_shapes
from alignlab.models.published import PUBLISHED

# 2 blocks, H 8, I 16, A 8, K 4, two heads, 100 words: matrices 2·(8·8 + 2·4·8 + 8·8 + 3·8·16)
SMALL = Dimensions(
    layers=2, hidden=8, inner=16, queries=8, keys=4, heads=2, vocabulary=100, gated=True,
    tied=True, total=2000, matrices=1152, largest=800, linear_widths=2 * 136, linear_count=7,
)  # fmt: skip
CUDA = Allocation(cpu=False, half=True, runtime=0, slack=0.0)
CPU = Allocation(cpu=True, half=False, runtime=0, slack=0.0)
DEVICE = Device(
    name="toy", kind="cuda", count=1, nodes=1, memory_gib=1.0, tflops=1.0, tflops_float32=0.5,
    utilisation=0.5, bandwidth_gbs=1.0, layer_microseconds=0.0, interconnect_gbs=1.0,
    network_gbs=0.1, host_gbs=1.0, price_per_hour=3.6, gpu="TOY",
)  # fmt: skip


def full(**changed: Any) -> Model:
    return replace(Model(SMALL, None, 0, 0, "bfloat16", False), **changed)


def lora(**changed: Any) -> Model:
    return replace(Model(SMALL, 544, 2, 7, "bfloat16", False), **changed)


def update(**changed: Any) -> Update:
    return replace(Update(steps=10, tokens=64, group=16, row=16, targets=0.5), **changed)


def work(model: Model | None = None, **changed: Any) -> Workload:
    return replace(Workload(model or full(), trained=1, update=update()), **changed)


def sampling(**changed: Any) -> Decode:
    return replace(Decode(rows=6, batch=4, prompt=10, new=30), **changed)


def known(name: str, *, rank: int = 0, only: tuple[str, ...] = (), **changed: Any) -> Model:
    """A published model in bfloat16; with adapters on all linear layers, or on those named."""
    stated = PUBLISHED[name]
    shapes = llama_shapes(stated)
    dimensions = Dimensions.of(shapes, stated)
    own, adapted = None, 0
    if rank:
        block = [
            s for n, s in shapes.items()
            if len(s) == 2 and ".layers." in n and (not only or any(o in n for o in only))
        ]  # fmt: skip
        own, adapted = rank * sum(map(sum, block)), len(block) // dimensions.layers
    return replace(Model(dimensions, own, rank, adapted, "bfloat16", False), **changed)
