"""Offline preference optimization: any objective over the annotated completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from alignlab.data.batch import Batch
from alignlab.engine.optimizer import Optimizer
from alignlab.engine.stopping import EarlyStopping
from alignlab.errors import ConfigError
from alignlab.models.load import BackboneConfig
from alignlab.spec import Spec, function
from alignlab.stages.stage import Estimate, Role, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone, View
    from alignlab.objectives.declaration import Declaration
    from alignlab.run import Run
    from alignlab.stages.reference import ReferenceLogps
    from alignlab.stages.session import Metrics, OfflineWork, Packed

SPELLED = {"simpo": "SimPO", "slic": "SLiC"}  # methods that are not all capitals


@dataclass(frozen=True, kw_only=True)
class Preference(Stage):
    """Train the policy with one offline objective: DPO, IPO, KTO, ORPO, SimPO and their kin.

    The objective's signature says what it needs (``alignlab.objectives.declaration``): pairs or
    single completions, a reference pass or none, KTO's KL point or none. Nothing here asks for a
    method's name. The reference is always the run behind the ``reference`` input.
    """

    kind: ClassVar[str] = "preference"
    together: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        "init": Role(("sft", "pretrain")),
        "reference": Role(("sft", "pretrain"), optional=True),
        "annotations": Role(("annotate",)),
    }

    backbone: BackboneConfig
    objective: Spec
    pairs: Literal["best_worst", "all"]
    batch: Batch
    epochs: Annotated[float, Range(min=0, min_open=True)]
    steps: Annotated[int, Range(min=1)] | None
    optimizer: Optimizer
    evaluate_every: Annotated[int, Range(min=0)]
    early_stopping: EarlyStopping | None

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
        from alignlab.stages.session import cache_of, open_backbone

        run = engine.workers().own(run)
        need = declaration(function(self.objective))
        groups = self.training_groups(inputs["annotations"])
        held_out = self.select(read(inputs["annotations"], "validation"))
        backbone = open_backbone(self.backbone, run, engine, self.seed, trains=True)
        reference = None
        if need.needs_reference:
            reference = ReferenceLogps(backbone, inputs["reference"], engine, cache_of(run))
            reference.prepare(Joined(groups, held_out))
            run.update_record(reference=inputs["reference"].path.name)
        backbone.add("policy", source=inputs["init"].model_dir, trainable=True)
        require_own_template(inputs["annotations"], backbone)
        terms = Terms(function(self.objective), need, reference)

        engine = fit_offline(engine, backbone, "policy", groups, self.batch, self.optimizer, run)
        work = self._work(groups, terms, backbone, engine)
        steps = self.steps or work.steps_of(self.epochs)
        if reference is not None and need.needs_kl_point:
            reference.prepare(all_mismatched(map(work.chosen, range(1, steps + 1)), groups))

        def evaluate() -> dict[str, float]:
            return terms.evaluate(backbone, held_out, engine) if held_out else {}

        result = train(
            work,
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
        )
        finish_training(run, backbone, "policy", result, work.counts(result.steps))
        run.update_record(
            label=self.label or self.name(),
            packing=work.packing(result.steps),
            objective={"target": self.objective.target, **dict(self.objective.arguments)},
            summary=evaluate(),
        )

    def _work(
        self, groups: Sequence[TokenGroup], terms: Terms, backbone: Backbone, engine: Engine
    ) -> OfflineWork:
        from alignlab.stages.pairing import mismatched
        from alignlab.stages.session import OfflineWork

        def kl_point(step: Sequence[TokenGroup]) -> Mapping[str, Tensor]:
            return terms.kl_point(backbone, mismatched(step, groups), engine)

        return OfflineWork(
            groups,
            self.batch,
            self.seed,
            engine,
            "policy",
            count=terms.count,
            loss_of=terms.loss,
            statistics=kl_point if terms.need.needs_kl_point else None,
            extra_of=terms.reference_logps if terms.reference else None,
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

        Pairs for a pairwise objective; for one over single completions a thumb is enough.
        """
        from alignlab.data.mapped import Selection
        from alignlab.objectives.declaration import declaration
        from alignlab.stages.pairing import best_and_worst

        single = declaration(function(self.objective)).view == "single"

        def of_use(group: TokenGroup) -> bool:
            if single:
                return any(thumb is not None for thumb in group.verdict.desirable())
            return bool(group.verdict.pairs())

        def two(group: TokenGroup) -> TokenGroup:
            return best_and_worst(group) if group.verdict.pairs() else group

        return Selection.of(groups, of_use, None if self.pairs == "all" else two)

    def name(self) -> str:
        """Short name for tables: the function and its hyperparameters."""
        arguments = ", ".join(f"{k}={v}" for k, v in self.objective.arguments.items())
        function = self.objective.target.rsplit(".", 1)[-1]
        return f"{SPELLED.get(function, function.upper())} ({arguments})"

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """The compared completions of every annotated prompt, at the length limits."""
        from alignlab.stages.annotate import annotated, annotated_rows, group_limit
        from alignlab.stages.estimate import offline_estimate

        made, rows = annotated(inputs), annotated_rows(inputs)
        each = min(made.completions, 2) if self.pairs == "best_worst" else made.completions
        scored = round(rows * group_limit(inputs, completions=each))  # by the reference, at first
        shown = self.epochs * rows
        return offline_estimate(self, cache, made, each=each, shown=shown, scored=scored)


