"""What a process has before its model, and what it holds without using: the allocator's part.

Torch's own count of what it has allocated (its profiler's) is that of `memory` within a tenth; a
process is larger. On CPUs the C library's ``memalign`` asks for more than it was asked for, so that
a freed block is given to smaller tensors and not to one of its own size (glibc 2.36). With blocks
that are handed back at once (``MALLOC_MMAP_THRESHOLD_``) a pass takes what is counted, and twice as
long.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignlab.capacity.activations import Arithmetic


@dataclass(frozen=True)
class Allocation:
    """How memory is handed out: what a process needs before a model, and what is lost between."""

    cpu: bool
    half: bool  # matrix products in bfloat16
    runtime: int  # bytes of Python and libraries, or of the CUDA context
    slack: float  # bytes reserved and unused, as a share of those that come and go
    training: int = 0  # bytes that a process has more once it trains: prepared products, free ends
    holes: float = 0.0  # share of the freed results of adapters' products that is not used again

    @property
    def arithmetic(self) -> Arithmetic:
        """How it computes."""
        return Arithmetic(self.half, self.cpu)
