"""AdaLoRA's adapters as views, and what deals out their ranks between the steps of a training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.models.adapters import AdapterBodies

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignlab.models.allocated import AdaLoRA

RANKS = "ranks.json"  # how many ranks every matrix has kept


class AllocatedBodies(AdapterBodies):
    """Adapters of peft's AdaLoRA. What was set to zero is stored as zero: no matrix is cut."""

    def __init__(self, base: PreTrainedModel, technique: AdaLoRA, base_name: str) -> None:
        super().__init__(base, technique, base_name)
        self._allocated = technique

    def _read_config(self, source: Path, trainable: bool) -> Any:
        config = super()._read_config(source, trainable)
        config.inference_mode = True
        return config

    def save(self, name: str, folder: Path) -> None:
        """Write an ordinary peft adapter folder, and how the ranks were dealt out."""
        super().save(name, folder)
        own = self._named(name).items()
        kept = {n.removesuffix(".lora_E"): int((p != 0).sum()) for n, p in own if "lora_E" in n}
        (folder / RANKS).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")

    def changing(self, views: Sequence[str]) -> Allocation:
        """What deals out the ranks of ``views`` while they train."""
        named = {view: self._named(view) for view in views if self._trainable[view]}
        allocators = {}
        for view in named:
            config = self._peft.peft_config[self._key(view)]
            allocators[view] = _allocator(self._base, config, self._key(view))
        return Allocation(self._base, self._allocated, allocators, named)


def _allocator(base: PreTrainedModel, config: Any, key: str) -> Any:
    from peft.tuners.adalora import RankAllocator

    return RankAllocator(base, config, key)


class Allocation:
    """Deals out ranks by importance, for every view apart; the arithmetic is peft's."""

    def __init__(
        self,
        base: PreTrainedModel,
        technique: AdaLoRA,
        allocators: Mapping[str, Any],
        named: Mapping[str, Mapping[str, torch.nn.Parameter]],
    ) -> None:
        self._base, self._technique = base, technique
        self._allocators, self._named = allocators, named
        self._patterns: dict[str, Mapping[str, Sequence[bool]]] = {}
        self.step = 0

    def begin(self, steps: int) -> None:
        """Learn how long the training will be.

        Raises:
            ConfigError: too short for its phases.
        """
        warmup, final = self._technique.phases(steps)
        if warmup >= steps - final:
            raise ConfigError(
                f"adapter=adalora: {steps} steps with warmup={self._technique.warmup} and final="
                f"{self._technique.final} leave none in which the budget falls."
            )
        for allocator in self._allocators.values():
            allocator.peft_config.tinit, allocator.peft_config.tfinal = warmup, final
            allocator.set_total_step(steps)

    def before(self, *, counts: bool) -> None:
        """Add the gradient of the penalty, on the one process that ``counts``.

        Mean of ‖PᵀP − I‖ and ‖Q Qᵀ − I‖ over all matrices of a view, times its weight.
        """
        if not counts or not self._technique.orthogonality:
            return
        for own in self._named.values():
            bases = [p.T if name.endswith("lora_B") else p for name, p in own.items()
                     if name.endswith((".lora_A", ".lora_B"))]  # fmt: skip
            if any(p.grad is not None for p in own.values()):  # a view that trains in this step
                far = torch.stack([_distance(rows) for rows in bases]).mean()
                (self._technique.orthogonality * far).backward()

    def after(self) -> None:
        """Take in the gradients of the step that was just applied, and deal out when it is time."""
        self.step += 1
        for view, allocator in self._allocators.items():
            if any(p.grad is None for p in self._named[view].values()):
                continue
            end = allocator.peft_config.total_step - allocator.peft_config.tfinal
            if self.step > end:
                allocator.mask_using_rank_pattern(self._base, self._patterns[view])
                continue
            if self.step == end:
                allocator.update_ipt(self._base)
            _, pattern = allocator.update_and_allocate(
                self._base, self.step, force_mask=self.step == end
            )
            if pattern:
                self._patterns[view] = pattern

    def cut(self) -> None:
        """Set to zero again what was at the last dealing."""
        for view, pattern in self._patterns.items():
            self._allocators[view].mask_using_rank_pattern(self._base, pattern)

    def taken_early(self, step: int) -> str | None:
        """Before the last dealing a matrix still has more ranks than the budget."""
        settings = [allocator.peft_config for allocator in self._allocators.values()]
        end = max(config.total_step - config.tfinal for config in settings)
        if step >= end:
            return None
        return (
            f"the best weights are those of step {step}, but AdaLoRA deals out ranks until step "
            f"{end}: on average a matrix has more than adapter.rank={self._technique.rank}. Have "
            "more patience, or take adapter=lora with that rank."
        )

    def state(self) -> dict[str, Any]:
        """What the next dealing depends on beside weights and gradients."""
        return {
            "step": self.step,
            "patterns": dict(self._patterns),
            "importance": {view: a.exp_avg_ipt for view, a in self._allocators.items()},
            "uncertainty": {view: a.exp_avg_unc for view, a in self._allocators.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.step, self._patterns = state["step"], dict(state["patterns"])
        for view, allocator in self._allocators.items():
            known = state["importance"][view]
            mine = {n: p for n, p in self._base.named_parameters() if n in known}
            for kind, name in (("importance", "exp_avg_ipt"), ("uncertainty", "exp_avg_unc")):
                saved: Mapping[str, Tensor] = state[kind][view]
                setattr(
                    allocator, name, {n: t.to(mine[n].device, copy=True) for n, t in saved.items()}
                )
            allocator.ipt = {n: torch.zeros_like(p) for n, p in mine.items()}


def _distance(rows: Tensor) -> Tensor:
    """How far rows are from orthonormal, as the Frobenius norm of ``R Rᵀ − I``."""
    return torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), device=rows.device))
