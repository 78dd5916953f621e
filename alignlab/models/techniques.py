"""What is trained of a base model: what every technique says of itself before anything is loaded.

A technique is a frozen dataclass under ``backbone.adapter``. All but `Adapter`, which was there
first, have a field ``method: Literal["name"] = "name"``, by which `alignlab.typed` tells them
apart; `alignlab.models.load.AnyTechnique` lists them. Imports nothing heavy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.models.bodies import Base, Bodies
    from alignlab.models.dimensions import Dimensions, Shapes


@dataclass(frozen=True)
class Sizes:
    """Parameters that a view of a technique trains and adds; what estimates need beside them."""

    trained: int | None  # None: every parameter of the model
    added: int = 0  # parameters that a view has beside those of the base
    rank: int = 0  # width of what is computed beside each adapted matrix
    adapted: int = 0  # adapted matrices of the whole model
    packed: float | None = None  # bytes of an element of the base's matrices, where quantised
    freed: int = 3  # results as wide as an adapted matrix's that come and go
    kept: int = 0  # results as wide as an adapted matrix's that it keeps for the backward pass
    still: bool = False  # whether no matrix is adapted or trained, so that none keeps its inputs
    reached: int | None = None  # layers from the top that a backward pass goes through; None: all


@dataclass(frozen=True, kw_only=True)
class Technique(ABC):
    """What is trained of a base model, and how a view of it is made."""

    # Why a view cannot become a plain model of the base's architecture; empty if it can.
    unmergeable: ClassVar[str] = ""
    # Whether vLLM can sample from a view: as a LoRA folder, or as a whole model.
    vllm: ClassVar[bool] = False
    # The highest ZeRO stage that it trains under, and why not a higher one.
    zero: ClassVar[tuple[int, str]] = (3, "")
    # Fields that came later and mean, while null, what was done before (see `Stage`).
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset()

    @property
    @abstractmethod
    def mode(self) -> str:
        """What ``view.json`` and messages call it."""

    @property
    def shares_base(self) -> bool:
        """Whether one base in memory serves all views; else every view is a whole model."""
        return True

    @property
    def rates(self) -> Mapping[str, float]:
        """Factors on the learning rate by pattern of names, as in ``optimizer.rates``."""
        return {}

    @property
    def virtual_tokens(self) -> int:
        """Positions before every prompt that a view takes for itself."""
        return 0

    @abstractmethod
    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """Parameters of one view, from the shapes of the base's tensors."""

    @abstractmethod
    def bodies(self, base: Base) -> Bodies:
        """Make the container of views on an opened base model; imports what it needs."""

    @classmethod
    def applied(cls, model: Any, folder: Path) -> Any:
        """Put what `Bodies.save` wrote to ``folder`` on a plain base model (peft's formats here).

        For use outside of training: one view, unmerged.
        """
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(folder))

    @classmethod
    def merged(cls, applied: Any) -> Any:
        """Make what `applied` returned a plain model; not called where it is ``unmergeable``."""
        return applied.merge_and_unload()
