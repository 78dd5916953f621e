"""One preference objective applied to micro-batches: what it needs is gathered here alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone, View
    from alignlab.models.kept_prompts import KeptPrompts
    from alignlab.objectives.declaration import Declaration
    from alignlab.stages.packed import Late, Metrics, Packed


class Reference(Protocol):
    """What the policy is compared with: the frozen run behind the input, or one that moves."""

    def sums(self, groups: Sequence[TokenGroup]) -> Tensor:
        """Log-probabilities (C,) of all completions of ``groups``, each summed (nats)."""
        ...


@dataclass(frozen=True)
class Terms:
    """An objective, what it declares, and the reference that it is compared with."""

    objective: Callable[..., Tensor]
    need: Declaration
    reference: Reference | None

    def count(self, groups: Sequence[TokenGroup]) -> float:
        """Loss units of a step: pairs, completions with a thumb, or prompts with a pair."""
        if self.need.view == "single":
            return float(sum(t is not None for g in groups for t in g.verdict.desirable()))
        pairs = [len(g.verdict.pairs()) for g in groups]
        return float(sum(pairs) if self.need.view == "pair" else sum(map(bool, pairs)))

    def reference_logps(self, groups: Sequence[TokenGroup]) -> dict[str, Tensor]:
        """Reference log-probabilities (C,), summed over each completion."""
        return {"reference": self._reference().sums(groups)}

    def _reference(self) -> Reference:
        if self.reference is None:
            raise RuntimeError("this objective has no reference")
        return self.reference

    def statistics(
        self,
        step: Sequence[TokenGroup],
        others: Sequence[TokenGroup],
        backbone: Backbone,
        engine: Engine,
    ) -> dict[str, Tensor]:
        """What the objective must know of a whole step before its first micro-batch.

        ``others`` lend a prompt their completions where the step holds no other prompt.
        """
        from alignlab.stages.pairing import mismatched

        found: dict[str, Tensor] = {}
        if self.need.needs_kl_point:
            found |= self.kl_point(backbone, mismatched(step, others), engine)
        if self.need.needs_shift:
            found |= self.log_ratio_shift(backbone, step, engine)
        return found

    def kl_point(
        self, backbone: Backbone, groups: Sequence[TokenGroup], engine: Engine
    ) -> dict[str, Tensor]:
        """KTO's z₀ over the whole step, whose prompts come with other prompts' completions."""
        from alignlab.objectives.unpaired import kl_point
        from alignlab.stages.reference import completion_sums

        policy = completion_sums(backbone, "policy", groups, engine)
        return {"kl_point": kl_point(policy - self._reference().sums(groups))}

    def late(
        self,
        step: Sequence[TokenGroup],
        others: Sequence[TokenGroup],
        device: torch.device | str,
    ) -> Late:
        """What `loss` needs to find the `statistics` of a step that is one micro-batch."""
        from alignlab.data.pack import flatten
        from alignlab.stages.packed import Late, Mismatched
        from alignlab.stages.pairing import mismatched

        if not self.need.needs_kl_point:
            return Late()
        groups = mismatched(step, others)
        sums = self._reference().sums(groups)
        return Late(Mismatched(flatten(groups).to(device), sums))

    def _found_late(
        self, view: View, late: Late, kept: KeptPrompts, sums: Tensor, packed: Packed
    ) -> dict[str, Tensor]:
        """The `statistics` of a step, out of the pass that trains on all of it."""
        from alignlab.objectives.stable import segment_sum
        from alignlab.objectives.unpaired import kl_point

        found: dict[str, Tensor] = {}
        if late.mismatched is not None:
            batch, reference = late.mismatched.batch, late.mismatched.reference
            logps = view.logps_behind(batch, kept)
            other = segment_sum(logps, batch.target_completion, batch.completions)
            found["kl_point"] = kl_point(other - reference)
        if self.need.needs_shift:
            found |= shift_of(sums.detach() - packed.extra["reference"], packed.groups)
        return found

    def log_ratio_shift(
        self, backbone: Backbone, groups: Sequence[TokenGroup], engine: Engine
    ) -> dict[str, Tensor]:
        """BCO's shift over all completions with a thumb of the whole step."""
        from alignlab.stages.reference import completion_sums

        policy = completion_sums(backbone, "policy", groups, engine)
        return shift_of(policy - self._reference().sums(groups), groups)

    def loss(self, view: View, packed: Packed) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch over the units of the whole step, and the usual metrics."""
        from alignlab.models.kept_prompts import KeptPrompts
        from alignlab.objectives.stable import segment_sum

        batch, late, kept = packed.batch, packed.late, KeptPrompts()
        keeps = late is not None and late.mismatched is not None
        logps = view.logps(batch, noise=packed.noise, keep=kept if keeps else None)
        sums = segment_sum(logps, batch.target_completion, batch.completions)
        if late is not None:
            found = self._found_late(view, late, kept, sums, packed)
            packed = replace(packed, extra={**packed.extra, **found})
        reference = packed.extra.get("reference")
        losses, metrics = self.apply(sums, reference, batch.lengths, packed)
        return losses.sum() / packed.count, metrics

    def apply(
        self, sums: Tensor, reference: Tensor | None, lengths: Tensor, packed: Packed
    ) -> tuple[Tensor, Metrics]:
        """Losses of the micro-batch, unreduced, and the usual metrics of its completions."""
        statistics = {n: packed.extra[n] for n in STATISTICS if n in packed.extra}
        losses = self._losses(sums, reference, lengths, packed.groups, statistics)
        paired = self.need.view != "single"
        metrics = summed(described(sums, reference, lengths, packed.groups, paired=paired))
        for name, value in statistics.items():
            metrics[name] = (value.detach(), 1)
        return losses, metrics

    def _losses(
        self,
        sums: Tensor,
        reference: Tensor | None,
        lengths: Tensor,
        groups: Sequence[TokenGroup],
        statistics: Mapping[str, Tensor],
    ) -> Tensor:
        """Arrange completion sums as the objective wants them and call it."""
        from alignlab.stages.arrange import ARRANGE

        arrange = ARRANGE[self.need.view]
        extra: dict[str, Any] = dict(statistics)
        if reference is not None:
            extra["reference"] = arrange(reference, lengths, groups)
        losses: Tensor = self.objective(arrange(sums, lengths, groups), **extra)
        return losses

    def evaluate(
        self,
        backbone: Backbone,
        groups: Sequence[TokenGroup],
        others: Sequence[TokenGroup],
        engine: Engine,
    ) -> dict[str, float]:
        """Metrics of groups: of their pairs, or of single thumbs where there are none; the loss.

        What an objective must know of a whole step (a KL point) is of all ``groups`` as one step;
        ``others`` are as in `statistics`.
        """
        import torch

        from alignlab.stages.reference import completion_sums

        paired = any(g.verdict.pairs() for g in groups)
        with torch.no_grad():
            sums = completion_sums(backbone, "policy", groups, engine)
            lengths = torch.tensor([n for g in groups for n in g.targets()], device=sums.device)
            reference = None
            if self.reference is not None:
                reference = self.reference.sums(groups)
            metrics = described(sums, reference, lengths, groups, paired=paired)
            known = self.statistics(groups, others, backbone, engine)
            metrics["loss"] = self._losses(sums, reference, lengths, groups, known)
        return {name: float(values.double().mean()) for name, values in metrics.items()}


def shift_of(ratios: Tensor, groups: Sequence[TokenGroup]) -> dict[str, Tensor]:
    """BCO's shift from the log-ratios (C,) of all completions of a step."""
    from alignlab.objectives.unpaired import log_ratio_shift
    from alignlab.stages.arrange import single_logps

    single = single_logps(ratios, ratios.new_ones(len(ratios)), groups)
    return {"log_ratio_shift": log_ratio_shift(single.completion, single.desirable)}


STATISTICS = ("kl_point", "log_ratio_shift")  # of a whole step, made before its first micro-batch


def described(
    sums: Tensor,
    reference: Tensor | None,
    lengths: Tensor,
    groups: Sequence[TokenGroup],
    *,
    paired: bool,
) -> dict[str, Tensor]:
    """What every method reports of its pairs, or of its single completions; unreduced."""
    from alignlab.objectives.pairwise import pair_metrics
    from alignlab.objectives.unpaired import single_metrics
    from alignlab.stages.arrange import pair_logps, single_logps

    arrange: Any = pair_logps if paired else single_logps
    describe: Any = pair_metrics if paired else single_metrics
    other = None if reference is None else arrange(reference, lengths, groups)
    return describe(arrange(sums, lengths, groups), other)


def summed(metrics: dict[str, Tensor]) -> Metrics:
    """Per-example metrics as (sum, count)."""
    return {name: (values.double().sum(), len(values)) for name, values in metrics.items()}
