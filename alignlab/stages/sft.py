"""Supervised fine-tuning: maximise the likelihood of demonstrations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from alignlab.data.batch import Batch
from alignlab.data.gate.limits import Limits
from alignlab.engine.optimizer import Optimizer
from alignlab.engine.stopping import EarlyStopping
from alignlab.errors import ConfigError, DataError
from alignlab.models.dropout import ResidualDropout
from alignlab.models.load import BackboneConfig
from alignlab.spec import Spec, build
from alignlab.stages.anchors import anchored, require_anchor
from alignlab.stages.generalization import both_sides, require_stopping, summary_of
from alignlab.stages.imitation import Imitate
from alignlab.stages.stage import START_KINDS, Estimate, Role, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignlab.data.group import PromptGroup, TokenGroup
    from alignlab.data.template import Tokenization
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone, View
    from alignlab.run import Run
    from alignlab.stages.packed import Metrics, Packed
    from alignlab.tensors import FlatBatch


@dataclass(frozen=True, kw_only=True)
class SFT(Stage):
    """Token-mean negative log-likelihood of the completions, over the global batch.

    L = −Σ log π(y_t | x, y_<t) / Σ |y|, both sums over every completion token (EOS included) of the
    optimizer step, on all ranks. Prompts carry no loss. With ``annotations`` the demonstrations are
    sampled completions, chosen by ``imitate``. Against overfitting: labels may be smoothed, and
    embeddings disturbed (NEFTune); with ``gap_rows`` evaluations measure rows trained on as well.
    """

    kind: ClassVar[str] = "sft"
    together: ClassVar[bool] = True
    sees: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        "init": Role(START_KINDS, optional=True),
        "annotations": Role(("annotate",), optional=True),
    }
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset(
        {"anchor", "imitate", "label_smoothing", "neftune_alpha", "gap_rows", "attention_dropout"}
    )

    backbone: BackboneConfig
    data: Spec
    gate: Limits
    max_prompt: Annotated[int, Range(min=1)]
    max_completion: Annotated[int, Range(min=1)]
    rows: Annotated[int, Range(min=1)] | None
    batch: Batch
    epochs: Annotated[float, Range(min=0, min_open=True)]
    steps: Annotated[int, Range(min=1)] | None
    residual_dropout: ResidualDropout | None
    optimizer: Optimizer
    evaluate_every: Annotated[int, Range(min=0)]
    evaluate_rows: Annotated[int, Range(min=1)]
    early_stopping: EarlyStopping | None
    anchor: Spec | None = None
    imitate: Imitate | None = None
    label_smoothing: Annotated[float, Range(min=0, min_open=True, max=1, max_open=True)] | None = (
        None
    )
    neftune_alpha: Annotated[float, Range(min=0, min_open=True)] | None = None
    gap_rows: Annotated[int, Range(min=1)] | None = None
    attention_dropout: Annotated[float, Range(min=0, max=1, max_open=True)] | None = None

    def validate(self) -> None:
        """An anchor is one; what is imitated of annotations is said where there are some."""
        require_anchor(self.anchor)
        require_stopping(self.early_stopping, self.evaluate_every, ("nll",), self.gap_rows)
        if (self.imitate is None) == ("annotations" in self.inputs):
            raise ConfigError(
                "imitate says which completions of the annotate stage behind inputs.annotations are"
                " imitated: set both (as stage best_of_n does), or neither."
            )
        if self.attention_dropout and self.backbone.layout == "flex":
            raise ConfigError(
                "attention_dropout: backbone.layout=flex cannot drop attention weights. Use "
                "layout=auto."
            )

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Train on the ``sft`` split; keep the policy (adapter or model) in the run folder."""
        from alignlab.data.template import Tokenization
        from alignlab.engine.loop import train
        from alignlab.stages.annotations import require_own_template
        from alignlab.stages.budget import fit_offline
        from alignlab.stages.finish import finish_training
        from alignlab.stages.opening import open_policy
        from alignlab.stages.session import OfflineWork

        run = engine.workers().own(run)
        init = inputs.get("init")
        backbone, source = open_policy(self.backbone, init, run, engine, self.seed)
        self._drop(backbone)
        if "annotations" in inputs:
            require_own_template(inputs["annotations"], backbone)
        tokenization = Tokenization(
            backbone.tokenizer, self.max_prompt, self.max_completion, processor=backbone.processor
        )
        groups, held_out = self._rows(tokenization, inputs, run, engine)
        engine = fit_offline(engine, backbone, "policy", groups, self.batch, self.optimizer, run)
        work = OfflineWork(
            groups,
            self.batch,
            self.seed,
            engine,
            "policy",
            count=completion_tokens,
            loss_of=partial(loss, label_smoothing=self.label_smoothing),
            neftune_alpha=self.neftune_alpha,
        )

        def measure(rows: Sequence[TokenGroup]) -> dict[str, float]:
            return {"nll": mean_nll(backbone, "policy", rows, engine)}

        evaluate = both_sides(measure, held_out, groups, self.gap_rows, self.seed)
        result = train(
            anchored(self.anchor, work, backbone, source),
            backbone,
            ["policy"],
            optimizer=self.optimizer,
            steps=self.steps or work.steps_of(self.epochs),
            run=run,
            engine=engine,
            seed=self.seed,
            evaluate=evaluate,
            evaluate_every=self.evaluate_every,
            early_stopping=self.early_stopping,
        )
        finish_training(run, backbone, "policy", result, work.counts(result.steps))
        run.update_record(
            label=self.label or "SFT",
            packing=work.packing(result.steps),
            summary=summary_of(evaluate()),
        )

    def _drop(self, backbone: Backbone) -> None:
        """Let the policy drop what it adds to the residual stream, and attention weights."""
        from alignlab.models.dropout import set_attention_dropout

        if self.residual_dropout is not None:
            backbone.drop_residuals("policy", self.residual_dropout)
        if self.attention_dropout is not None:
            with backbone.view("policy") as view:
                set_attention_dropout(view.model, self.attention_dropout)

    def _rows(
        self, tokenization: Tokenization, inputs: Mapping[str, Run], run: Run, engine: Engine
    ) -> tuple[Sequence[TokenGroup], Sequence[TokenGroup]]:
        """Groups to train on, and held-out ones."""
        from alignlab.data.group import PromptGroup
        from alignlab.stages.session import tokenize

        data = build(self.data)
        groups: Sequence[TokenGroup] = ()
        if self.imitate is None or self.imitate.demonstrations:
            groups = tokenize(
                data,
                "sft",
                tokenization,
                run,
                engine,
                need="demonstration",
                limits=self.gate,
                held_out=("validation", "test"),
                select=PromptGroup.demonstration,
                rows=self.rows,
            )
        validation = demonstrations(data.load("validation"))[: self.evaluate_rows]
        held_out = tokenization.groups(validation)
        if self.imitate is None:
            return groups, held_out
        return self.imitate.added(inputs["annotations"], groups, held_out, self.evaluate_rows)

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Rows × epochs × the length limits (an upper bound on tokens)."""
        from alignlab.stages.annotate import annotated_rows
        from alignlab.stages.estimate import (
            averages,
            shown_tokens,
            starting_views,
            training_estimate,
            update_of,
        )

        size, rows = self.max_prompt + self.max_completion, float(self.rows or 10_000)
        if self.imitate is not None:
            each = self.imitate.best * annotated_rows(inputs)
            rows = each + rows * self.imitate.demonstrations
        shown = self.epochs * rows
        tokens = shown_tokens(self.batch, self.steps, prompts=shown, per_prompt=size)
        update = update_of(self.batch, tokens, group=size, prompt=self.max_prompt, completions=1)
        held = {"averages": averages(self, cache), "frozen": starting_views(self)}
        return training_estimate(
            self.backbone, cache, tokens=tokens, update=update, optimizer=self.optimizer, **held
        )


def demonstrations(groups: Iterable[PromptGroup]) -> list[PromptGroup]:
    """What there is to imitate in every group that has it."""
    return [shown for group in groups if (shown := group.demonstration()) is not None]


def completion_tokens(groups: Sequence[TokenGroup]) -> float:
    """Number of targets in ``groups``: the unit of the SFT loss."""
    return float(sum(sum(g.targets()) for g in groups))


def loss(
    view: View, packed: Packed, *, label_smoothing: float | None = None
) -> tuple[Tensor, Metrics]:
    """SFT loss of one micro-batch over the tokens of the whole step; ``nll`` is never smoothed."""
    from alignlab.objectives.likelihood import nll, smoothed_nll

    if label_smoothing is None:
        losses = plain = nll(view.logps(packed.batch, noise=packed.noise))
    else:
        logps, mean_logps = view.logps_mean(packed.batch, noise=packed.noise)
        losses = smoothed_nll(logps, mean_logps, label_smoothing=label_smoothing)
        plain = nll(logps)
    return losses.sum() / packed.count, {"nll": (plain.detach().sum(), len(plain))}


def mean_nll(backbone: Backbone, view: str, groups: Sequence[TokenGroup], engine: Engine) -> float:
    """Mean negative log-likelihood in nats per completion token, without gradients."""
    from itertools import chain

    from alignlab.engine.dealt import Dealt, target_logps

    def read(active: View, batch: FlatBatch) -> list[tuple[float, int]]:
        return [(float(x.sum(dtype=float)), len(x)) for x in target_logps(active, batch)]

    found = Dealt(backbone, engine.workers(), engine.budget).shared(view, groups, read)
    sums, counts = zip(*chain(*found), strict=True) if found else ((), ())
    if not sum(counts):
        raise DataError("there is no held-out completion to measure the likelihood of.")
    return -sum(sums) / sum(counts)
