"""Master weights and moments of AdamW in DeepSpeed's hands: this process's parts, out and in.

ZeRO 1 and 2 flatten the weights of a parameter group into one tensor, in order, and cut it evenly
over the processes. ZeRO 3 cuts every weight evenly. In both, the parts of a weight in the order of
the processes are the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from alignlab.engine.shares import MOMENTS, Reader, Section, Share
from alignlab.models.sharding import elements

Named = Mapping[str, torch.nn.Parameter]


class Masters(Protocol):
    """The parts of this process."""

    def moments(self) -> dict[str, Section]:
        """Parts of both moments by name of the weight; none before the first update."""
        ...

    def load(self, read: Reader, moved: Mapping[str, int]) -> None:
        """Write master weights and moments of a checkpoint, whose moments saw ``moved`` updates."""
        ...


@dataclass(frozen=True)
class Part:
    """Elements ``start`` to ``end`` of a weight, which lie from ``place`` on in ``flat``."""

    flat: Tensor
    place: int
    start: int
    end: int

    def of(self, tensor: Tensor) -> Tensor:
        """The part in a tensor laid out as ``flat``; a view."""
        return tensor[self.place : self.place + self.end - self.start]


class FlatMasters:
    """Masters at ZeRO 1 and 2.

    DeepSpeed's own accessors know the moments of the first parameter group only (0.19.8).
    """

    def __init__(
        self,
        weights: Named,
        groups: Sequence[Sequence[torch.nn.Parameter]],
        optimizer: torch.optim.Optimizer,
        rank: int,
    ) -> None:
        """Find the parts of ``weights``, which were in ``groups`` before DeepSpeed flattened them.

        Raises:
            RuntimeError: DeepSpeed lays them out otherwise.
        """
        self.optimizer = optimizer
        names = {id(parameter): name for name, parameter in weights.items()}
        self.parts: dict[str, Part] = {}
        for group, parameters in zip(optimizer.param_groups, groups, strict=True):
            [flat] = group["params"]
            self._place(flat.detach(), parameters, names, rank * flat.numel())

    def _place(
        self,
        flat: Tensor,
        parameters: Sequence[torch.nn.Parameter],
        names: Mapping[int, str],
        begin: int,
    ) -> None:
        end, offset = begin + flat.numel(), 0
        for parameter in parameters:
            after = offset + parameter.numel()
            first = min(max(offset, begin), end)
            last = max(first, min(after, end))
            part = Part(flat, first - begin, first - offset, last - offset)
            own = parameter.detach().reshape(-1)[part.start : part.end].to(flat.device)
            if not torch.equal(part.of(flat), own):
                raise RuntimeError("DeepSpeed lays the weights of a group out in another way")
            self.parts[names[id(parameter)]] = part
            offset = after

    def moments(self) -> dict[str, Section]:
        """Parts of both moments by name of the weight; none before the first update."""
        state = {flat.data_ptr(): state for flat, state in self.optimizer.state.items()}
        return {
            kind: {n: p.of(state[p.flat.data_ptr()][kind]).clone() for n, p in self.parts.items()}
            for kind in (MOMENTS if state else ())
        }

    def load(self, read: Reader, moved: Mapping[str, int]) -> None:
        """Write master weights and moments of a checkpoint, whose moments saw ``moved`` updates."""
        states: dict[int, dict[str, Tensor]] = {}
        for group in self.optimizer.param_groups if moved else ():
            [flat] = group["params"]
            moments = {kind: torch.zeros_like(flat).detach() for kind in MOMENTS}
            step = torch.tensor(float(max(moved.values())), device=flat.device)
            self.optimizer.state[flat] = {"step": step, **moments}
            states[flat.data_ptr()] = moments
        for name, part in self.parts.items():
            own = slice(part.start, part.end)
            part.of(part.flat).copy_(read.whole("weights", name).reshape(-1)[own])
            for kind in MOMENTS if name in moved else ():
                saved = read.whole(kind, name).reshape(-1)[own]
                part.of(states[part.flat.data_ptr()][kind]).copy_(saved)


class EvenMasters:
    """Masters at ZeRO 3."""

    def __init__(
        self,
        weights: Named,
        optimizer: torch.optim.Optimizer,
        share: Share,
        make_states: Callable[[], None],
    ) -> None:
        self.weights, self.optimizer, self.share = weights, optimizer, share
        self.make_states = make_states  # makes AdamW have states, whatever is in them

    def moments(self) -> dict[str, Section]:
        """Parts of both moments by name of the weight; none before the first update."""
        from deepspeed.utils import safe_get_local_optimizer_state

        def part(parameter: torch.nn.Parameter, kind: str) -> Tensor:
            padded = safe_get_local_optimizer_state(parameter, kind)
            return self.share.trimmed(padded, elements(parameter)).detach().clone()

        kinds = MOMENTS if self.optimizer.state else ()
        return {kind: {n: part(p, kind) for n, p in self.weights.items()} for kind in kinds}

    def load(self, read: Reader, moved: Mapping[str, int]) -> None:
        """Write master weights and moments of a checkpoint, whose moments saw ``moved`` updates."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        def part(kind: str, name: str) -> Tensor:
            own = self.share.of(read.whole(kind, name))
            return self.share.padded(own, elements(self.weights[name]))

        if moved:
            self.make_states()
        for name, parameter in self.weights.items():
            safe_set_local_fp32_param(parameter, part("weights", name))
            for kind in MOMENTS if name in moved else ():
                safe_set_local_optimizer_state(parameter, part(kind, name), kind)
        for state in self.optimizer.state.values():
            state["step"].fill_(max(moved.values(), default=0))
