"""Model merging: several finished policies become one, without training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from alignlab.errors import ConfigError, did_you_mean
from alignlab.spec import Spec, function, late
from alignlab.stages.stage import START_KINDS, Estimate, Role, Stage, filling
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignlab.engine.distributed import Engine
    from alignlab.models.load import BackboneConfig
    from alignlab.models.merge import Merger
    from alignlab.run import Run

_TWO = ("pair", "pair_deltas")  # what a rule of exactly two models asks for
_NEED_BASE = ("deltas", "pair_deltas")


@dataclass(frozen=True, kw_only=True)
class Merge(Stage):
    """Merge the models behind ``model``, ``model/1`` … by a rule of `alignlab.models.merging`.

    They must go back to one base model, and either all be whole models or all be LoRA adapters.
    What they changed is counted from the run behind ``base``, or else from the base model itself.
    Adapters are merged as the models that they stand for, and give an adapter again.
    """

    kind: ClassVar[str] = "merge"
    roles: ClassVar[Mapping[str, Role]] = {
        "model": Role(START_KINDS, many=True),
        "base": Role(START_KINDS, optional=True),
    }
    heads: ClassVar[bool] = False  # whether the models have scalar heads
    importances: ClassVar[bool] = False  # whether it measures what each weight matters

    rule: Spec
    weights: tuple[float, ...] | None
    rank: Annotated[int, Range(min=1)] | None

    def validate(self) -> None:
        """As many weights as models, of use to the rule, and no base that it does not look at."""
        models = filling("model", self.inputs)
        needs = list(late(self.rule))
        if ("importances" in needs) != self.importances:
            raise ConfigError(
                f"rule: {self.rule.target} and weights by their Fisher information go together:"
                " stage merge_fisher with rule alignlab.models.merging_fisher.fisher."
            )
        if needs[0] in _TWO and len(models) != 2:
            raise ConfigError(
                f"inputs: {self.rule.target} merges two models, and {len(models)} are given; name "
                "them as model and model/1."
            )
        if "base" in self.inputs and not looks_at_changes(self.rule):
            raise ConfigError(
                f"inputs.base: {self.rule.target} looks at the models alone. Take it out, or name "
                "it as one of the models."
            )
        if self.weights is None:
            return
        if len(self.weights) != len(models):
            raise ConfigError(
                f"weights: {len(self.weights)} for {len(models)} models; they are in the order "
                f"{', '.join(models)}."
            )
        if not all(map(math.isfinite, self.weights)) or not any(self.weights):
            raise ConfigError(f"weights={list(self.weights)}: finite numbers, not all of them 0.")
        if "shares" in needs and sum(self.weights) <= 0:
            raise ConfigError(
                f"weights={list(self.weights)}: {self.rule.target} divides them by their sum, which"
                " must be above 0."
            )

    def accept(self, inputs: Mapping[str, Stage]) -> None:
        """Refuse models of different base models, and adapters beside whole models."""
        known = {n: b for n, s in inputs.items() if (b := backbone_of(s)) is not None}
        if not known:
            return
        first, backbone = next(iter(known.items()))
        for name, other in known.items():
            if (other.path, other.revision) != (backbone.path, backbone.revision):
                raise ConfigError(
                    f"inputs.{name}: '{self.inputs[name]}' is trained from {other.path}, and "
                    f"'{self.inputs[first]}' from {backbone.path}. Models of different base models"
                    " have no weights in common to merge."
                )
            if other.adapter.mode != backbone.adapter.mode:
                raise ConfigError(
                    f"inputs.{name}: '{self.inputs[name]}' trains {other.adapter.mode}, and "
                    f"'{self.inputs[first]}' {backbone.adapter.mode}. Give both stages the same "
                    "adapter."
                )
            if reason := other.adapter.unmergeable:
                raise ConfigError(f"inputs.{name}: such a model cannot be merged; {reason}.")
        if self.rank is not None and not backbone.adapter.shares_base:
            raise ConfigError("rank: whole models are merged into a whole model; set rank=null.")

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Write the merged model; what it is made of goes to the record."""
        import torch

        from alignlab.models.merge import write_head, write_merged
        from alignlab.models.merge_sources import opened
        from alignlab.models.templates import require_same_template
        from alignlab.rewards.apart import carry_reading
        from alignlab.stages.session import cache_of

        run = engine.workers().own(run)
        names = filling("model", self.inputs)
        records = [inputs[name].record for name in names]
        for name, record in zip(names, records, strict=True):
            require_same_template(records[0]["template"], record["template"], inputs[name].name)
        models = [opened(inputs[name].model_dir, head=self.heads) for name in names]
        with_head = self.heads and looks_at_changes(self.rule)
        base = opened(inputs["base"].model_dir, head=with_head) if "base" in inputs else None
        merger = self.merger(torch.tensor(self.weights or [1.0] * len(models)))
        merger = replace(merger, importances=self.weighed(inputs, run, engine))
        with torch.no_grad():
            made = write_merged(merger, models, base, self.rank, cache_of(run), run.model_dir)
            if self.heads:
                write_head(merger, models, base, run.model_dir)
                carry_reading([inputs[name].model_dir for name in names], run.model_dir)
        run.update_record(
            label=self.label or self.name(),
            merged={name: source.name for name, source in inputs.items()},
            rule={"target": self.rule.target, **dict(self.rule.arguments)},
            weights=merger.weights.tolist(),
            template=records[0]["template"],
            params_total=records[0].get("params_total"),
            summary=made,
        )

    def weighed(
        self, inputs: Mapping[str, Run], run: Run, engine: Engine
    ) -> Sequence[Mapping[str, Tensor]]:
        """How much every weight matters to every model, by the names of tensors; here nothing."""
        return ()

    def merger(self, weights: Tensor) -> Merger:
        """The rule with its settings."""
        from alignlab.models.merge import Merger

        density = self.rule.arguments.get("density")
        return Merger(function(self.rule), list(late(self.rule)), weights, density, self.seed)

    def name(self) -> str:
        """Short name for tables: the rule, its hyperparameters and unequal weights."""
        from alignlab.objectives.declaration import display_name

        settings = [f"{k}={v}" for k, v in self.rule.arguments.items()]
        if self.weights is not None:
            settings.append("weights " + " : ".join(f"{w:g}" for w in self.weights))
        return f"{display_name(function(self.rule))} merge" + (
            f" ({', '.join(settings)})" if settings else ""
        )

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """One result in memory, and a tensor of every model at a time; a few operations each."""
        from alignlab.models.memory import base_shapes, parameter_counts

        found = [b for s in inputs.values() if (b := backbone_of(s)) is not None]
        if not found:
            return Estimate()
        sizes = [math.prod(shape) for shape in base_shapes(found[0], cache).values()]
        total, trained = parameter_counts(found[0], cache)
        at_once = (len(inputs) + 3) * max(sizes)
        return Estimate(
            params_total=total,
            flops=float(4 * len(inputs) * sum(sizes)),
            memory_bytes=4 * (trained + at_once),
        )


def require_role(name: str, models: Sequence[str], field: str) -> None:
    """Refuse a name that is no input of a merge."""
    if name not in models:
        raise ConfigError(
            f"{field}.{name}: no such model; there are {', '.join(models)}."
            + did_you_mean(name, models)
        )


def looks_at_changes(rule: Spec) -> bool:
    """Whether a rule works on what the models changed of a base."""
    return next(iter(late(rule))) in _NEED_BASE


def backbone_of(stage: Stage) -> BackboneConfig | None:
    """Configuration of the base model that a stage trains, where it has one."""
    return getattr(stage, "backbone", None)
