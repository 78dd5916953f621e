"""Bottleneck adapters: small networks inside the layers of a base that stays as it is.

``y + W_up f(W_down y)`` takes the place of what a layer's attention or feed-forward part adds to
the residual stream. Imports nothing heavy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from alignlab.annotations import Range
from alignlab.errors import ConfigError
from alignlab.models.techniques import Sizes, Technique

if TYPE_CHECKING:
    from alignlab.models.bodies import Base, Bodies
    from alignlab.models.dimensions import Dimensions, Shapes

# The last product of a layer's attention and of its feed-forward part, by architecture.
PLACES = {
    "attention": (
        "self_attn.o_proj",  # Llama, Mistral, Qwen, Gemma, SmolLM …
        "attn.c_proj",  # GPT-2
        "attention.dense",  # GPT-NeoX (Pythia)
        "self_attn.out_proj",  # OPT
        "self_attn.dense",  # Phi
    ),
    "feed_forward": (
        "mlp.down_proj",
        "mlp.c_proj",
        "mlp.dense_4h_to_h",
        "fc2",
    ),
}
_NORM = re.compile(r"(?:norm|ln_\w+)(?:\.(?:weight|bias))?$")


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Technique):
    """Networks of one narrow layer after attention, feed-forward part or both, in every layer.

    After both, with the norms trained too: Houlsby et al. 2019, https://arxiv.org/abs/1902.00751.
    After the feed-forward part alone: Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247.
    W_up starts at zero, so that a fresh view is the base exactly (Houlsby's start is near it).
    """

    zero: ClassVar[tuple[int, str]] = (2, "its views copy norms, which would have to be whole")
    unmergeable: ClassVar[str] = "its networks are not linear, and no weight of the model can be"

    method: Literal["bottleneck"] = "bottleneck"
    after: tuple[Literal["attention", "feed_forward"], ...]  # the parts that get a network
    reduction: Annotated[int, Range(min=1)]  # hidden size over the width of a network
    activation: Literal["relu", "gelu", "silu"]  # f
    dropout: Annotated[float, Range(min=0, max=1, max_open=True)]  # on a network's output
    norms: bool  # whether a view also trains norms of its own

    def __post_init__(self) -> None:
        """Refuse networks that are nowhere, or twice at one place."""
        if not self.after or len(set(self.after)) != len(self.after):
            raise ConfigError("adapter.after: name attention, feed_forward or both, once each.")

    @property
    def mode(self) -> str:
        """``bottleneck``, wherever the networks are."""
        return self.method

    def width(self, hidden: int) -> int:
        """Width of a network."""
        return max(1, hidden // self.reduction)

    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """``2·H·m + m + H`` for every network of width m, and the norms."""
        modules = [n.removesuffix(".weight") for n in shapes if n.endswith(".weight")]
        places = [m for m in modules if is_place(m, self.after)]
        wide = dimensions.hidden
        m = self.width(wide)
        own = len(places) * (2 * wide * m + m + wide)
        if self.norms:
            own += sum(s[0] for n, s in shapes.items() if len(s) == 1 and is_norm(n))
        # Before and after f; what a network adds comes and goes.
        return Sizes(trained=own, added=own, rank=2 * m, adapted=len(places), freed=1)

    def bodies(self, base: Base) -> Bodies:
        """Networks in the layers of one base, some for every view."""
        from alignlab.models.bottleneck_bodies import BottleneckBodies

        return BottleneckBodies(base, self)

    @classmethod
    def applied(cls, model: Any, folder: Path) -> Any:
        """Put the networks of ``folder`` into a plain model."""
        from alignlab.models.bottleneck_bodies import applied

        return applied(model, folder)


def is_place(module: str, after: tuple[str, ...]) -> bool:
    """Whether a network comes after the module of this name."""
    return any(f".{module}".endswith(f".{name}") for part in after for name in PLACES[part])


def is_norm(name: str) -> bool:
    """Whether a module, or a parameter, is a norm by its name."""
    return _NORM.search(name) is not None
