"""Residual dropout: on what each block adds to the residual stream, with a rate per layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from alignlab.errors import ConfigError
from alignlab.typed import Range

if TYPE_CHECKING:
    from torch import nn

# The last product of a block's attention and of its feed-forward part, by architecture.
_OUTPUTS = (
    "self_attn.o_proj",  # Llama, Mistral, Qwen, Gemma, SmolLM …
    "mlp.down_proj",
    "attn.c_proj",  # GPT-2
    "mlp.c_proj",
    "attention.dense",  # GPT-NeoX (Pythia)
    "mlp.dense_4h_to_h",
    "self_attn.out_proj",  # OPT, GPT-Neo
    "fc2",
)


@dataclass(frozen=True, kw_only=True)
class ResidualDropout:
    """Rates that rise linearly over the layers, p_l = bottom + (top − bottom)·l/(L − 1).

    LIMA (Zhou et al. 2023, §3): 0.0 at the bottom, 0.3 at the top. Equal ends are a constant rate
    (InstructGPT's SFT: 0.2).
    """

    bottom: Annotated[float, Range(min=0, max=1, max_open=True)]  # rate of the first layer
    top: Annotated[float, Range(min=0, max=1, max_open=True)]  # rate of the last layer

    def rates(self, layers: int) -> list[float]:
        """Rate of every layer, the first one first; a single layer gets the top's."""
        if layers == 1:
            return [self.top]
        return [self.bottom + (self.top - self.bottom) * i / (layers - 1) for i in range(layers)]


def add_residual_dropout(model: nn.Module, schedule: ResidualDropout) -> int:
    """Drop elements of what attention and feed-forward parts add, while ``model`` trains.

    Returns:
        How many outputs got a dropout: two per layer.

    Raises:
        ConfigError: an architecture whose blocks are not known here.
    """
    blocks = _blocks(model)
    outputs = [[m for name, m in b.named_modules() if name in _OUTPUTS] for b in blocks]
    if not blocks or any(len(found) != 2 for found in outputs):
        raise ConfigError(
            f"residual_dropout: the layers of {type(model).__name__} are not known (what its"
            " attention and feed-forward parts add was not found); set residual_dropout=null."
        )
    for found, rate in zip(outputs, schedule.rates(len(blocks)), strict=True):
        for module in found:
            module.register_forward_hook(_Drop(rate))
    return 2 * len(blocks)


class _Drop:
    """Hook on a module: dropout on its output in training mode."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, _: Any, output: Any) -> Any:
        from torch.nn.functional import dropout

        return dropout(output, self.rate, training=module.training)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder layers: the longest list of modules whose members are alike."""
    from torch.nn import ModuleList

    lists = [m for m in model.modules() if isinstance(m, ModuleList) and len(m)]
    alike = [list(m) for m in lists if len({type(child) for child in m}) == 1]
    return max(alike, key=len, default=[])
