"""The optimizer of a training: algorithm, learning rates and schedule, clipping, moving average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from alignlab.engine.algorithms import BY_KIND, MOMENTUM, STATE_BYTES, Algorithm, make
from alignlab.engine.groups import Layerwise, grouped
from alignlab.engine.schedule import COOLED, Name, factor
from alignlab.errors import ConfigError
from alignlab.typed import Range

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alignlab.engine.groups import Parameters

Share = Annotated[float, Range(min=0, max=1, max_open=True)]
Amount = Annotated[float, Range(min=0)]  # < 1: share of all steps; >= 1: number of steps
DECAY = (
    0.1  # share of the steps in which `wsd` decays: Hu et al. 2024, section 4.2: a tenth is enough
)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What updates the trained parameters: see `algorithms`, `schedule` and `groups`.

    Parameters with fewer than two dimensions (biases, norms, gains) are not decayed.
    """

    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset({"momentum", "decay", "layerwise"})

    name: Algorithm = "adamw"
    learning_rate: Annotated[float, Range(min=0, min_open=True)]
    betas: tuple[Share, Share]  # of adamw, lion, and muon's adamw
    eps: Annotated[float, Range(min=0, min_open=True)]  # of adamw
    weight_decay: Annotated[float, Range(min=0)]
    schedule: Name
    warmup: Amount
    floor: Annotated[float, Range(min=0, max=1)]  # the schedule ends at this share of the peak
    max_grad_norm: Annotated[float, Range(min=0, min_open=True)] | None  # None: only measured
    ema: Share | None = None  # decay of the moving average of the weights; None: no average
    # factor on the learning rate by view ("value") or pattern of names ("*.lora_B.*")
    rates: Mapping[str, Annotated[float, Range(min=0, min_open=True)]] = field(default_factory=dict)
    momentum: Share | None = None  # of sgd and muon; None: 0.9 and 0.95
    decay: Amount | None = None  # how long wsd and wsd_sqrt decay at the end; None: DECAY
    layerwise: Layerwise | None = None  # rates by depth, gradual unfreezing; None: all alike

    def __post_init__(self) -> None:
        """Refuse numbers of steps that are not whole, and settings of another algorithm."""
        for name, amount in (("warmup", self.warmup), ("decay", self.decay or 0.0)):
            if amount > 1 and not float(amount).is_integer():
                raise ConfigError(
                    f"{name} is {amount}; it must be a share of the steps below 1, or a whole "
                    "number of steps."
                )
        if self.momentum is not None and self.name not in MOMENTUM:
            raise ConfigError(
                f"momentum={self.momentum} is for {' and '.join(MOMENTUM)}; {self.name} has none of"
                " that kind. Leave it null."
            )
        if self.decay is not None and self.schedule not in COOLED:
            raise ConfigError(
                f"decay={self.decay} is the last phase of {' and '.join(COOLED)}; the schedule is "
                f"{self.schedule}. Leave it null."
            )

    @property
    def momentum_or_default(self) -> float:
        """Momentum, the algorithm's usual one where none is stated."""
        return MOMENTUM[self.name] if self.momentum is None else self.momentum

    def state_bytes(self, matrices: float = 1.0) -> float:
        """Bytes of state of a trained weight, where ``matrices`` of them are matrices in layers."""
        if self.momentum == 0 and self.name == "sgd":
            return 0.0
        inside, outside = STATE_BYTES[self.name]
        return matrices * inside + (1 - matrices) * outside

    def scale(self, step: int, steps: int) -> float:
        """Factor on the learning rate of optimizer step ``step`` (1-based) of ``steps``.

        Raises:
            ValueError: ``step`` is not in 1..``steps``.
        """
        decay = DECAY if self.decay is None else self.decay
        return factor(self.schedule, step, steps, warmup=self.warmup, floor=self.floor, decay=decay)

    def groups(
        self, parameters: Parameters, technique: Mapping[str, float] | None = None
    ) -> list[dict[str, Any]]:
        """Parameter groups, one per view, rate and decay; ``peak`` is the full learning rate.

        A parameter shared by two views belongs to the first of them. ``technique`` are factors by
        pattern, as in ``rates``, that belong to what is trained (LoRA+: ``{"*.lora_B.*": 16}``).

        Raises:
            ConfigError: ``rates`` names a view that is not trained or has a pattern that matches
                no parameter, or nothing is trainable.
        """
        return grouped(
            parameters,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            rates=self.rates,
            technique=technique or {},
            layerwise=self.layerwise,
            by_kind=self.name in BY_KIND,
        )

    def build(
        self, parameters: Parameters, technique: Mapping[str, float] | None = None
    ) -> torch.optim.Optimizer:
        """Make the optimizer over ``groups``.

        Raises:
            ConfigError: as `groups`, or a library that it needs is not installed.
        """
        return make(self, self.groups(parameters, technique))

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int, steps: int) -> float:
        """Set every group's learning rate for ``step``; returns the rate of a factor-1 view.

        Groups that have not thawed yet wait: their rate is 0, no gradient is computed for them,
        and one that is there nevertheless `hold_back` keeps from the optimizer, so that their
        moments do not move.

        Raises:
            ConfigError: a layer group would not thaw within ``steps``.
        """
        scale = self.scale(step, steps)
        thawed = None
        if self.layerwise is not None:
            depths = 1 + max(group["depth"] for group in optimizer.param_groups)
            self.layerwise.check(depths, steps)
            thawed = self.layerwise.thawed(step, steps)
        for group in optimizer.param_groups:
            group["waits"] = thawed is not None and group["depth"] >= thawed
            group["lr"] = 0.0 if group["waits"] else group["peak"] * scale
            if self.layerwise is not None and self.layerwise.thaw is not None:
                for parameter in group["params"]:
                    parameter.requires_grad_(not group["waits"])
        return self.learning_rate * scale


def hold_back(optimizer: torch.optim.Optimizer) -> None:
    """Drop the gradients of groups that wait: no norm counts them and no moment sees them."""
    for group in optimizer.param_groups:
        if group.get("waits"):
            for parameter in group["params"]:
                parameter.grad = None


def clip(parameters: Sequence[Tensor], max_norm: float | None) -> Tensor:
    """Scale all gradients to a joint 2-norm of at most ``max_norm``; returns the norm before, ().

    Nothing is moved to the host; a norm that is not finite leaves the gradients unusable, and the
    caller must not step.
    """
    import torch

    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


class Ema:
    """Exponential moving average of parameters, in fp32.

    average_0 = weights_0 and average_t = d * average_(t-1) + (1 - d) * weights_t after step t.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.average = [p.detach().float().clone() for p in self.parameters]

    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        import torch

        weights = [p.detach().float() for p in self.parameters]
        torch._foreach_lerp_(self.average, weights, 1 - self.decay)

    def swap_in(self) -> None:
        """Overwrite the weights with their average, for good (the model to be saved)."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.detach().copy_(average)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Hold the average in the parameters inside, their own weights again afterwards."""
        own = [p.detach().clone() for p in self.parameters]
        self.swap_in()
        try:
            yield
        finally:
            for parameter, weights in zip(self.parameters, own, strict=True):
                parameter.detach().copy_(weights)

    def load(self, average: Sequence[Tensor]) -> None:
        """Take back a saved average."""
        for mine, saved in zip(self.average, average, strict=True):
            mine.copy_(saved)
