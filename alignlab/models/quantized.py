"""QLoRA: low-rank adapters on a base whose matrices are stored in four bits."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from alignlab.errors import ConfigError
from alignlab.models.low_rank import Variant
from alignlab.models.techniques import Sizes

if TYPE_CHECKING:
    from alignlab.models.bodies import Base, Bodies
    from alignlab.models.dimensions import Dimensions, Shapes

FILE = "quantization.json"


@dataclass(frozen=True, kw_only=True)
class QLoRA(Variant):
    """LoRA on a four-bit base (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314).

    Matrices are stored in blocks of 64 values as indices of 16 levels times the block's largest
    value; at every use they become numbers of ``backbone.dtype`` again. ``double_quantization``
    stores those largest values in eight bits: 0.127 instead of 0.5 bits for each parameter.

    Merging and exporting add the adapter to the matrices *as they were used*, rounded to four bits,
    so that a merged model computes what was trained.
    """

    family: ClassVar[frozenset[str]] = frozenset()  # on another base an adapter computes otherwise
    zero: ClassVar[tuple[int, str]] = (0, "DeepSpeed cannot hold four-bit matrices")

    method: Literal["qlora"] = "qlora"
    quantization: Literal["nf4", "fp4"]  # levels for normally distributed weights, or a float's
    double_quantization: bool

    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """As LoRA's, beside packed matrices."""
        packed = packed_bytes(double=self.double_quantization)
        return replace(super().sizes(shapes, dimensions), packed=packed)

    def bodies(self, base: Base) -> Bodies:
        """Adapters on one base of four bits.

        Raises:
            ConfigError: bitsandbytes is not installed.
        """
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                "adapter=qlora needs the package 'bitsandbytes', which is not installed: "
                "pip install 'alignlab[quantization]'."
            )
        from alignlab.models.four_bit import QuantizedBodies, opened

        return QuantizedBodies(opened(base, self), self, base.name)

    @classmethod
    def applied(cls, model: Any, folder: Path) -> Any:
        """Put the adapter on the base with its matrices as they were used in training."""
        from alignlab.models.four_bit import round_trip

        stated = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return super().applied(round_trip(model, **stated), folder)


def packed_bytes(*, double: bool) -> float:
    """Bytes of a matrix's element: half of one, and its part of the scale of 64 elements.

    That is a float32, or with ``double`` quantisation a byte and 1/256 of a float32.
    """
    return 0.5 + ((1 + 4 / 256) if double else 4.0) / 64
