"""What an evaluation of a reward model measures: accuracy and margin of pairs, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from alignlab.stages.reward import accuracy_of, group_scores, scores_of, target_scores

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone


def measured(
    backbone: Backbone,
    engine: Engine,
    objective: Callable[..., Tensor],
    targets: bool,
    groups: Sequence[TokenGroup],
) -> dict[str, float]:
    """Accuracy and mean margin of the pairs of ``groups``, where there are any, and the loss.

    ``targets`` says that the objective learns scores. Nothing is measured of no groups.
    """
    found: dict[str, float] = {}
    if not groups:
        return found
    scores = group_scores(scores_of(backbone, "reward", groups, engine), groups)
    if len(scores.better):
        gap = scores.reward[scores.better] - scores.reward[scores.worse]
        found |= {"accuracy": accuracy_of(scores), "margin": float(gap.double().mean())}
    losses = objective(target_scores(scores.reward, groups) if targets else scores)
    return found | {"loss": float(losses.mean())}
