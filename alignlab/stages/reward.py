"""Reward modelling: a scalar head that orders completions as the annotator did."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from alignlab.data.batch import Batch
from alignlab.engine.optimizer import Optimizer
from alignlab.engine.stopping import EarlyStopping
from alignlab.errors import ConfigError, DataError
from alignlab.models.encoders import Pooling
from alignlab.models.load import BackboneConfig
from alignlab.spec import Spec, function
from alignlab.stages.anchors import anchored, require_anchor
from alignlab.stages.generalization import both_sides, require_stopping, summary_of
from alignlab.stages.stage import Estimate, Role, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.engine.work import Work
    from alignlab.models.backbone import Backbone, View
    from alignlab.rewards.apart import Encodes
    from alignlab.run import Run
    from alignlab.stages.packed import Metrics, Packed
    from alignlab.tensors import GroupScores, TargetScores


@dataclass(frozen=True, kw_only=True)
class Reward(Stage):
    """Bradley–Terry over all pairs of a prompt as one batch element (InstructGPT §3.5, eq. 1).

    Every completion passes through the model once, whatever the number of pairs it takes part in.
    An objective whose parameter is annotated `TargetScores` learns the scores themselves instead of
    their order (regression, or a classifier of thumbs); rankings have none, and are left out.
    With ``pairs: shuffled`` every pair is an element of its own and all are shuffled together, so
    one pass over them takes up to K − 1 gradient steps on a completion: InstructGPT found that a
    single epoch overfits that way.
    The score is read at the completion's last token. Without ``init`` the model is the backbone's
    own, of whatever family, and reads texts with its own tokenizer; so do encoders, whose score is
    read at the first token ([CLS]) or the mean of all (``pooling``). After training, gain and bias
    are set so that the scores of the annotated completions have mean 0 and standard deviation 1
    (Ziegler et al. 2019), and a KL coefficient means the same for every reward model.
    """

    kind: ClassVar[str] = "reward"
    together: ClassVar[bool] = True
    encodes: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        "init": Role(("sft", "continued_pretrain", "pretrain", "merge", "reward"), optional=True),
        "annotations": Role(("annotate",)),
    }
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset({"anchor", "gap_rows", "pooling"})

    backbone: BackboneConfig
    objective: Spec
    pairs: Literal["together", "shuffled"]
    batch: Batch
    epochs: Annotated[float, Range(min=0, min_open=True)]
    steps: Annotated[int, Range(min=1)] | None
    optimizer: Optimizer
    normalize: bool
    evaluate_every: Annotated[int, Range(min=0)]
    early_stopping: EarlyStopping | None
    anchor: Spec | None = None
    gap_rows: Annotated[int, Range(min=1)] | None = None
    pooling: Pooling | None = None

    @property
    def apart(self) -> bool:
        """Whether its model reads texts with a tokenizer of its own."""
        return "init" not in self.inputs

    def validate(self) -> None:
        """An anchor holds weights; scores that are learned by themselves have no pairs."""
        require_anchor(self.anchor, "scores")
        if self.anchor is not None and "init" not in self.inputs:
            raise ConfigError("anchor: without inputs.init there is nothing to be held to.")
        names = ("accuracy", "margin", "loss")
        require_stopping(self.early_stopping, self.evaluate_every, names, self.gap_rows)
        if self.pairs == "shuffled" and learns_scores(self.objective) is not None:
            raise ConfigError(
                f"pairs=shuffled: {self.objective.target} learns the score of every completion by"
                " itself, so there are no pairs; set pairs=together."
            )

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Train the scalar head and its backbone on the annotated rankings."""
        from alignlab.engine.loop import train
        from alignlab.stages.budget import fit_offline
        from alignlab.stages.finish import finish_training
        from alignlab.stages.reward_measures import measured
        from alignlab.stages.reward_start import started
        from alignlab.stages.session import OfflineWork

        run = engine.workers().own(run)
        targets = learns_scores(self.objective) is not None
        start = started(self, inputs, run, engine, scored if targets else ordered)
        backbone, groups, held_out = start.backbone, start.groups, start.held_out
        require_shares(self.objective, groups, inputs["annotations"])
        elements = groups if self.pairs == "together" else single_pairs(groups)
        objective = function(self.objective)

        measure = partial(measured, backbone, engine, objective, targets)
        evaluate = both_sides(measure, held_out, groups, self.gap_rows, self.seed)
        engine = fit_offline(
            engine, backbone, "reward", elements, self.batch, self.optimizer, run, head=True
        )
        work = OfflineWork(
            elements,
            self.batch,
            self.seed,
            engine,
            "reward",
            count=number,
            loss_of=partial(loss, objective, targets),
        )
        held: Work = work
        if self.anchor is not None:
            held = anchored(self.anchor, work, backbone, inputs["init"].model_dir)
        result = train(
            held,
            backbone,
            ["reward"],
            optimizer=self.optimizer,
            steps=self.steps or work.steps_of(self.epochs),
            run=run,
            engine=engine,
            seed=self.seed,
            evaluate=evaluate,
            evaluate_every=self.evaluate_every if held_out else 0,
            early_stopping=self.early_stopping,
        )
        summary: dict[str, float | None] = {"validation_accuracy": None}
        summary |= summary_of(evaluate())
        if self.normalize:
            values = scores_of(backbone, "reward", groups, engine)
            backbone.set_normalization("reward", float(values.mean()), float(values.std()))
        finish_training(run, backbone, "reward", result, work.counts(result.steps))
        start.mark(run, engine)
        if any(g.verdict.pairs() for g in groups):
            summary["train_accuracy"] = pair_accuracy(backbone, "reward", groups, engine)
        summary["validation_pairs"] = sum(len(g.verdict.pairs()) for g in held_out)
        label, packing = self.label or "reward model", work.packing(result.steps)
        run.update_record(label=label, packing=packing, summary=summary)

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """All completions of every annotated prompt, at the length limits, ``epochs`` times."""
        from alignlab.stages.annotate import annotated, annotated_rows
        from alignlab.stages.estimate import offline_estimate
        from alignlab.stages.reward_start import require_start

        encoder = require_start(self.backbone, self.pooling, inputs.get("init"), cache)
        ranked = annotated(inputs)
        shown, each = self.epochs * annotated_rows(inputs), ranked.completions
        if self.pairs == "shuffled":
            shown, each = shown * math.comb(each, 2), 2
        return offline_estimate(
            self, cache, ranked, each=each, shown=shown, logits=False, rows=encoder is not None
        )


