"""What an optimizer remembers of a weight, for checkpoints: named tensors, and a count of updates.

Every tensor of the state of any optimizer of `algorithms` is written under the key that it has
there (``exp_avg``, ``momentum_buffer``, ``row_var``, ``absmax1`` …), and read back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignlab.engine.chained import Chained
from alignlab.engine.shares import MOMENTS, Reader, Section

COUNT = "step"  # the one entry that counts updates, a number or a tensor of one
TABLES = ("qmap1", "qmap2")  # of bitsandbytes: constants, the same for all


def moments_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, Section]:
    """Tensors of the state by kind and name of the weight, of weights that have been updated."""
    found: dict[str, Section] = {}
    for name, parameter in parameters.items():
        for kind, value in _state(optimizer, parameter).items():
            if isinstance(value, Tensor) and kind not in (COUNT, *TABLES):
                found.setdefault(kind, {})[name] = value
    return found


def updates_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, int]:
    """Updates that the state of each weight has seen; -1 where it does not count them."""
    states = {name: _state(optimizer, p) for name, p in parameters.items()}
    return {name: int(state.get(COUNT, -1)) for name, state in states.items() if state}


def restore(
    optimizer: torch.optim.Optimizer,
    parameter: torch.nn.Parameter,
    name: str,
    read: Reader,
    updates: int,
) -> None:
    """Give ``parameter`` the state that a checkpoint has under ``name``."""
    kinds = [kind for kind in read.kinds if kind not in _NO_STATE and read.has(kind, name)]
    saved = {kind: read.whole(kind, name) for kind in kinds}
    if "state1" in saved:  # bitsandbytes makes its buffers itself: they may lie in paged memory
        assert isinstance(optimizer, Chained)
        part, group, place = optimizer.part_of(parameter)
        made: Any = part
        made.init_state(part.param_groups[group], parameter, group, place)
        state = optimizer.state[parameter]
        for kind, tensor in saved.items():
            state[kind].copy_(tensor.view_as(state[kind]))
        state[COUNT] = updates
        return
    # Moments like the weight may have been written in shares, which are flat.
    shaped = {k: t.view_as(parameter) if k in MOMENTS else t for k, t in saved.items()}
    state = {
        kind: torch.empty_like(parameter).copy_(tensor)
        if tensor.shape == parameter.shape
        else tensor.to(parameter.device, copy=True)
        for kind, tensor in shaped.items()
    }
    if updates >= 0:
        on_host = "exp_avg_sq" not in state  # Adafactor's count; that of a fused AdamW is beside it
        device = torch.device("cpu") if on_host else parameter.device
        state = {COUNT: torch.tensor(float(updates), device=device), **state}
    optimizer.state[parameter] = state


_NO_STATE = ("weights", "average", "best")


def _state(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, Any]:
    """State of a parameter, without making an empty one."""
    return optimizer.state.get(parameter, {})
