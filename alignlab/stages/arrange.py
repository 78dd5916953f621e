"""From completion sums (C,) of a micro-batch to what an objective takes: pairs, singles, groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from alignlab.tensors import GroupLogps, PairLogps, SingleLogps

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


def group_logps(sums: Tensor, lengths: Tensor, groups: Sequence[TokenGroup]) -> GroupLogps:
    """All completions of every group that has an ordered pair; other groups are left out."""
    kept: list[int] = []
    utility: list[float] = []
    owner: list[int] = []
    pairs: list[tuple[int, int, int]] = []  # better, worse, group
    first = number = 0
    for group in groups:
        if found := group.verdict.pairs():
            start = len(kept)
            pairs += [(start + good, start + bad, number) for good, bad in found]
            kept += range(first, first + len(group.completions))
            utility += group.verdict.utilities()
            owner += [number] * len(group.completions)
            number += 1
        first += len(group.completions)

    def index_of(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=sums.device)

    better, worse, pair_group = (index_of([pair[k] for pair in pairs]) for k in range(3))
    return GroupLogps(
        completion=sums[index_of(kept)],
        length=lengths[index_of(kept)],
        utility=torch.tensor(utility, dtype=sums.dtype, device=sums.device),
        group=index_of(owner),
        better=better,
        worse=worse,
        pair_group=pair_group,
        groups=number,
    )


ARRANGE: Mapping[str, Callable[[Tensor, Tensor, Sequence[TokenGroup]], Any]] = {
    "pair": pair_logps,
    "single": single_logps,
    "group": group_logps,
}
"""How an objective's view of the data is made, by its name (`alignlab.objectives.declaration`)."""
