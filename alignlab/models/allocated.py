"""AdaLoRA: a budget of ranks, dealt out among the matrices while they train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from alignlab.annotations import Range
from alignlab.errors import ConfigError
from alignlab.models.low_rank import LowRank, Modules, adapted_shapes, peft_modules
from alignlab.models.techniques import Sizes

if TYPE_CHECKING:
    from alignlab.models.bodies import Base, Bodies
    from alignlab.models.dimensions import Dimensions, Shapes

Share = Annotated[float, Range(min=0, max=1, max_open=True)]


@dataclass(frozen=True, kw_only=True)
class AdaLoRA(LowRank):
    """Adaptive budget allocation (Zhang et al. 2023, https://arxiv.org/abs/2303.10512).

    Every matrix gets ``P Λ Q`` with a trained diagonal Λ of ``initial_rank`` values. The least
    important of all values are set to zero, so that of every matrix ``rank`` remain on average; the
    budget falls with the third power of the time left, from the end of ``warmup`` to the beginning
    of ``final``. Importance is the smoothed |weight · gradient| times its uncertainty.
    ``orthogonality`` weighs how far P and Q are from orthogonal (here the mean of the norms, as its
    authors' code has it). A stage that goes on with a trained adapter deals its budget anew.
    """

    family: ClassVar[frozenset[str]] = frozenset()
    zero: ClassVar[tuple[int, str]] = (0, "its ranks are dealt out by whole gradients")

    method: Literal["adalora"] = "adalora"
    rank: Annotated[int, Range(min=1)]  # that remains, on average
    initial_rank: Annotated[int, Range(min=1)]
    alpha: Annotated[float, Range(min=0)]  # the update is scaled by alpha / initial_rank
    dropout: Annotated[float, Range(min=0, max=1)]  # on the adapter's input, while training
    target_modules: Modules
    warmup: Share  # of the steps, before the budget falls
    final: Share  # of the steps, with the ranks as they were dealt out
    every: Annotated[int, Range(min=1)]  # steps from one dealing to the next
    betas: tuple[Share, Share]  # of the smoothed importance and of its uncertainty
    orthogonality: Annotated[float, Range(min=0)]

    def __post_init__(self) -> None:
        """Refuse a budget that does not fall, and phases that leave no time for it."""
        if self.initial_rank <= self.rank:
            raise ConfigError(
                f"adapter.initial_rank={self.initial_rank} must be above rank={self.rank}: AdaLoRA "
                "begins with more ranks than it keeps (about one and a half times as many)."
            )
        if self.warmup + self.final >= 1:
            raise ConfigError(
                f"adapter.warmup={self.warmup} and final={self.final} leave no steps in which the "
                "budget falls; their sum must be below 1."
            )
        if 0 in self.betas:
            raise ConfigError(f"adapter.betas={list(self.betas)}: both must be above 0.")

    def phases(self, steps: int) -> tuple[int, int]:
        """Steps of the warm-up, and steps at the end with the ranks fixed, of ``steps``."""
        return int(self.warmup * steps), min(int(self.final * steps), steps - 1)

    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """``initial_rank · (inputs + outputs + 1)`` for every adapted matrix."""
        matrices = adapted_shapes(shapes, self.target_modules)
        own = sum(self.initial_rank * (sum(shape) + 1) for shape in matrices)
        return Sizes(trained=own, added=own, rank=self.initial_rank, adapted=len(matrices))

    def peft_config(self) -> Any:
        """Peft's configuration of a fresh adapter."""
        from peft import AdaLoraConfig

        settings: Mapping[str, Any] = {"lora_alpha": self.alpha}
        return AdaLoraConfig(
            **settings,
            target_r=self.rank,
            init_r=self.initial_rank,
            lora_dropout=self.dropout,
            target_modules=peft_modules(self.target_modules),
            deltaT=self.every,
            beta1=self.betas[0],
            beta2=self.betas[1],
            orth_reg_weight=self.orthogonality,
            total_step=1,  # known when the training begins
            inference_mode=True,  # peft trains no more than one; who is trained is the views' say
            task_type="CAUSAL_LM",
        )

    def continued(self, config: Any) -> Any:
        """All but the shape is this stage's.

        Raises:
            ConfigError: the saved adapter has fewer ranks than this stage keeps.
        """
        if config.init_r <= self.rank:
            raise ConfigError(
                f"adapter.rank={self.rank}: the adapter to go on with has {config.init_r} ranks."
            )
        fresh = self.peft_config()
        fresh.init_r, fresh.lora_alpha = config.init_r, config.lora_alpha
        fresh.target_modules = config.target_modules
        return fresh

    def bodies(self, base: Base) -> Bodies:
        """Adapters on one base, with an allocator for every view that is trained."""
        from alignlab.models.allocation import AllocatedBodies

        return AllocatedBodies(base.frozen(), self, base.name)
