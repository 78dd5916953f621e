"""Which optimizer a name stands for: its torch or bitsandbytes class, its settings, its state.

=================  ===============================================================  ===============
name               update                                                           state (float32)
=================  ===============================================================  ===============
adamw              Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101,       2 a weight
                   algorithm 2; `torch.optim.AdamW`, fused where there is a kernel
adamw_8bit         the same, both moments in 8 bits, blocks of 256 with a scale     ½ + 1/32
                   each (Dettmers et al. 2022, https://arxiv.org/abs/2110.02861);
                   embeddings and tensors below 4,096 elements in float32
adamw_paged        adamw, moments in memory that CUDA moves to the host when the    2 a weight
                   device is full (Dettmers et al. 2023,
                   https://arxiv.org/abs/2305.14314, section 3); on a CPU
                   nothing is moved
adamw_8bit_paged   both                                                             ½ + 1/32
adafactor          Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235,           rows + columns
                   algorithm 4 without momentum; `torch.optim.Adafactor`
lion               Chen et al. 2023 (`alignlab.engine.lion`)                        1 a weight
muon               Jordan et al. 2024, https://kellerjordan.github.io/posts/muon,    1 a weight
                   of matrices in layers, scaled to AdamW's size of step (Liu et
                   al. 2025, https://arxiv.org/abs/2502.16982, equation 4);
                   adamw of everything else
sgd                with momentum, v ← μ v + g, θ ← θ - η v                          1 a weight
=================  ===============================================================  ===============

Weight decay is decoupled from the gradient everywhere but in ``sgd``, whose gradient gets λ θ.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from alignlab.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from alignlab.engine.optimizer import Optimizer

Algorithm = Literal[
    "adamw",
    "adamw_8bit",
    "adamw_paged",
    "adamw_8bit_paged",
    "adafactor",
    "lion",
    "muon",
    "sgd",
]
NAMES: tuple[str, ...] = get_args(Algorithm)
BITSANDBYTES = ("adamw_8bit", "adamw_paged", "adamw_8bit_paged")
# What it is where `momentum` is null: PyTorch's examples and Jordan et al.
MOMENTUM = {"sgd": 0.9, "muon": 0.95}
# Algorithms that treat parameters of one group unlike: see `groups.kind_of`.
BY_KIND = ("muon", "adamw_8bit", "adamw_8bit_paged")
# ZeRO cuts flattened weights anywhere, so an update must be one of each element alone, and what
# `masters` moves and saves are AdamW's two moments.
SHARDED = ("adamw",)

# Bytes of state of a weight: of matrices in layers, and of all else (embeddings, heads, vectors).
# 8 bits have two scales of 4 bytes for 256 weights; the rows and columns of Adafactor are few.
STATE_BYTES: dict[str, tuple[float, float]] = {
    "adamw": (8, 8),
    "adamw_8bit": (2 + 8 / 256, 8),
    "adamw_paged": (8, 8),
    "adamw_8bit_paged": (2 + 8 / 256, 8),
    "adafactor": (0, 0),
    "lion": (4, 4),
    "muon": (4, 8),
    "sgd": (4, 4),
}

Groups = Sequence[dict[str, Any]]


def make(settings: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    """Make the optimizer that ``settings.name`` stands for, over parameter groups.

    Raises:
        ConfigError: bitsandbytes is not installed, or torch is too old for Muon.
    """
    if settings.name == "muon":
        return _muon(settings, groups)
    if settings.name in BITSANDBYTES:
        return _quantised(settings, groups)
    import torch

    rate = settings.learning_rate
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum_or_default)
    if settings.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=rate)
    if settings.name == "lion":
        from alignlab.engine.lion import Lion

        return Lion(groups, lr=rate, betas=settings.betas)
    return _adamw(settings, groups)


def _adamw(settings: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    import torch

    fused = all(
        p.device.type in ("cpu", "cuda") and p.is_floating_point()
        for group in groups
        for p in group["params"]
    )
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=fused
    )


def _muon(settings: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    import torch

    from alignlab.engine.chained import Chained

    hidden = [group for group in groups if group["kind"] == "hidden"]
    rest = [group for group in groups if group["kind"] != "hidden"]
    parts: list[torch.optim.Optimizer] = []
    if hidden:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"optimizer.name=muon needs torch 2.9 or newer, and this is {torch.__version__}."
            )
        parts.append(
            torch.optim.Muon(
                hidden,
                lr=settings.learning_rate,
                momentum=settings.momentum_or_default,
                nesterov=True,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if rest:
        parts.append(_adamw(settings, rest))
    return Chained(parts)


def _quantised(settings: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    from alignlab.engine.chained import Chained

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses an optional kernel
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(
            f"optimizer.name={settings.name} needs bitsandbytes, which is not installed: "
            "pip install 'alignlab[quantization]'."
        ) from error
    eight = "8bit" in settings.name
    wide = [g for g in groups if not eight or g["kind"] == "embedding"]
    narrow = [g for g in groups if eight and g["kind"] != "embedding"]
    return Chained(
        [
            bitsandbytes.optim.AdamW(
                chosen,
                lr=settings.learning_rate,
                betas=settings.betas,
                eps=settings.eps,
                optim_bits=bits,
                is_paged="paged" in settings.name,
            )
            for chosen, bits in ((narrow, 8), (wide, 32))
            if chosen
        ]
    )


def require_whole(settings: Optimizer, zero: int) -> None:
    """Refuse what processes that hold shares (ZeRO) cannot update.

    Raises:
        ConfigError: the optimizer is not AdamW, or layers wait for their turn.
    """
    if settings.name not in SHARDED:
        raise ConfigError(
            f"optimizer.name={settings.name} with engine.zero={zero}: processes that hold shares "
            f"are updated with {' or '.join(SHARDED)} alone. Use that, or engine.zero=0."
        )
    if settings.layerwise is not None and settings.layerwise.thaw is not None:
        raise ConfigError(
            f"optimizer.layerwise.thaw with engine.zero={zero}: DeepSpeed updates all weights that "
            "it holds, those that wait too. Use engine.zero=0, or layerwise.thaw=null."
        )
