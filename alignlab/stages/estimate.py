"""Cost estimates of the stages, from model files' headers alone: no weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.stages.stage import Estimate

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.models.load import BackboneConfig


def training_estimate(
    backbone: BackboneConfig,
    cache: Path,
    *,
    tokens: int,
    forward_tokens: int = 0,
    frozen_views: int = 0,
) -> Estimate:
    """Parameters, FLOPs and memory of training on ``tokens`` tokens.

    ``forward_tokens`` are those that are sampled or scored, without a backward pass.
    """
    from alignlab.models.memory import estimate_memory, parameter_counts, training_flops

    total, trained = parameter_counts(backbone, cache)
    return Estimate(
        params_total=total,
        params_trained=trained,
        tokens=tokens + forward_tokens,
        flops=training_flops(total, trained, tokens) + 2.0 * total * forward_tokens,
        memory_bytes=estimate_memory(backbone, cache, frozen_views=frozen_views),
    )


def sampling_estimate(
    backbone: BackboneConfig, cache: Path, *, tokens: int, frozen_views: int = 1
) -> Estimate:
    """Parameters, FLOPs (2 per parameter and token) and memory of sampling ``tokens`` tokens."""
    from alignlab.models.memory import estimate_memory, parameter_counts

    total, _ = parameter_counts(backbone, cache)
    return Estimate(
        params_total=total,
        tokens=tokens,
        flops=2.0 * total * tokens,
        memory_bytes=estimate_memory(backbone, cache, training=False, frozen_views=frozen_views),
    )
