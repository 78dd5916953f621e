"""VeRA: random matrices that all layers and views share, and two trained vectors per layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from alignlab.annotations import Range
from alignlab.models.low_rank import LowRank, Modules, adapted_shapes, peft_modules
from alignlab.models.techniques import Sizes

if TYPE_CHECKING:
    from alignlab.models.bodies import Base, Bodies
    from alignlab.models.dimensions import Dimensions, Shapes


@dataclass(frozen=True, kw_only=True)
class VeRA(LowRank):
    """Vector-based random matrix adaptation (Kopiczko et al. 2023).

    https://arxiv.org/abs/2310.11454: ``h = W₀x + Λ_b B Λ_d A x`` with A and B random, frozen
    and the same in every layer (of layers of unlike sizes, a slice); b, zero at the start, and d
    are trained.
    """

    family: ClassVar[frozenset[str]] = frozenset()
    zero: ClassVar[tuple[int, str]] = (2, "its random matrices are used by every layer")

    method: Literal["vera"] = "vera"
    rank: Annotated[int, Range(min=1)]  # inner dimension r, much larger than LoRA's
    dropout: Annotated[float, Range(min=0, max=1)]  # on the adapter's input, while training
    target_modules: Modules
    initial: Annotated[float, Range(min=0, min_open=True)]  # every element of d at the start
    projection_seed: Annotated[int, Range(min=0)]  # of A and B; the same for all that meet

    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """``r + outputs`` for every adapted matrix; random matrices are no parameters."""
        matrices = adapted_shapes(shapes, self.target_modules)
        own = sum(self.rank + shape[0] for shape in matrices)
        return Sizes(trained=own, added=own, rank=self.rank, adapted=len(matrices))

    def peft_config(self) -> Any:
        """Peft's configuration of a fresh adapter."""
        from peft import VeraConfig

        settings: Mapping[str, Any] = {"r": self.rank, "d_initial": self.initial}
        return VeraConfig(
            **settings,
            vera_dropout=self.dropout,
            target_modules=peft_modules(self.target_modules),
            projection_prng_key=self.projection_seed,
            save_projection=True,
            task_type="CAUSAL_LM",
        )

    def continued(self, config: Any) -> Any:
        """Dropout is this stage's."""
        config.vera_dropout = self.dropout
        return config

    def bodies(self, base: Base) -> Bodies:
        """Adapters on one base that share their random matrices."""
        from alignlab.models.projected import ProjectedBodies

        return ProjectedBodies(base.frozen(), self, base.name)
