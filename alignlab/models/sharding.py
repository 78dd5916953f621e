"""Views whose passes run through an engine that holds their weights in shards (ZeRO).

An engine wraps one module and hooks its forward and backward passes. `Container` is that module for
all views at once: its forward pass is whatever computation it is handed. Under ZeRO 3 a weight is
whole only while the module that owns it computes, so the engine gets copies of the modules that
share every weight (`sharing`): the hooked copies train, and the modules themselves, without hooks,
sample and score after their weights were gathered.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.models.auto import encodes
from alignlab.models.heads import ScalarHead
from alignlab.models.logps import Head, head_of
from alignlab.models.smoothing import predict

if TYPE_CHECKING:
    from alignlab.models.bodies import Bodies

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class Container(nn.Module):
    """All modules of a backbone as one; a forward pass is the computation that it is called with.

    Its output tensors must be in a tensor, a tuple or a list, which is where an engine hooks them.
    """

    def __init__(self, parts: Mapping[str, nn.Module], *, gathers: bool) -> None:
        super().__init__()
        self._gathers = gathers  # weights, where they are used
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, compute: Callable[[], T]) -> T:
        """Run ``compute`` inside of the engine's forward pass."""
        hooks = torch.autograd.graph.saved_tensors_hooks(_kept, _back)
        with hooks if self._gathers else nullcontext():
            return compute()


@dataclass(frozen=True)
class _ViewOfShare:
    """What a backward pass needs of a weight that is in shares until then, and whole in it."""

    weight: Tensor
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def _kept(saved: Tensor) -> Tensor | _ViewOfShare:
    """Keep no view of a gathered weight: torch's linear layers save a transposed one.

    It would hold the whole weight from the forward to the backward pass, whatever is released.
    """
    base = saved._base
    if base is None or not is_share(base):
        return saved
    return _ViewOfShare(base, saved.size(), saved.stride(), int(saved.storage_offset()))


def _back(kept: Tensor | _ViewOfShare) -> Tensor:
    if isinstance(kept, _ViewOfShare):
        return kept.weight.detach().as_strided(kept.size, kept.stride, kept.offset)
    return kept


class Predictor(nn.Module):
    """The language-model head as a module of its own, so that its weight is whole where it is used.

    The log-probabilities are computed in chunks outside of the model (`logps`), where no hook of
    the model would gather the weight.
    """

    bias: Tensor | None

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.weight = head.weight
        self.register_parameter("bias", head.bias)  # type: ignore[arg-type]
        self._shape = replace(head, bias=None)

    def forward(
        self,
        hidden: Tensor,
        target_ids: Tensor,
        temperature: float,
        entropy: bool,
        mean: bool = False,
    ) -> tuple[Tensor, ...]:
        """Log-probabilities ``(N,)`` of the targets, and what else is asked for (see `predict`)."""
        head = replace(self._shape, weight=self.weight, bias=self.bias)
        return predict(hidden, head, target_ids, temperature, entropy, mean)


@dataclass
class Sharding:
    """The modules that an engine holds, and the engine's forward pass while it trains."""

    container: Container
    bodies: Bodies
    heads: Mapping[str, ScalarHead]
    predictors: Mapping[str, Predictor]  # of every view; none where weights are always whole
    run: Callable[[Callable[[], Any]], Any] | None = None  # None: before and after training
    weights: bool = False  # whether processes hold shares of the weights too


def engine_for(sharding: Sharding | None, *, training: bool, alike: bool) -> Sharding | None:
    """The engine that a pass goes through, if any: one that trains, or gathers like all others."""
    if sharding is None or sharding.run is None:
        return None
    return sharding if training or (alike and sharding.weights) else None


def sharding_of(
    bodies: Bodies,
    heads: Mapping[str, ScalarHead],
    views: Iterable[str],
    *,
    weights: bool,
) -> Sharding:
    """All views as one module for an engine that shards what they train, or all ``weights``.

    Raises:
        ConfigError: adapters that compute with a weight outside of the module that gathers it.
    """
    predictors: dict[str, Predictor] = {}
    if weights:
        _require_gathering(bodies)
        bodies = bodies.sharing()
        heads = {name: sharing(head) for name, head in heads.items()}
        models = {name: bodies.activate(name) for name in views}
        predictors = {n: Predictor(head_of(m)) for n, m in models.items() if not encodes(m.config)}
    parts: dict[str, nn.Module] = {
        **{f"{name}_head": head for name, head in heads.items()},  # float32 before the rest
        **bodies.modules(),
        **{f"{name}_predictor": predictor for name, predictor in predictors.items()},
    }
    return Sharding(Container(parts, gathers=weights), bodies, heads, predictors, weights=weights)


