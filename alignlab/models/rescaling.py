"""(IA)³: learned factors on keys, values and inner activations of a base that stays as it is.

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from alignlab.annotations import Range
from alignlab.errors import ConfigError
from alignlab.models.low_rank import LowRank
from alignlab.models.techniques import Sizes

if TYPE_CHECKING:
    from alignlab.models.dimensions import Dimensions, Shapes

_TRANSPOSED = ("c_attn", "c_proj", "c_fc")  # GPT-2's products have (inputs, outputs)


@dataclass(frozen=True, kw_only=True)
class IA3(LowRank):
    """One factor per key, value and inner feature, all 1 at the start (Liu et al. 2022).

    https://arxiv.org/abs/2205.05638: attention takes ``l_k ⊙ K`` and ``l_v ⊙ V``, the
    last product of the feed-forward part ``l_ff ⊙ γ(W_1 x)``. Merged, the factors scale rows and
    columns of the matrices. peft computes it.
    """

    family: ClassVar[frozenset[str]] = frozenset({"ia3"})
    # peft keeps the vectors in a container that no engine gathers shares for.
    zero: ClassVar[tuple[int, str]] = (2, "its vectors are not gathered where they are used")

    method: Literal["ia3"] = "ia3"
    # Products whose outputs are scaled; where one makes queries too, they are scaled as well.
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]  # products whose inputs are scaled
    rate: Annotated[float, Range(min=0, min_open=True)] = 1.0  # factor on the learning rate

    def __post_init__(self) -> None:
        """Refuse a product that is scaled on both sides."""
        if both := set(self.outputs) & set(self.inputs):
            raise ConfigError(f"adapter: {min(both)} is in outputs and in inputs; keep one.")

    @property
    def rates(self) -> Mapping[str, float]:
        """``rate`` on every vector."""
        return {"*.ia3_l": self.rate}

    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """A number for every output, and for every input, of the products named."""
        own = 0
        for name, shape in shapes.items():
            module = name.removesuffix(".weight")
            if len(shape) != 2 or module == name:
                continue
            out, into = shape[::-1] if module.endswith(_TRANSPOSED) else shape
            own += out * _names(module, self.outputs) + into * _names(module, self.inputs)
        if not own:
            raise ConfigError(
                "adapter=ia3: the model has no linear layer of the names in adapter.outputs and "
                "adapter.inputs."
            )
        return Sizes(trained=own, added=own)

    def peft_config(self) -> Any:
        """Peft's configuration of the same."""
        from peft import IA3Config

        return IA3Config(
            target_modules=[*self.outputs, *self.inputs],
            feedforward_modules=list(self.inputs),
            task_type="CAUSAL_LM",
        )


def _names(module: str, names: tuple[str, ...]) -> bool:
    return f".{module}".endswith(tuple(f".{name}" for name in names))
