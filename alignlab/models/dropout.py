"""Dropout of a loaded model: on what its blocks add, layer by layer, and on attention weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from alignlab.errors import ConfigError
from alignlab.typed import Range

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from alignlab.models.backbone import Backbone

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
# A block's attention, and where it keeps the rate at which its weights are dropped.
_ATTENTION = ("self_attn", "attn", "attention")
_WEIGHTS = ("attention_dropout", "attn_dropout", "dropout")  # the last: OPT


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


def set_attention_dropout(model: nn.Module, rate: float) -> int:
    """Drop attention weights at ``rate`` while ``model`` trains, whatever its configuration says.

    Returns:
        How many layers drop them.

    Raises:
        ConfigError: an architecture whose attention is not known to drop weights.
    """
    from torch.nn import Dropout

    places = [_attention_rate(block) for block in _blocks(model)]
    known = [place for place in places if place is not None]
    if not known or len(known) < len(places):
        raise ConfigError(
            f"attention_dropout: where {type(model).__name__} drops attention weights is not known;"
            " set attention_dropout=null."
        )
    for module, name in known:
        if isinstance(own := getattr(module, name), Dropout):
            own.p = rate
        else:
            setattr(module, name, rate)
    return len(known)


def draws(backbone: Backbone, view: str, device: torch.device) -> bool:
    """Whether a pass that trains ``view`` draws random numbers; makes one, of a blank batch."""
    import torch

    on_gpu = device.type == "cuda"

    def state() -> Tensor:
        return torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state()

    backbone.train_mode(True)
    try:
        with (
            torch.random.fork_rng(devices=[device] if on_gpu else []),
            torch.no_grad(),
            backbone.view(view) as active,
        ):
            before = state()
            active.nothing()
            return not torch.equal(state(), before)
    finally:
        backbone.train_mode(False)


def _attention_rate(block: nn.Module) -> tuple[nn.Module, str] | None:
    """The module of a block, and its attribute, that say how many attention weights drop."""
    found = (m for n, m in block.named_modules() if n in _ATTENTION)
    return next(((m, n) for m in found for n in _WEIGHTS if hasattr(m, n)), None)


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
