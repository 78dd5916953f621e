"""Training where processes hold shares of optimizer states, gradients, weights (DeepSpeed ZeRO).

`deepspeed.initialize` wraps one module that holds all views, so a shared base is there once. What
is computed does not change: losses are divided by the counts of the global batch, so gradients are
*summed* over the processes; they are clipped at their joint norm; a step whose loss or norm is not
finite anywhere changes nothing. Of ``N`` trained weights, each of ``W`` processes holds

=====  ==================  ==================  ==================================
stage  weights             gradients           master weights and both moments
=====  ==================  ==================  ==================================
1      N                   N                   3 N / W
2      N                   N / W               3 N / W
3      N / W, of frozen    N / W               3 N / W
       ones too
=====  ==================  ==================  ==================================

in float32 (frozen matrices in the number format of the products). DeepSpeed updates a copy of the
weights, the master weights, which is why float32 weights are there twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignlab.engine.algorithms import require_whole
from alignlab.engine.masters import EvenMasters, FlatMasters, Masters
from alignlab.engine.shares import MOMENTS, Reader, Section, Share
from alignlab.engine.update import Replicated, trained_weights
from alignlab.engine.work import Micro
from alignlab.errors import ConfigError
from alignlab.models.sharding import (
    Placing,
    deepspeed_here,
    elements,
    held,
    is_share,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignlab.engine.distributed import Engine, Workers
    from alignlab.engine.optimizer import Optimizer
    from alignlab.engine.update import Update
    from alignlab.models.backbone import Backbone
    from alignlab.models.bodies import Change
    from alignlab.models.techniques import Technique

BUCKET_ELEMENTS = 20_000_000  # that travel at a time, in buffers that stay
# DeepSpeed counts backward passes and overwrites its gradient buffers at the first of a step; a
# view whose turn comes later would add to those of the step before. So the count begins anew with
# every view, whose trained weights no other view has.
FIRST_PASS = {2: -1, 3: 0}


class Sharded:
    """All views of a backbone in one DeepSpeed engine."""

    def __init__(
        self,
        backbone: Backbone,
        views: Sequence[str],
        optimizer: Optimizer,
        engine: Engine,
        workers: Workers,
    ) -> None:
        self.workers, self.backbone, self.views, self.stage = workers, backbone, views, engine.zero
        named, self._parameters = trained_weights(backbone, views)
        workers.broadcast_(p for p in self._parameters.values() if not is_share(p))
        idle = _idle(backbone, views)
        self.change: Change | None = None  # who takes part in updates is refused: `require_stage`
        rates = backbone.config.adapter.rates
        self.optimizer = optimizer.build(_without(named, idle), rates)
        self._updated = {n: p for n, p in self._parameters.items() if id(p) not in idle}
        sharding = backbone.shard(weights=engine.zero == 3)
        groups = [list(group["params"]) for group in self.optimizer.param_groups]
        self._engine, *_ = deepspeed_here().initialize(
            model=sharding.container,
            optimizer=self.optimizer,
            config=_config(engine, optimizer, list(self._updated.values())),
        )
        sharding.run = self._engine
        self.share = Share(workers.rank, workers.world)
        self.weights = {name: held(p) for name, p in self._parameters.items()}
        self._masters: Masters = (
            FlatMasters(self._updated, groups, self.optimizer, workers.rank)
            if engine.zero < 3
            else EvenMasters(self._updated, self.optimizer, self.share, self._make_states)
        )
        # ZeRO 3 has no sum; its mean times the processes is one, exactly for powers of two.
        self._factor = float(workers.world) if engine.zero == 3 else 1.0
        self._seen: set[str] = set()  # views with a gradient in this step

    def even(self, micros: Sequence[Micro]) -> Sequence[Micro]:
        """Micro-batches by view, as many of each as the process with the most has of it."""
        dealt = self.workers.gather([micro.view for micro in micros])
        out: list[Micro] = []
        for view in dict.fromkeys(view for part in dealt for view in part):
            own = [micro for micro in micros if micro.view == view]
            missing = max(part.count(view) for part in dealt) - len(own)
            out += [*own, *[Micro(view, None, 0, "nothing")] * missing]
        return out

    def backward(self, loss: Tensor, view: str) -> None:
        """Add the gradient of a micro-batch of ``view``."""
        if view not in self._seen and self.stage in FIRST_PASS:
            self._engine.optimizer.micro_step_id = FIRST_PASS[self.stage]
        self._seen.add(view)
        self._engine.backward(loss * self._factor)

    def apply(self, losses: Sequence[Tensor]) -> tuple[list[float], bool]:
        """Sum over the processes, clip at the joint norm, and apply what is finite everywhere."""
        values = torch.stack([x.detach().float().to(self.workers.device) for x in losses]).tolist()
        [broken] = self.workers.highest(int(not all(map(math.isfinite, values))))
        if broken:
            return [math.nan, *values], False
        self._engine.step()  # which changes nothing where the norm is not finite
        self._seen.clear()
        return [
            float(self._engine.get_global_grad_norm()),
            *values,
        ], self._engine.was_step_applied()

    def parted(
        self, tensors: Mapping[str, Section]
    ) -> tuple[dict[str, Section], dict[str, Section]]:
        """Moments in shares; what is kept as the weights are in shares at stage 3 alone."""
        if self.stage < 3:
            return dict(tensors), self._masters.moments()
        own = {
            kind: {n: self.share.trimmed(t, self._size(n)) for n, t in section.items()}
            for kind, section in tensors.items()
        }
        return {}, {**own, **self._masters.moments()}

    def moved(self) -> dict[str, int]:
        """Updates that each weight's moments have seen."""
        updates = max((int(s["step"]) for s in self.optimizer.state.values()), default=0)
        return dict.fromkeys(self._updated, updates) if updates else {}

    def load(self, read: Reader, moved: Mapping[str, int]) -> None:
        """Take back weights and moments of a checkpoint."""
        self._masters.load(read, moved)  # which may make a step, back to the masters' weights
        for name, saved in self.mine(read, "weights").items():
            self.weights[name].copy_(saved)

    def mine(self, read: Reader, kind: str) -> dict[str, Tensor]:
        """What this process keeps of the tensors of ``kind``, for every weight."""
        return {name: self._kept(read.whole(kind, name), name) for name in self.weights}

    def _kept(self, whole: Tensor, name: str) -> Tensor:
        if self.stage == 3:
            return self.share.padded(self.share.of(whole), self._size(name))
        return whole.view_as(self.weights[name])

    def _size(self, name: str) -> int:
        return elements(self._parameters[name])

    def _make_states(self) -> None:
        """Let AdamW make its states: a step of length zero on gradients of zero."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.backbone.train_mode(True)
        for name in self.views:
            with self.backbone.view(name) as view:
                self.backward(view.nothing(), name)
        self.backbone.train_mode(False)
        self._engine.step()
        self._seen.clear()

    def holdings(self) -> dict[str, int]:
        """Elements that this process holds between two steps, for the run record."""
        masters = sum(flat.numel() for flat in self.optimizer.state)
        parameters = {id(p): p for p in self._engine.module.parameters()}.values()
        states = [v for s in self.optimizer.state.values() for k, v in s.items() if k in MOMENTS]
        trained = sum(map(elements, self._updated.values()))
        return {
            "stage": self.stage,
            "processes": self.workers.world,
            "parameters": sum(held(p).numel() for p in parameters),
            "gradients": masters if self.stage > 1 else trained,
            "master_weights": masters,
            "optimizer": sum(state.numel() for state in states),
        }

    def close(self) -> None:
        """Free gradients and optimizer states; shares of weights stay shares."""
        if self.backbone.sharding is not None:
            self.backbone.sharding.run = None
        self._engine.destroy()
        self.optimizer.state.clear()


def _without(
    named: Mapping[str, Mapping[str, torch.nn.Parameter]], left_out: set[int]
) -> dict[str, dict[str, torch.nn.Parameter]]:
    return {v: {n: p for n, p in own.items() if id(p) not in left_out} for v, own in named.items()}


def _idle(backbone: Backbone, views: Sequence[str]) -> set[int]:
    """Ids of trained weights that no pass reaches; AdamW alone leaves them unmoved, undecayed."""
    found: set[int] = set()
    for name in views:
        with backbone.view(name) as view:
            found |= {id(parameter) for parameter in view.unused}
    return found


def _config(engine: Engine, optimizer: Optimizer, trained: Sequence[Tensor]) -> dict[str, Any]:
    bucket = 2 * math.ceil(min(BUCKET_ELEMENTS, sum(map(elements, trained))) / 2)
    zero: dict[str, Any] = {
        "stage": engine.zero,
        "overlap_comm": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    waiting = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if engine.offload != "none":
        zero["offload_optimizer"] = waiting
    if engine.zero == 3:
        zero["memory_efficient_linear"] = False  # would replace torch's in the whole process
        zero["stage3_param_persistence_threshold"] = 0  # shares of small weights too
        # Weights of the forward pass would else stay gathered for the backward pass, up to 10⁹.
        zero["stage3_max_reuse_distance"] = 0
        if engine.offload == "all":
            zero["offload_param"] = waiting
        if not torch.cuda.is_available():
            zero["stage3_prefetch_bucket_size"] = 0  # nothing overlaps on a CPU
    config = {
        "train_micro_batch_size_per_gpu": 1,  # micro-batches are cut by tokens, and not here
        "managed_gradient_accumulation": False,
        "gradient_clipping": optimizer.max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own AdamW for CPUs is compiled at its first use, which takes minutes and a
        # compiler; torch's gives the bits that it gives elsewhere.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    return config if engine.zero == 3 else {**config, "gradient_allreduce_op": "sum"}


def placing(engine: Engine) -> Placing | None:
    """What is done with a model that all processes use: at ZeRO 3 its weights are shared out."""
    if engine.zero == 3 and _shares(engine):
        return Placing(offload=engine.offload == "all", reads=engine.workers().is_main)
    return None


def _shares(engine: Engine) -> bool:
    """Whether ZeRO has anything to do: alone, there is only what may wait elsewhere."""
    return bool(engine.zero) and (engine.workers().world > 1 or engine.offload != "none")


def require_stage(technique: Technique, engine: Engine) -> None:
    """Refuse a ZeRO stage that what is trained does not work with.

    Raises:
        ConfigError: as said.
    """
    highest, reason = technique.zero
    if _shares(engine) and engine.zero > highest:
        instead = f"engine=zero{highest}" if highest else "engine=auto"
        raise ConfigError(
            f"engine.zero={engine.zero} with adapter={technique.mode}: {reason}. Use {instead}."
        )


def update_of(
    backbone: Backbone, views: Sequence[str], optimizer: Optimizer, engine: Engine
) -> Update:
    """Shares as the engine says, or everything everywhere."""
    workers = engine.workers()
    if _shares(engine):
        require_whole(optimizer, engine.zero)
        return Sharded(backbone, views, optimizer, engine, workers)
    return Replicated(backbone, views, optimizer, workers)
