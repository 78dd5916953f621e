"""The reward runs behind a stage: views of its backbone, and models that stand apart from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from alignlab.engine.dealt import Dealt
from alignlab.engine.stopping import together
from alignlab.rewards.apart import Apart, Function, open_apart, stands_apart

if TYPE_CHECKING:
    from alignlab.data.group import PromptGroup, TokenGroup
    from alignlab.engine.distributed import Workers
    from alignlab.models.backbone import Backbone
    from alignlab.run import Run


class Judges:
    """Reward runs by the name that their scores go by; all are opened when it is made."""

    def __init__(
        self, backbone: Backbone, runs: Mapping[str, Run], workers: Workers, token_budget: int
    ) -> None:
        self.dealt = Dealt(backbone, workers, token_budget)
        self.names = tuple(runs)
        self.apart: dict[str, Apart | Function] = {}
        for name, run in runs.items():
            if stands_apart(run.model_dir):
                self.apart[name] = open_apart(run, workers.device)
            else:
                backbone.add(name, source=run.model_dir, trainable=False, head=True)

    def scores(
        self,
        name: str,
        tokens: Sequence[TokenGroup],
        texts: Callable[[], Sequence[PromptGroup]],
    ) -> list[list[float]]:
        """What one of them gives to every completion of this process's groups.

        ``texts`` are the same groups as texts, for one that stands apart and encodes them again.
        """
        if name not in self.apart:
            return self.dealt.scores(name, tokens)
        asked = partial(self.apart[name].scores, texts(), self.dealt.token_budget)
        return together(self.dealt.workers, asked)


def value_source(rewards: Sequence[Run], init: Run) -> Run:
    """What a value view starts from: the first reward run, if it is of the policy's own kind."""
    return rewards[0] if rewards and not stands_apart(rewards[0].model_dir) else init
