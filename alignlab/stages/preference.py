"""Offline preference optimization: any objective over the annotated completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from alignlab.data.batch import Batch
from alignlab.engine.optimizer import Optimizer
from alignlab.engine.stopping import EarlyStopping
from alignlab.errors import ConfigError
from alignlab.models.load import BackboneConfig
from alignlab.spec import Spec, function
from alignlab.stages.anchors import anchored, require_anchor
from alignlab.stages.generalization import both_sides, drawn, require_stopping
from alignlab.stages.moving import Moves, MovingReference
from alignlab.stages.stage import START_KINDS, Estimate, Role, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone
    from alignlab.run import Run
    from alignlab.stages.reference import ReferenceLogps
    from alignlab.stages.session import OfflineWork
    from alignlab.stages.terms import Terms


# What evaluations may give: of pairs or of single completions, with a reference or without.
METRICS = (
    *("loss", "accuracy", "margin", "chosen_logp", "rejected_logp", "chosen_length"),
    *("rejected_length", "chosen_log_ratio", "rejected_log_ratio", "logp", "length", "log_ratio"),
)


@dataclass(frozen=True, kw_only=True)
class Preference(Stage):
    """Train the policy with one offline objective: DPO, IPO, KTO, ORPO, SimPO and their kin.

    The objective's signature says what it needs (``alignlab.objectives.declaration``): pairs,
    single completions or whole prompts, a reference pass or none, statistics of the step or none.
    Nothing here asks for a method's name. The reference is the run behind the ``reference`` input,
    which ``reference_moves`` lets follow the policy. ``neftune_alpha`` disturbs the embeddings of
    the passes that train, never the reference's or an evaluation's.
    """

    kind: ClassVar[str] = "preference"
    together: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        "init": Role(START_KINDS),
        "reference": Role(START_KINDS, optional=True),
        "annotations": Role(("annotate",)),
    }
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset(
        {"reference_moves", "anchor", "neftune_alpha", "gap_rows"}
    )

    backbone: BackboneConfig
    objective: Spec
    pairs: Literal["best_worst", "all"]
    batch: Batch
    epochs: Annotated[float, Range(min=0, min_open=True)]
    steps: Annotated[int, Range(min=1)] | None
    optimizer: Optimizer
    evaluate_every: Annotated[int, Range(min=0)]
    early_stopping: EarlyStopping | None
    reference_moves: Moves | None = None
    anchor: Spec | None = None
    neftune_alpha: Annotated[float, Range(min=0, min_open=True)] | None = None
    gap_rows: Annotated[int, Range(min=1)] | None = None

    def validate(self) -> None:
        """What the objective asks for: the run that it refers to, two prompts for a KL point."""
        from alignlab.spec import late

        needs = late(self.objective)
        if "kl_point" in needs and self.batch == 1:
            raise ConfigError(
                f"batch={self.batch}: {self.objective.target} estimates its KL point from the"
                " completions of other prompts of the same step; use a batch of 2 or more."
            )
        if "reference" in needs and "reference" not in self.inputs:
            raise ConfigError(
                f"inputs.reference is missing: {self.objective.target} compares the policy with a"
                " reference; name the SFT stage there."
            )
        require_anchor(self.anchor)
        require_stopping(self.early_stopping, self.evaluate_every, METRICS, self.gap_rows)
        if self.reference_moves is None:
            return
        if "reference" not in needs:
            raise ConfigError(
                f"reference_moves: {self.objective.target} has no reference that could move; set it"
                " to null."
            )
        if self.reference_moves.weight < 1 and self.backbone.adapter.shares_base:
            raise ConfigError(
                f"reference_moves.weight={self.reference_moves.weight}: adapters are mixed factor"
                " by factor, which is no mixture of what they do to the weights. Use weight=1 (a"
                " copy every so many steps), or adapter=full."
            )

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Train on the annotated groups; reference log-probabilities come from a shared cache."""
        from alignlab.data.mapped import Joined
        from alignlab.engine.loop import train
        from alignlab.objectives.declaration import declaration
        from alignlab.stages.annotate import read, require_own_template
        from alignlab.stages.budget import fit_offline
        from alignlab.stages.finish import finish_training
        from alignlab.stages.pairing import all_mismatched
        from alignlab.stages.reference import ReferenceLogps
        from alignlab.stages.session import open_backbone
        from alignlab.stages.terms import Terms

        run = engine.workers().own(run)
        need = declaration(function(self.objective))
        groups = self.training_groups(inputs["annotations"])
        held_out = self.select(read(inputs["annotations"], "validation"))
        backbone = open_backbone(self.backbone, run, engine, self.seed, shared=True)
        reference = self._reference(backbone, inputs, engine, run)
        if isinstance(reference, ReferenceLogps):
            reference.prepare(Joined(groups, held_out))
        backbone.add("policy", source=inputs["init"].model_dir, trainable=True)
        require_own_template(inputs["annotations"], backbone)
        terms = Terms(function(self.objective), need, reference)

        engine = fit_offline(engine, backbone, "policy", groups, self.batch, self.optimizer, run)
        work = self._work(groups, terms, backbone, engine)
        steps = self.steps or work.steps_of(self.epochs)
        if isinstance(reference, ReferenceLogps) and need.needs_kl_point:
            measured = [held_out, drawn(groups, self.gap_rows, self.seed)]
            meetings = chain(map(work.chosen, range(1, steps + 1)), measured)
            reference.prepare(all_mismatched(meetings, groups))

        def measure(rows: Sequence[TokenGroup]) -> dict[str, float]:
            return terms.evaluate(backbone, rows, groups, engine) if rows else {}

        evaluate = both_sides(measure, held_out, groups, self.gap_rows, self.seed)
        result = train(
            anchored(self.anchor, work, backbone, inputs["init"].model_dir),
            backbone,
            ["policy"],
            optimizer=self.optimizer,
            steps=steps,
            run=run,
            engine=engine,
            seed=self.seed,
            evaluate=evaluate,
            evaluate_every=self.evaluate_every,
            early_stopping=self.early_stopping,
            after_step=reference.follow if isinstance(reference, MovingReference) else None,
        )
        finish_training(run, backbone, "policy", result, work.counts(result.steps))
        run.update_record(
            label=self.label or self.name(),
            packing=work.packing(result.steps),
            objective={"target": self.objective.target, **dict(self.objective.arguments)},
            summary=evaluate(),
        )

    def _reference(
        self, backbone: Backbone, inputs: Mapping[str, Run], engine: Engine, run: Run
    ) -> ReferenceLogps | MovingReference | None:
        """What the policy is compared with, if the objective compares it; the record says so."""
        from alignlab.objectives.declaration import declaration
        from alignlab.stages.reference import ReferenceLogps
        from alignlab.stages.session import cache_of

        if not declaration(function(self.objective)).needs_reference:
            return None
        source = inputs["reference"]
        run.update_record(reference=source.path.name)
        if self.reference_moves is not None:
            return MovingReference(backbone, source, engine, self.reference_moves)
        return ReferenceLogps(backbone, source, engine, cache_of(run))

    def _work(
        self, groups: Sequence[TokenGroup], terms: Terms, backbone: Backbone, engine: Engine
    ) -> OfflineWork:
        from alignlab.models.dropout import draws
        from alignlab.stages.packed import Late
        from alignlab.stages.session import OfflineWork

        def statistics(step: Sequence[TokenGroup]) -> Mapping[str, Tensor]:
            return terms.statistics(step, groups, backbone, engine)

        device = engine.workers().device

        def late(step: Sequence[TokenGroup]) -> Late:
            return terms.late(step, groups, device)

        # A statistic is of the policy as it is: not of a pass that noise or dropout disturbs.
        apart = not terms.need.has_statistics or engine.zero or self.neftune_alpha is not None
        apart = apart or draws(backbone, "policy", device)

        return OfflineWork(
            groups,
            self.batch,
            self.seed,
            engine,
            "policy",
            count=terms.count,
            loss_of=terms.loss,
            statistics=statistics if terms.need.has_statistics else None,
            late_of=None if apart else late,
            extra_of=terms.reference_logps if terms.reference else None,
            neftune_alpha=self.neftune_alpha,
            memory=terms.reference if isinstance(terms.reference, MovingReference) else None,
        )

    def training_groups(self, annotations: Run) -> Sequence[TokenGroup]:
        """Annotated groups to train on; raises DataError when there are too few."""
        from alignlab.objectives.declaration import declaration
        from alignlab.stages.annotate import read, require_verdicts

        groups = self.select(read(annotations, "train"))
        needs_two = declaration(function(self.objective)).needs_kl_point
        require_verdicts(groups, annotations, least=2 if needs_two else 1)
        return groups

    def select(self, groups: Sequence[TokenGroup]) -> Sequence[TokenGroup]:
        """Groups whose verdict is of use to the objective, reduced to best and worst if asked to.

        That is one with a pair; for an objective over single completions a thumb is enough.
        """
        from alignlab.data.mapped import Selection
        from alignlab.objectives.declaration import declaration
        from alignlab.stages.pairing import best_and_worst, of_use

        single = declaration(function(self.objective)).view == "single"

        def two(group: TokenGroup) -> TokenGroup:
            return best_and_worst(group) if group.verdict.pairs() else group

        useful = partial(of_use, single=single)
        return Selection.of(groups, useful, None if self.pairs == "all" else two)

    def name(self) -> str:
        """Short name for tables: what the objective calls itself, and its hyperparameters."""
        from alignlab.objectives.declaration import display_name

        said = [f"{k}={v}" for k, v in self.objective.arguments.items()]
        called = display_name(function(self.objective))
        if moves := self.reference_moves:
            called = f"TR-{called}"
            said.append(f"reference moves {moves.weight:g} every {moves.every}")
        return f"{called} ({', '.join(said)})" if said else called

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """The compared completions of every annotated prompt, at the length limits."""
        from alignlab.stages.annotate import annotated, annotated_rows, group_limit
        from alignlab.stages.estimate import offline_estimate

        made, rows = annotated(inputs), annotated_rows(inputs)
        each = min(made.completions, 2) if self.pairs == "best_worst" else made.completions
        shown = self.epochs * rows
        # By the reference: at first, or again and again where it moves.
        scored = round((shown if self.reference_moves else rows) * group_limit(inputs, each))
        return offline_estimate(self, cache, made, each=each, shown=shown, scored=scored)
