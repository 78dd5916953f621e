"""One micro-batch of an offline training, and what its loss must know beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.models.noise import EmbeddingNoise
    from alignlab.tensors import FlatBatch

Metrics = dict[str, tuple[Any, float]]


@dataclass(frozen=True)
class Mismatched:
    """The prompts of a micro-batch, in order, with other prompts' completions."""

    batch: FlatBatch
    reference: Tensor  # (M,) their log-probabilities by the reference, summed, nats


@dataclass(frozen=True)
class Late:
    """What a micro-batch that is a whole step needs to find the step's statistics itself."""

    mismatched: Mismatched | None = None


@dataclass(frozen=True)
class Packed:
    """One micro-batch and the statistics of the step that it belongs to."""

    batch: FlatBatch
    groups: tuple[TokenGroup, ...]
    count: float  # units of the whole step, over all micro-batches and ranks
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    noise: EmbeddingNoise | None = None  # on the embeddings, of the pass that trains alone
    late: Late | None = None  # where the statistics are left to the pass that trains
