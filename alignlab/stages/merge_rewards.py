"""Merging of reward models: several become one by their weights, scalar heads included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from alignlab.errors import ConfigError
from alignlab.stages.merge import Merge, backbone_of, looks_at_changes
from alignlab.stages.stage import START_KINDS, Role, Stage


@dataclass(frozen=True, kw_only=True)
class MergeRewards(Merge):
    """Weight-averaged reward models (WARM: Ramé et al. 2024, 2401.12187) and other rules.

    One model scores where an ensemble has several. Weights can be averaged where trainings share a
    start, also that of the scalar head: let all begin from one reward run (``init``), and differ
    in their seeds. Heads are merged in the unit of their scores, gain and
    offset included, so the average of heads on one body is the average of the scores. The result
    is not normalised again: what its members disagree about has become smaller.
    """

    kind: ClassVar[str] = "reward"
    roles: ClassVar[Mapping[str, Role]] = {
        "model": Role(("reward",), many=True),
        "base": Role((*START_KINDS, "reward"), optional=True),
    }
    heads: ClassVar[bool] = True

    def accept(self, inputs: Mapping[str, Stage]) -> None:
        """What `Merge` refuses, and changes of a head that has no start to count from."""
        super().accept(inputs)
        for name, stage in inputs.items():
            if backbone_of(stage) is None and not isinstance(stage, Merge):
                raise ConfigError(
                    f"inputs.{name}: '{self.inputs[name]}' is a reward function and has no weights."
                )
        base = inputs.get("base")
        if looks_at_changes(self.rule) and (base is None or base.kind != "reward"):
            raise ConfigError(
                f"inputs.base: {self.rule.target} counts what the models changed, and scalar heads"
                " changed from the head that all began with. Name the reward stage there that all"
                " have as inputs.init; or average, with rule linear."
            )

    def name(self) -> str:
        """Short name for tables."""
        return f"reward model, {super().name()}"
