"""Scores of a reward run, on the very tokens that were sampled: nothing is tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignlab import interruption
from alignlab.data.group import TokenGroup
from alignlab.data.pack import flatten, group_tokens, pack


def score_groups(
    view: Any, groups: Sequence[TokenGroup], token_budget: int, device: torch.device | str
) -> Tensor:
    """Score every completion with the scalar head of the active ``view``, without gradients.

    A prompt passes through the model once for all its completions; micro-batches hold at most
    ``token_budget`` tokens (a larger group is a micro-batch of its own). The caller sets evaluation
    mode.

    Args:
        view: an active view with a head; ``view.scores(batch)`` gives (C,) per flat batch.
        groups: G token groups, C completions in all.
        token_budget: tokens per forward pass.
        device: where the model is.

    Returns:
        (C,) fp32 on ``device``, in the order of the groups' completions.
    """
    starts, total = [], 0
    for group in groups:
        starts.append(total)
        total += len(group.completions)
    scores = torch.empty(total, dtype=torch.float32, device=device)
    with torch.no_grad():
        for members in pack([group_tokens(group) for group in groups], token_budget):
            members = [m for m in members if groups[m].completions]
            if not members:
                continue
            interruption.check()
            batch = flatten([groups[m] for m in members]).to(device)
            places = [starts[m] + k for m in members for k in range(len(groups[m].completions))]
            scores[torch.tensor(places, device=device)] = view.scores(batch).float()
    return scores
