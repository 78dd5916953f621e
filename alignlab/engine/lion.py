"""Lion, which steps by the sign of an interpolated momentum (Chen et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """The update of https://arxiv.org/abs/2302.06675, with decoupled weight decay.

    With gradient g, momentum m (0 at first), rate η and decay λ::

        c = β1 m + (1 - β1) g
        θ ← θ - η (sign(c) + λ θ)
        m ← β2 m + (1 - β2) g

    Every element moves by η (or not at all, where c is 0), so the authors take rates 3 to 10 times
    smaller than AdamW's, and λ as much larger. State: one number a weight, ``exp_avg``.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Raises:
            ValueError: a closure, which no caller here has.
        """
        if closure is not None:
            raise ValueError("Lion takes no closure")
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if not moved:
                continue
            gradients: list[Tensor] = [p.grad for p in moved]
            for parameter in moved:
                if not self.state[parameter]:
                    self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
            momenta: list[Tensor] = [self.state[p]["exp_avg"] for p in moved]
            first, second = group["betas"]
            torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            signs = torch._foreach_lerp(momenta, gradients, 1 - first)
            torch._foreach_sign_(signs)
            torch._foreach_add_(moved, signs, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, gradients, 1 - second)
