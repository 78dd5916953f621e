"""Where and how training executes: device, threads, processes. Never what is computed.

One process, or many under ``torchrun``, ``accelerate launch`` or Slurm. A loss is already
divided by the count of the whole global batch, so gradients are *summed* over the processes, once
per step.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from alignlab.errors import ConfigError
from alignlab.run import Run
from alignlab.typed import Range

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

# How long a process waits for the others in one collective: the main one may read data.
GROUP_SECONDS = float(os.environ.get("ALIGNLAB_GROUP_SECONDS", "1800"))
_alone: ContextVar[bool] = ContextVar("alone", default=False)

BUCKET_BYTES = 32 * 2**20
# oneDNN keeps a compiled product, 0.7 MB in bfloat16, for each of the last 1,024 shapes it met,
# and every flat batch is another shape: a stage's memory would grow with its steps. A pass over a
# micro-batch uses about 60.
KEPT_PRODUCTS = "128"
USUAL_BUDGET = 4096  # tokens; passes without a gradient keep no activations and need no more


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How a stage executes here; outside of every key, because it must not change a result."""

    device: Literal["auto", "cpu", "cuda"]
    # Tokens of a micro-batch: memory, not mathematics; "auto": the most that is measured to fit
    token_budget: Annotated[int, Range(min=1)] | Literal["auto"]
    threads: Annotated[int, Range(min=1)] | None  # torch threads of a process; None: torch's choice
    data_workers: Annotated[int, Range(min=0)]  # processes that tokenise beside this one
    # What each process holds only its share of (DeepSpeed ZeRO): 0 nothing, 1 optimizer states,
    # 2 and gradients, 3 and parameters
    zero: Annotated[int, Range(min=0, max=3)]
    deterministic: bool  # only deterministic kernels, an error where there is none
    checkpoint_every_seconds: Annotated[float, Range(min=0)]  # 0: after every step
    keep_checkpoints: Annotated[int, Range(min=1)]
    log_every: Annotated[int, Range(min=1)]  # optimizer steps per metrics line
    progress: bool
    # What waits in CPU memory while it is not computed with: optimizer states, or also parameters
    offload: Literal["none", "optimizer", "all"] = "none"
    memory_gb: Annotated[float, Range(min=0, min_open=True)] | None = None  # for "auto": at most

    def __post_init__(self) -> None:
        """Refuse an offload that has nothing to act on, rather than train without it."""
        if self.offload != "none" and not self.zero:
            raise ConfigError(
                f"engine.offload={self.offload} is a part of ZeRO, and engine.zero is 0; use "
                "engine=zero2 (or zero1, zero3), or engine.offload=none."
            )
        if self.offload == "all" and self.zero != 3:
            raise ConfigError(
                f"engine.offload=all also moves parameters, which only ZeRO 3 shards, and "
                f"engine.zero is {self.zero}; use engine=zero3, or engine.offload=optimizer."
            )

    @property
    def budget(self) -> int:
        """Tokens of a micro-batch; of "auto" a usual number, until a training has measured one."""
        return USUAL_BUDGET if self.token_budget == "auto" else self.token_budget

    def workers(self) -> Workers:
        """Set up threads, device and process group, once per process; return the processes.

        Raises:
            ConfigError: ``device=cuda`` on a machine without a usable GPU.
        """
        workers = _start(self.device, self.threads, self.deterministic)
        return workers.by_itself() if _alone.get() else workers


@contextmanager
def alone() -> Iterator[None]:
    """Let this process execute by itself what is inside, whatever others it was started with."""
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


@functools.lru_cache(maxsize=1)
def _start(device: str, threads: int | None, deterministic: bool) -> Workers:
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device is 'cuda', but torch sees no GPU; use engine.device=cpu.")
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first cuBLAS call
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # (else deterministic mode writes NaN into every new buffer first: a debugging aid, and slow)
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if on_cpu:  # transformers asks DeepSpeed when it saves, which else guesses, with a warning
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # read at the first product of the process
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KEPT_PRODUCTS)
    if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Both keep the group that is there at their import in default arguments for ever, so that
        # gloo's threads would outlive it, and one may abort an interpreter that winds down.
        import deepspeed  # noqa: F401
        import torch.distributed.nn.functional
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=GROUP_SECONDS))
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[patience])
    if accelerator.num_processes > 1:
        atexit.register(accelerator.end_training)  # gloo aborts a process that leaves without it
    return Workers(accelerator)


