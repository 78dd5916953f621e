"""From completion sums (C,) of a micro-batch to the pairs or singles an objective takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from alignlab.tensors import PairLogps, SingleLogps

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.data.group import TokenGroup


def pair_logps(sums: Tensor, lengths: Tensor, groups: Sequence[TokenGroup]) -> PairLogps:
    """All ordered pairs of every group. ``sums`` and ``lengths`` are (C,) in the groups' order."""
    better, worse, first = [], [], 0
    for group in groups:
        for good, bad in group.verdict.pairs():
            better.append(first + good)
            worse.append(first + bad)
        first += len(group.completions)
    chosen = torch.tensor(better, dtype=torch.long, device=sums.device)
    rejected = torch.tensor(worse, dtype=torch.long, device=sums.device)
    return PairLogps(sums[chosen], sums[rejected], lengths[chosen], lengths[rejected])


def single_logps(sums: Tensor, lengths: Tensor, groups: Sequence[TokenGroup]) -> SingleLogps:
    """All completions with a thumb; a completion without one (a tie, a middle rank) is left out."""
    thumbs = [thumb for group in groups for thumb in group.verdict.desirable()]
    kept = [i for i, thumb in enumerate(thumbs) if thumb is not None]
    index = torch.tensor(kept, dtype=torch.long, device=sums.device)
    desirable = torch.tensor([thumbs[i] for i in kept], dtype=torch.bool, device=sums.device)
    return SingleLogps(sums[index], lengths[index], desirable)