def loss(
    objective: Callable[..., Tensor], targets: bool, view: View, packed: Packed
) -> tuple[Tensor, Metrics]:
    """Loss of one micro-batch over the elements of the whole step, and what its pairs say."""
    scores = group_scores(view.scores(packed.batch), packed.groups)
    losses = objective(target_scores(scores.reward, packed.groups) if targets else scores)
    margin = (scores.reward[scores.better] - scores.reward[scores.worse]).detach()
    return losses.sum() / packed.count, {
        "accuracy": ((margin > 0).double().sum(), len(margin)),
        "margin": (margin.double().sum(), len(margin)),
    }


def number(step: Sequence[TokenGroup]) -> float:
    """Number of elements of a step: the unit of the loss."""
    return float(len(step))


def ordered(annotations: Run, split: str, encoding: Encodes | None = None) -> Sequence[TokenGroup]:
    """Annotated groups of a split whose verdict tells completions apart, read when asked for."""
    from alignlab.data.mapped import Selection
    from alignlab.stages.annotate import read

    groups = read(annotations, split, encoding)
    return Selection.of(groups, lambda group: bool(group.verdict.pairs()))


def learns_scores(objective: Spec) -> type[TargetScores] | None:
    """The type of scores that a reward objective learns, by its parameter's annotation; if any."""
    from alignlab.spec import late
    from alignlab.tensors import TargetScores

    kinds = [kind for kind in late(objective).values() if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, TargetScores)), None)


def require_shares(objective: Spec, groups: Sequence[TokenGroup], annotations: Run) -> None:
    """Refuse scores outside [0, 1] where the objective takes them for probabilities.

    Raises:
        DataError: names the first such prompt.
    """
    from alignlab.tensors import TargetShares

    if learns_scores(objective) is not TargetShares:
        return
    for group in groups:
        if not all(0 <= value <= 1 for value in group.verdict.utilities()):
            raise DataError(
                f"{annotations.name}: the scores of prompt '{group.id}' are not all in [0, 1]"
                f" ({group.verdict.utilities()}), and {objective.target} takes them for"
                " probabilities. Rescale them, or learn them with reward_objective=squared_error."
            )


def scored(annotations: Run, split: str, encoding: Encodes | None = None) -> Sequence[TokenGroup]:
    """Annotated groups of a split whose verdict gives every completion a score, or a thumb."""
    from alignlab.data.mapped import Selection
    from alignlab.stages.annotate import read

    given = ("scores", "thumbs")
    groups = read(annotations, split, encoding)
    return Selection.of(groups, lambda group: group.verdict.kind in given)


def single_pairs(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Every ordered pair of every prompt as a group of two, numbered as rows of their own."""
    pairs = [group.keep(pair) for group in groups for pair in group.verdict.pairs()]
    return [replace(pair, row=row) for row, pair in enumerate(pairs)]


def group_scores(reward: Tensor, groups: Sequence[TokenGroup]) -> GroupScores:
    """Arrange the (C,) scores of a micro-batch as ordered pairs within their prompts."""
    import torch

    from alignlab.tensors import GroupScores

    better, worse, owner, first = [], [], [], 0
    for index, group in enumerate(groups):
        for good, bad in group.verdict.pairs():
            better.append(first + good)
            worse.append(first + bad)
            owner.append(index)
        first += len(group.completions)

    def index_of(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=reward.device)

    return GroupScores(reward, index_of(better), index_of(worse), index_of(owner), len(groups))


def target_scores(reward: Tensor, groups: Sequence[TokenGroup]) -> TargetScores:
    """The (C,) scores of a micro-batch beside those that the verdicts give."""
    import torch

    from alignlab.tensors import TargetScores

    given = [value for group in groups for value in group.verdict.utilities()]
    owner = [index for index, group in enumerate(groups) for _ in group.completions]
    return TargetScores(
        reward,
        torch.tensor(given, dtype=reward.dtype, device=reward.device),
        torch.tensor(owner, dtype=torch.long, device=reward.device),
        len(groups),
    )


def scores_of(
    backbone: Backbone, view: str, groups: Sequence[TokenGroup], engine: Engine
) -> Tensor:
    """Scores (C,) of all completions of ``groups``, in order, without gradients."""
    from alignlab.engine.dealt import Dealt, scalars

    return Dealt(backbone, engine.workers(), engine.budget).numbers(view, groups, scalars)


def pair_accuracy(
    backbone: Backbone, view: str, groups: Sequence[TokenGroup], engine: Engine
) -> float:
    """Share of ordered pairs whose better completion scores higher; a tie counts one half."""
    return accuracy_of(group_scores(scores_of(backbone, view, groups, engine), groups))


def accuracy_of(scores: GroupScores) -> float:
    """Share of ordered pairs that the scores order rightly; a tie counts one half."""
    gap = scores.reward[scores.better] - scores.reward[scores.worse]
    return float(((gap > 0).double() + 0.5 * (gap == 0).double()).mean())
