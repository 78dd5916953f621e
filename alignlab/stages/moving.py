"""A reference that follows the policy while it trains (TR-DPO), and its log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from alignlab.errors import ConfigError
from alignlab.typed import Range

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone
    from alignlab.run import Run


@dataclass(frozen=True, kw_only=True)
class Moves:
    """When and how far the reference follows the policy.

    ``θ_ref ← α·θ + (1 − α)·θ_ref`` after every ``every`` optimizer steps

    TR-DPO, Gorbatovski et al. 2024, 2404.09656: soft updates, and hard ones with α = 1.
    """

    weight: Annotated[float, Range(min=0, min_open=True, max=1)]  # α, the policy's share
    every: Annotated[int, Range(min=1)]  # τ, optimizer steps


class MovingReference:
    """The view ``reference``, which starts as the run behind the input and stays loaded.

    Nothing is cached: what it says of a completion changes with every move. Its weights are part of
    the training's state, so a continued run goes on with the reference that it had.
    """

    def __init__(self, backbone: Backbone, source: Run, engine: Engine, moves: Moves) -> None:
        if engine.zero:
            raise ConfigError(
                f"engine.zero={engine.zero}: a reference that moves is mixed parameter by"
                " parameter, which needs whole ones; set engine.zero=0 or reference_moves=null."
            )
        self.backbone, self.engine, self.moves = backbone, engine, moves
        # As a view that trains, so that it is held in float32: bfloat16 rounds small moves away.
        backbone.add("reference", source=source.model_dir, trainable=True)

    def sums(self, groups: Sequence[TokenGroup]) -> Tensor:
        """Log-probabilities (C,) of all completions of ``groups`` as it is now (nats)."""
        from alignlab.stages.reference import completion_sums

        return completion_sums(self.backbone, "reference", groups, self.engine)

    def follow(self, step: int) -> None:
        """Move towards the policy, if ``step`` (from 1) is one after which that is done."""
        import torch

        if step % self.moves.every:
            return
        policy = self.backbone.trainable_parameters("policy")
        with torch.no_grad():
            for name, mine in self._weights().items():
                mine.lerp_(policy[name].to(mine.dtype), self.moves.weight)

    def state(self) -> dict[str, Any]:
        """Its weights, for a checkpoint."""
        return {name: p.detach() for name, p in self._weights().items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the weights of a checkpoint back."""
        for name, mine in self._weights().items():
            mine.detach().copy_(state[name])

    def _weights(self) -> Mapping[str, Tensor]:
        return self.backbone.trainable_parameters("reference")
