"""Selective training: some of the model's own parameters are trained, the rest is one frozen base.

Feature extraction (a head alone), the last N layers, layers by name, biases (BitFit) and norms are
choices of parameters, and one technique. Imports nothing heavy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from alignlab.annotations import Range
from alignlab.errors import ConfigError
from alignlab.models.techniques import Sizes, Technique

if TYPE_CHECKING:
    from alignlab.models.bodies import Base, Bodies
    from alignlab.models.dimensions import Dimensions, Shapes

MODE = "selective"
LM_HEAD = "lm_head.weight"
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Selective(Technique):
    """Train what is named and nothing else; all views share the storage of the rest.

    A view owns float32 copies of its trained parameters, so policy, reference, reward and value are
    one base and a few parameters each. A run's folder holds those parameters alone
    (``selected.safetensors``), and a later stage may select others: it goes on with these.
    """

    method: Literal["selective"] = "selective"
    # patterns on names of parameters, as of files; "a|b" is either. Each must match something
    parameters: tuple[str, ...] = ()
    last_layers: Annotated[int, Range(min=0)] = 0  # so many layers from the top, whole
    # the language-model head; where it is the embedding, a copy of its own. A scalar head always is
    head: bool = False

    def __post_init__(self) -> None:
        """Refuse a selection of nothing."""
        if not (self.parameters or self.last_layers or self.head):
            raise ConfigError(
                "selective: nothing is selected; set parameters, last_layers or head=true."
            )

    @property
    def mode(self) -> str:
        """``selective``, whatever is selected: such views go together."""
        return MODE

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Those of the model's parameters ``names`` that are trained, the head left out.

        Raises:
            ConfigError: a pattern matches none of them, or there are fewer layers.
        """
        names = list(names)
        found = {name for pattern in self.parameters for name in _matching(pattern, names)}
        if self.last_layers:
            found |= self._of_last_layers(names)
        return [name for name in names if name in found]

    def _of_last_layers(self, names: list[str]) -> set[str]:
        numbers = {name: int(m[1]) for name in names if (m := _LAYER.search(name))}
        layers = max(numbers.values(), default=-1) + 1
        if layers < self.last_layers:
            raise ConfigError(
                f"adapter.last_layers is {self.last_layers}, and the model has {layers} layers."
            )
        return {name for name, number in numbers.items() if number >= layers - self.last_layers}

    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """All elements of what is chosen; a head that is untied comes on top of the base."""
        chosen = self.chosen(shapes)
        own, reached = sum(math.prod(shapes[n]) for n in chosen), _reached(chosen, dimensions)
        if not self.head or dimensions.headless:
            return Sizes(trained=own, reached=reached)
        if dimensions.tied:
            head = dimensions.vocabulary * dimensions.hidden
            return Sizes(trained=own + head, added=head, reached=reached)
        heads = [n for n in shapes if n.endswith((LM_HEAD, "embed_out.weight"))]
        own += sum(math.prod(shapes[name]) for name in heads)
        return Sizes(trained=own, reached=reached)

    @classmethod
    def applied(cls, model: Any, folder: Path) -> Any:
        """The plain model with what was trained in the place of its own."""
        from alignlab.models.selected import merge_selected

        return merge_selected(model, folder)

    @classmethod
    def merged(cls, applied: Any) -> Any:
        """The same: it is a plain model already."""
        return applied

    def bodies(self, base: Base) -> Bodies:
        """Twins of one base, with parameters of their own."""
        from alignlab.models.selected import SelectedBodies

        return SelectedBodies(base, self)


def _reached(chosen: Sequence[str], dimensions: Dimensions) -> int:
    """Layers from the top down to the lowest that has anything trained; all for an embedding."""
    if any(word in name for name in chosen for word in ("embed", "wte", "wpe")):
        return dimensions.layers
    numbers = [int(found[1]) for name in chosen if (found := _LAYER.search(name))]
    return dimensions.layers - min(numbers, default=dimensions.layers)


def _matching(pattern: str, names: list[str]) -> list[str]:
    either = pattern.split("|")
    found = [name for name in names if any(fnmatchcase(name, one) for one in either)]
    if not found:
        some = ", ".join(names[:: max(1, len(names) // 4)][:4])
        why = ""
        if pattern.endswith(".bias"):
            why = (
                " This architecture has no biases (those of the Llama kind have none); "
                "adapter=layernorm trains about as few parameters."
            )
        raise ConfigError(
            f"adapter.parameters has '{pattern}', which matches no parameter of this model; they "
            f"are called like {some}.{why}"
        )
    return found
