"""A reward function in the place of a reward model: a published one, a lexicon, a judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from alignlab.errors import ConfigError
from alignlab.spec import Spec, build
from alignlab.stages.stage import Role, Stage

if TYPE_CHECKING:
    from alignlab.engine.distributed import Engine
    from alignlab.run import Run


@dataclass(frozen=True, kw_only=True)
class RewardFunction(Stage):
    """Trains nothing: whoever has it behind ``reward`` is scored by the function ``reward``.

    So best of n, ensembles and annotation go with a published reward model
    (``reward=checkpoint``) as with one of this study. With ``annotations`` its accuracy on them is
    measured, and with ``normalize`` their scores get mean 0 and standard deviation 1, as those of
    reward models do.
    """

    kind: ClassVar[str] = "reward"
    apart: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {"annotations": Role(("annotate",), optional=True)}

    reward: Spec
    normalize: bool

    def validate(self) -> None:
        """A unit needs scores that it is the unit of."""
        if self.normalize and "annotations" not in self.inputs:
            raise ConfigError("normalize: there are no inputs.annotations; set normalize=false.")

    def fingerprint(self) -> str:
        """Fingerprint of what the function reads: its model's files, its data."""
        return f"{super().fingerprint()} {build(self.reward).fingerprint()}"

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Score the annotated completions, if there are any, and write down the unit."""
        import numpy as np

        from alignlab.rewards.apart import Function, save_function
        from alignlab.stages.annotations import texts_of

        function = Function(build(self.reward))
        mean, std = 0.0, 1.0
        summary: dict[str, float | None] = {"validation_accuracy": None}
        if "annotations" in inputs:
            for split in ("train", "validation"):
                groups = [g for g in texts_of(inputs["annotations"], split) if g.verdict.pairs()]
                scores = function.scores(groups)
                if split == "train" and self.normalize:
                    values = np.array([value for part in scores for value in part])
                    mean, std = float(values.mean()), float(values.std(ddof=1))
                right = [
                    (part[i] > part[j]) + 0.5 * (part[i] == part[j])
                    for group, part in zip(groups, scores, strict=True)
                    for i, j in group.verdict.pairs()
                ]
                summary[f"{split}_accuracy"] = float(np.mean(right)) if right else None
                summary[f"{split}_pairs"] = float(len(right))
        if not std > 0:
            raise ConfigError(f"normalize: {function.reward.name} gives all texts the same score.")
        save_function(run.model_dir, self.reward, mean, std)
        label = self.label or function.reward.name
        run.update_record(label=label, params_total=0, summary=summary)