@dataclass(frozen=True)
class Terms:
    """One objective applied to micro-batches: what it needs is gathered here and nowhere else."""

    objective: Callable[..., Tensor]
    need: Declaration
    reference: ReferenceLogps | None

    def count(self, groups: Sequence[TokenGroup]) -> float:
        """Loss units of a step: pairs, or completions with a thumb."""
        if self.need.view == "pair":
            return float(sum(len(g.verdict.pairs()) for g in groups))
        return float(sum(t is not None for g in groups for t in g.verdict.desirable()))

    def reference_logps(self, groups: Sequence[TokenGroup]) -> dict[str, Tensor]:
        """Cached reference log-probabilities (C,), summed over each completion."""
        if self.reference is None:
            raise RuntimeError("this objective has no reference")
        return {"reference": self.reference.sums(groups)}

    def kl_point(
        self, backbone: Backbone, groups: Sequence[TokenGroup], engine: Engine
    ) -> dict[str, Tensor]:
        """KTO's z₀ over the whole step, whose prompts come with other prompts' completions."""
        import torch

        from alignlab.objectives.unpaired import kl_point
        from alignlab.stages.reference import completion_sums

        if self.reference is None:
            raise RuntimeError("a KL point needs a reference")
        with torch.no_grad():
            policy = completion_sums(backbone, "policy", groups, engine)
        return {"kl_point": kl_point(policy - self.reference.sums(groups))}

    def loss(self, view: View, packed: Packed) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch over the units of the whole step, and the usual metrics."""
        from alignlab.objectives.stable import segment_sum

        batch = packed.batch
        sums = segment_sum(view.logps(batch), batch.target_completion, batch.completions)
        reference = packed.extra.get("reference")
        losses, metrics = self.apply(sums, reference, batch.lengths, packed)
        return losses.sum() / packed.count, metrics

    def apply(
        self, sums: Tensor, reference: Tensor | None, lengths: Tensor, packed: Packed
    ) -> tuple[Tensor, Metrics]:
        """Arrange completion sums as pairs or singles and call the objective."""
        from alignlab.objectives.pairwise import pair_metrics
        from alignlab.objectives.unpaired import single_metrics
        from alignlab.stages.arrange import pair_logps, single_logps

        extra: dict[str, Any] = {}
        if "kl_point" in packed.extra:
            extra["kl_point"] = packed.extra["kl_point"]
        arrange = pair_logps if self.need.view == "pair" else single_logps
        describe: Any = pair_metrics if self.need.view == "pair" else single_metrics
        policy = arrange(sums, lengths, packed.groups)
        if reference is not None:
            extra["reference"] = arrange(reference, lengths, packed.groups)
        losses = self.objective(policy, **extra)
        metrics = summed(describe(policy, extra.get("reference")))
        if "kl_point" in extra:
            metrics["kl_point"] = (extra["kl_point"].detach(), 1)
        return losses, metrics

    def evaluate(
        self, backbone: Backbone, groups: Sequence[TokenGroup], engine: Engine
    ) -> dict[str, float]:
        """Metrics of held-out groups: of their pairs, or of single thumbs where there are none."""
        import torch

        from alignlab.objectives.pairwise import pair_metrics
        from alignlab.objectives.unpaired import single_metrics
        from alignlab.stages.arrange import pair_logps, single_logps
        from alignlab.stages.reference import completion_sums

        paired = any(g.verdict.pairs() for g in groups)
        arrange: Any = pair_logps if paired else single_logps
        describe: Any = pair_metrics if paired else single_metrics
        with torch.no_grad():
            sums = completion_sums(backbone, "policy", groups, engine)
            lengths = torch.tensor([n for g in groups for n in g.targets()], device=sums.device)
            policy = arrange(sums, lengths, groups)
            reference = None
            if self.reference is not None:
                reference = arrange(self.reference.sums(groups), lengths, groups)
            metrics = describe(policy, reference)
        return {name: float(values.double().mean()) for name, values in metrics.items()}


def summed(values: Mapping[str, Tensor]) -> Metrics:
    """Per-example metrics as (sum, count), the form that adds up over micro-batches and ranks."""
    return {name: (value.double().sum(), value.numel()) for name, value in values.items()}
