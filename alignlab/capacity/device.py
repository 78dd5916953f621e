"""A named device: how much memory, how fast, what it costs. The ``device`` group of conf/."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from alignlab.capacity.allocator import Allocation
from alignlab.capacity.memory import MIB
from alignlab.typed import Range

# Measured in experiments/plan_accuracy: resident bytes of Python, torch, transformers, peft and a
# tokenizer; what the heap keeps at its end once a stage trains; products that oneDNN has prepared
# for the shapes it met; what is lost of all that comes and goes, and of what adapters free.
CPU_RUNTIME, CPU_HEAP, CPU_PREPARED = 420_000_000, 35_000_000, 40_000_000
CPU_SLACK, CPU_HOLES = 0.05, 0.41
CUDA_RUNTIME = 900 * MIB  # context, cuBLAS workspaces, a kernel image; assumed
CUDA_SLACK = 0.08  # blocks of the caching allocator that nothing fits into; assumed

Positive = Annotated[float, Range(min=0, min_open=True)]


@dataclass(frozen=True, kw_only=True)
class Device:
    """``nodes`` machines with ``count`` devices each."""

    name: str
    kind: Literal["cuda", "cpu"]
    count: Annotated[int, Range(min=1)]  # per node
    nodes: Annotated[int, Range(min=1)]
    memory_gib: Positive | Literal["auto"]  # of one device, as torch sees it
    tflops: Positive | Literal["auto"]  # dense bfloat16 peak
    tflops_float32: Positive | Literal["auto"]
    utilisation: Annotated[float, Range(min=0, max=1, min_open=True)]  # of the peak, in training
    bandwidth_gbs: Positive  # of its memory
    layer_microseconds: Annotated[float, Range(min=0)]  # least time of a block in decoding
    interconnect_gbs: Positive  # of one device to the others of its node
    network_gbs: Positive  # of one device to other nodes
    host_gbs: Positive  # of one device to main memory
    price_per_hour: Annotated[float, Range(min=0)] | None  # of one device
    gpu: str | None  # part of its name as nvidia-smi has it: runs on it tell how fast it is

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.count * self.nodes

    @property
    def memory(self) -> int:
        """Bytes of one device; of the whole machine for ``auto``."""
        if self.memory_gib == "auto":
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return int(self.memory_gib * 2**30)

    def allocation(self, dtype: str) -> Allocation:
        """How a stage that computes in ``dtype`` is laid out on it."""
        return allocation(self.kind == "cpu", dtype)

    def rate(self, half: bool) -> float:
        """FLOP/s of one device in training."""
        peak = self.tflops if half else self.tflops_float32
        if peak == "auto":
            return matrix_rate() * self.utilisation
        return peak * 1e12 * self.utilisation


def allocation(cpu: bool, dtype: str) -> Allocation:
    """Overheads of a CPU process, measured, or of CUDA, assumed."""
    half = dtype == "bfloat16" or (dtype == "auto" and (not cpu or fast_bfloat16()))
    if cpu:
        training = CPU_HEAP + (CPU_PREPARED if half else 0)
        return Allocation(True, half, CPU_RUNTIME, CPU_SLACK, training, CPU_HOLES)
    return Allocation(cpu=False, half=half, runtime=CUDA_RUNTIME, slack=CUDA_SLACK)


@cache
def matrix_rate() -> float:
    """FLOP/s of an fp32 matrix product with NumPy on this machine.

    The best of many short ones: beside other work a product on several threads waits for the one
    whose core is taken, and is then tens of times slower.
    """
    import numpy as np

    size = 384
    a = np.ones((size, size), np.float32)
    best = math.inf
    for _ in range(30):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / max(best, 1e-6)


@cache
def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 well, as ``dtype: auto`` asks torch; without torch."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return False
    words = file.read_text(encoding="utf-8").split()
    return "avx512_bf16" in words or "amx_bf16" in words


@cache
def visible_memory() -> int | None:
    """Bytes of the smallest NVIDIA GPU of this machine; None where none is seen."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # a driver that does not answer: the stage itself will say so
    sizes = [int(line) for line in done.stdout.split() if line.isdigit()]
    return min(sizes) * MIB if sizes else None