class Workers:
    """The processes that train together; alone, every method costs nothing."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.rank: int = accelerator.process_index
        self.world: int = accelerator.num_processes
        self.is_main: bool = accelerator.is_main_process
        self.device: torch.device = accelerator.device

    def by_itself(self) -> Workers:
        """Return this process as if there were no other."""
        single = copy(self)
        single.rank, single.world, single.is_main = 0, 1, True
        return single

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the part of ``items`` that is this process's: every world-th one."""
        return items[self.rank :: self.world]

    def whole(self, mine: Sequence[T]) -> list[T]:
        """Every process's part of what `share` dealt out, in the order before it was dealt."""
        parts = self.gather(list(mine))
        items = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            items[rank :: self.world] = part  # type: ignore[assignment]
        return items  # type: ignore[return-value]

    def own(self, run: Run) -> Run:
        """Return ``run`` on the main process; on the others, one that is read and never written."""
        return run if self.is_main else Onlooker(run.path)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to this process's gradients."""
        self._accelerator.backward(loss)

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the processes, same on each."""
        return self._reduce(values, "SUM")

    def max(self, values: Tensor) -> Tensor:
        """Elementwise maximum over the processes, same on each."""
        return self._reduce(values, "MAX")

    def highest(self, *numbers: int) -> list[int]:
        """Each number's maximum over the processes; what all must agree on before they act."""
        if self.world == 1:
            return list(numbers)
        import torch

        found: list[int] = self.max(torch.tensor(numbers, device=self.device)).tolist()
        return found

    def reduce_sums(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sum of every name over the processes (which must give the same names)."""
        if self.world == 1:
            return dict(sums)
        import torch

        names = sorted(sums)
        values = torch.tensor([sums[n] for n in names], dtype=torch.float64, device=self.device)
        return dict(zip(names, self.sum(values).tolist(), strict=True))

    def union(self, names: Iterable[str]) -> list[str]:
        """All names that any process has, in one order on every process."""
        return sorted({name for part in self.gather(list(names)) for name in part})

    def gather(self, item: T) -> list[T]:
        """One picklable item from every process, by rank, on every process."""
        if self.world == 1:
            return [item]
        import torch.distributed as dist

        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def from_main(self, item: T) -> T:
        """Give the main process's picklable item to every process."""
        return self.gather(item)[0]

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            self._accelerator.wait_for_everyone()

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with the main process's values."""
        if self.world == 1:
            return
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)

    def sum_gradients_(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over the processes in place, in buckets.

        A parameter without a gradient on one process counts as zero there; without a gradient on
        every process it stays without, as it would alone (so AdamW leaves it unmoved).
        """
        if self.world == 1:
            return
        import torch

        has = torch.tensor([p.grad is not None for p in parameters], device=self.device)
        wanted = self.max(has.to(torch.uint8)).tolist()
        gradients: list[Tensor] = []
        for parameter, any_has in zip(parameters, wanted, strict=True):
            if any_has:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = self.sum(torch.cat([g.reshape(-1) for g in bucket]))
            parts = flat.split([g.numel() for g in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def _reduce(self, values: Tensor, operation: str) -> Tensor:
        if self.world == 1:
            return values
        import torch.distributed as dist

        result = values.detach().clone()
        dist.all_reduce(result, op=getattr(dist.ReduceOp, operation))
        return result


class Onlooker(Run):
    """A run as the processes beside the main one see it: they read it, and write nothing."""

    def log(self, step: int, metrics: Mapping[str, float], split: str = "train") -> None:
        """Leave the line to the main process."""

    def sample(self, row: Mapping[str, Any]) -> None:
        """Leave the row to the main process."""

    def update_record(self, **fields: Any) -> None:
        """Leave the record to the main process."""


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group neighbours of one dtype, each group of at most about ``BUCKET_BYTES``."""
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if not buckets or size > room or buckets[-1][0].dtype != tensor.dtype:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(tensor)
        room -= size
    return buckets