def _require_gathering(bodies: Bodies) -> None:
    """Refuse peft's adapters on bare parameters (fused experts): they would train wrongly."""
    for part in bodies.modules().values():
        for name, module in part.named_modules():
            if type(module).__name__ == "ParamWrapper":
                raise ConfigError(
                    f"engine.zero=3 cannot train adapters on {name}: experts whose weights are one "
                    "parameter are adapted outside of the module that gathers it. Name the other "
                    "layers (adapter.target_modules=[q_proj,k_proj,v_proj,o_proj]), or use "
                    "engine=zero2 or adapter=full."
                )


def sharing(module: M) -> M:
    """Copy of a module that owns the same parameters and buffers."""
    return copy.deepcopy(module, {id(t): t for t in (*module.parameters(), *module.buffers())})


@dataclass(frozen=True)
class Placing:
    """Leaves every process its share of each weight, on its device, or with ``offload`` in memory.

    One process ``reads`` a model. One weight at a time travels to the others, which build theirs
    empty, so nobody else ever holds the whole model, and no device does.
    """

    offload: bool
    reads: bool

    def __call__(self, module: nn.Module) -> None:
        """Share out the weights of a model that was read, or built empty, on the CPU."""
        share_out(module, offload=self.offload)


def share_out(module: nn.Module, *, offload: bool) -> None:
    """Share out the first process's weights, and give its buffers to all."""
    import torch.distributed as dist

    deepspeed = deepspeed_here()
    for buffer in module.buffers():
        buffer.data = buffer.data.to(deepspeed.get_accelerator().current_device_name())
        dist.broadcast(buffer.view(torch.uint8) if buffer.dtype == torch.bool else buffer, 0)
    remote = {"remote_device": "cpu", "pin_memory": torch.cuda.is_available()} if offload else {}
    deepspeed.zero.Init(module=module, mem_efficient_linear=False, dtype=torch.float32, **remote)


def deepspeed_here() -> Any:
    """DeepSpeed, quiet, with a process group to work in; alone, one of this process."""
    import deepspeed
    import torch.distributed as dist

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for old in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # names that torch has changed
        warnings.filterwarnings("ignore", f".*{old}. is deprecated", FutureWarning)
    if not torch.cuda.is_available():
        # An extension for sums through shared memory would be compiled at its first use, which
        # takes a minute and a compiler; gloo sums too.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", "0")
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(verbose=False)
    return deepspeed


def is_share(parameter: Tensor) -> bool:
    """Whether a process holds only its share of a parameter (ZeRO 3)."""
    return hasattr(parameter, "ds_id")


def elements(parameter: Tensor) -> int:
    """Elements of a whole parameter, whatever this process holds of it, and in how many bits."""
    if (quantized := getattr(parameter, "quant_state", None)) is not None:
        return math.prod(quantized.shape)
    return int(parameter.ds_numel) if is_share(parameter) else parameter.numel()  # type: ignore[attr-defined]


def dimensions(parameter: Tensor) -> int:
    """Dimensions of a whole parameter."""
    return len(parameter.ds_shape) if is_share(parameter) else parameter.ndim  # type: ignore[attr-defined]


def held(parameter: Tensor) -> Tensor:
    """What this process keeps of a parameter: all of it, or its share as a flat tensor."""
    return parameter.ds_tensor if is_share(parameter) else parameter.detach()  # type: ignore[attr-defined]


def gathered(parameters: Iterable[Tensor]) -> AbstractContextManager[None]:
    """Whole parameters inside the block, shares again afterwards; every process must enter it."""
    shares = [parameter for parameter in parameters if is_share(parameter)]
    if not shares:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    context: AbstractContextManager[None] = GatheredParameters(shares)
    return context
