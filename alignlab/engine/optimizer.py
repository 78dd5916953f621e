"""AdamW over the trainable parameters of the views, its schedule, clipping and moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from alignlab.errors import ConfigError, did_you_mean
from alignlab.typed import Range

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Parameters = Mapping[str, Mapping[str, torch.nn.Parameter]]  # view -> name -> parameter

Share = Annotated[float, Range(min=0, max=1, max_open=True)]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2).

    Parameters with fewer than two dimensions (biases, norms, gains) are not decayed.
    """

    name: Literal["adamw"] = "adamw"
    learning_rate: Annotated[float, Range(min=0, min_open=True)]
    betas: tuple[Share, Share]
    eps: Annotated[float, Range(min=0, min_open=True)]
    weight_decay: Annotated[float, Range(min=0)]
    schedule: Literal["constant", "linear", "cosine"]
    warmup: Annotated[float, Range(min=0)]  # < 1: share of all steps; >= 1: number of steps
    floor: Annotated[float, Range(min=0, max=1)]  # the schedule ends at this share of the peak
    max_grad_norm: Annotated[float, Range(min=0, min_open=True)] | None  # None: only measured
    ema: Share | None = None  # decay of the moving average of the weights; None: no average
    # view -> factor on the learning rate; views not named have 1
    rates: Mapping[str, Annotated[float, Range(min=0, min_open=True)]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a number of warm-up steps that is not whole."""
        if self.warmup > 1 and not float(self.warmup).is_integer():
            raise ConfigError(
                f"warmup is {self.warmup}; it must be a share of the steps below 1, or a whole "
                "number of steps."
            )

    def scale(self, step: int, steps: int) -> float:
        """Factor on the learning rate of optimizer step ``step`` (1-based) of ``steps``.

        With w warm-up steps and progress p = (step - 1 - w) / (steps - w): step / w while
        step <= w (so the first step already learns), then 1 (constant), 1 - (1 - floor) p (linear)
        or floor + (1 - floor)(1 + cos(pi p)) / 2 (cosine).

        Raises:
            ValueError: ``step`` is not in 1..``steps``.
        """
        if not 1 <= step <= steps:
            raise ValueError(f"step {step} is not in 1..{steps}")
        warm = math.ceil(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        if step <= warm:
            return step / warm
        progress = (step - 1 - warm) / (steps - warm)
        if self.schedule == "linear":
            return 1 - (1 - self.floor) * progress
        if self.schedule == "cosine":
            return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2
        return 1.0

    def groups(self, parameters: Parameters) -> list[dict[str, Any]]:
        """Parameter groups, one per view and decay; ``peak`` is the group's full learning rate.

        A parameter shared by two views belongs to the first of them.

        Raises:
            ConfigError: ``rates`` names a view that is not trained, or nothing is trainable.
        """
        for view in self.rates:
            if view not in parameters:
                hint = did_you_mean(view, parameters)
                raise ConfigError(
                    f"optimizer.rates names '{view}', but the trained views are "
                    f"{', '.join(parameters)}.{hint}"
                )
        from alignlab.models.sharding import dimensions

        seen: set[int] = set()
        groups: list[dict[str, Any]] = []
        for view, named in parameters.items():
            own = [p for p in named.values() if id(p) not in seen]
            seen.update(map(id, own))
            peak = self.learning_rate * self.rates.get(view, 1.0)
            for decay, chosen in (
                (self.weight_decay, [p for p in own if dimensions(p) >= 2]),
                (0.0, [p for p in own if dimensions(p) < 2]),
            ):
                if chosen:
                    groups.append(
                        {"params": chosen, "weight_decay": decay, "lr": peak, "peak": peak}
                    )
        if not groups:
            raise ConfigError("Nothing to train: no view has a trainable parameter.")
        return groups

    def build(self, parameters: Parameters) -> torch.optim.AdamW:
        """AdamW over ``groups``, fused where the device and dtype have the fused kernel."""
        import torch

        groups = self.groups(parameters)
        fused = all(
            p.device.type in ("cpu", "cuda") and p.is_floating_point()
            for group in groups
            for p in group["params"]
        )
        return torch.optim.AdamW(
            groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=fused
        )

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int, steps: int) -> float:
        """Set every group's learning rate for ``step``; returns the rate of a factor-1 view."""
        factor = self.scale(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return self.learning_rate * factor


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
