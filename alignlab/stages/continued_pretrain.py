"""Continued pretraining: a model that exists goes on reading documents, before it is aligned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from alignlab.data.batch import Batch
from alignlab.data.gate.limits import Limits
from alignlab.data.mapped import Groups
from alignlab.data.windows import DocumentWindows, Packing, windows_of
from alignlab.engine.optimizer import Optimizer
from alignlab.engine.stopping import EarlyStopping
from alignlab.errors import DataError
from alignlab.models.load import BackboneConfig
from alignlab.spec import Spec, build
from alignlab.stages.anchors import anchored, require_anchor
from alignlab.stages.generalization import both_sides, require_stopping, summary_of
from alignlab.stages.stage import START_KINDS, Estimate, Role, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.data.group import TokenGroup
    from alignlab.data.prepared import Prepared
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone
    from alignlab.run import Run

HELD_OUT = "pretrain_validation"
GUESS = 10_000  # documents of one window each, where nothing is said: for estimates alone


@dataclass(frozen=True, kw_only=True)
class ContinuedPretrain(Stage):
    """Next-token likelihood over documents, from a model's own weights and with its tokenizer.

    L = −Σ log π(y_t | y_<t) / Σ |y|, both sums over the whole optimizer step, on all ranks. A
    document ends with EOS, which is predicted too. The learning rate is warmed up and decayed
    again (Gupta et al. 2023, 2308.04014; Ibrahim et al. 2024, 2403.08763, who also rehearse
    earlier text: a mixture of ``data`` with a share for it). The result is a policy like any
    other: SFT, preference and online stages go on from it.
    """

    kind: ClassVar[str] = "continued_pretrain"
    together: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {"init": Role(START_KINDS, optional=True)}
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset({"anchor", "gap_rows"})

    backbone: BackboneConfig
    data: Spec
    gate: Limits
    documents: Annotated[int, Range(min=1)] | None
    window: Annotated[int, Range(min=2)]
    packing: Packing
    batch: Batch
    epochs: Annotated[float, Range(min=0, min_open=True)]
    tokens: Annotated[int, Range(min=1)] | None
    optimizer: Optimizer
    evaluate_every: Annotated[int, Range(min=0)]
    evaluate_rows: Annotated[int, Range(min=1)]
    early_stopping: EarlyStopping | None
    anchor: Spec | None = None
    gap_rows: Annotated[int, Range(min=1)] | None = None

    def validate(self) -> None:
        """An anchor is one; early stopping can work."""
        require_anchor(self.anchor)
        names = ("nll", *(f"nll_{name}" for name in parts_in(self.data)))
        require_stopping(self.early_stopping, self.evaluate_every, names, self.gap_rows)

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Train on the ``pretrain`` split; report the loss on held-out documents by part."""
        from alignlab.data.template import Tokenization
        from alignlab.engine.loop import train
        from alignlab.stages.budget import fit_offline
        from alignlab.stages.finish import finish_training
        from alignlab.stages.opening import open_policy
        from alignlab.stages.session import OfflineWork
        from alignlab.stages.sft import completion_tokens, loss

        run = engine.workers().own(run)
        backbone, source = open_policy(self.backbone, inputs.get("init"), run, engine, self.seed)
        documents, held_out = self._read(backbone, run, engine)
        opened = Tokenization(backbone.tokenizer, None, None).adds_bos
        groups = windows_of(documents, self.window, self.packing, opened=opened)
        measured = HeldOut.of(held_out, self.window)
        before = measured.nll(backbone, engine)
        engine = fit_offline(engine, backbone, "policy", groups, self.batch, self.optimizer, run)
        work = OfflineWork(
            groups, self.batch, self.seed, engine, "policy", count=completion_tokens, loss_of=loss
        )

        def measure(rows: Sequence[TokenGroup]) -> dict[str, float]:
            read = measured if rows is held_out else HeldOut.of(rows, self.window)
            return read.nll(backbone, engine)

        evaluate = both_sides(measure, held_out, documents, self.gap_rows, self.seed)
        result = train(
            anchored(self.anchor, work, backbone, source),
            backbone,
            ["policy"],
            optimizer=self.optimizer,
            steps=work.steps_of(self._epochs(groups)),
            run=run,
            engine=engine,
            seed=self.seed,
            evaluate=evaluate,
            evaluate_every=self.evaluate_every,
            early_stopping=self.early_stopping,
        )
        finish_training(run, backbone, "policy", result, work.counts(result.steps))
        after = evaluate()
        run.update_record(
            label=self.label or "continued pretraining",
            packing=work.packing(result.steps),
            corpus=corpus_of(documents) | {"windows": len(groups)},
            summary={
                **{f"start_{name}": value for name, value in before.items()},
                **summary_of(after),
                "validation_perplexity": math.exp(after["nll"]),
            },
        )

    def _read(self, backbone: Backbone, run: Run, engine: Engine) -> tuple[Prepared, Prepared]:
        """Documents to train on and held-out ones, each whole, mapped from the store."""
        from alignlab.data.template import Tokenization
        from alignlab.stages.session import tokenize

        data, tokenization = build(self.data), Tokenization(backbone.tokenizer, None, None)

        def read(split: str, **more: Any) -> Prepared:
            named = {"need": "demonstration", "limits": self.gate, **more}
            try:
                return tokenize(data, split, tokenization, run, engine, **named)
            except DataError as error:
                raise DataError(f"split '{split}' of the documents: {error}") from error

        held_out = read(HELD_OUT, rows=self.evaluate_rows)
        return read("pretrain", rows=self.documents, held_out=(HELD_OUT,)), held_out

    def _epochs(self, groups: Groups) -> float:
        """Passes over the windows that were asked for, as ``epochs`` or as ``tokens``."""
        if self.tokens is None:
            return self.epochs
        return self.tokens / float((groups.sizes() - 1).sum())

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """The stated tokens, else a full window for each document (a guess)."""
        from alignlab.stages.estimate import (
            averages,
            starting_views,
            training_estimate,
            update_of,
        )

        guess = (self.documents or GUESS) * self.window * self.epochs
        tokens = round(guess) if self.tokens is None else self.tokens
        update = update_of(self.batch, tokens, group=self.window + 1, prompt=1, completions=1)
        held = {"averages": averages(self, cache), "frozen": starting_views(self)}
        return training_estimate(
            self.backbone, cache, tokens=tokens, update=update, optimizer=self.optimizer, **held
        )


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents, each read by itself, and which of them are of which part of a mixture."""

    windows: DocumentWindows
    parts: Mapping[str, np.ndarray]  # positions in `windows`; empty where there are no parts

    @classmethod
    def of(cls, documents: Sequence[TokenGroup], window: int) -> HeldOut:
        """Cut held-out documents into windows, whatever the packing of the others."""
        windows = DocumentWindows(documents, window)
        owner = np.array([part_of(document) for document in documents])[windows.owners()]
        names = [name for name in np.unique(owner).tolist() if name]
        return cls(windows, {name: np.flatnonzero(owner == name) for name in names})

    def nll(self, backbone: Backbone, engine: Engine) -> dict[str, float]:
        """Mean negative log-likelihood in nats per token, of all documents and of each part."""
        from alignlab.data.mapped import Selection
        from alignlab.stages.sft import mean_nll

        if not self.parts:
            return {"nll": mean_nll(backbone, "policy", self.windows, engine)}
        sizes = self.windows.sizes() - 1
        counts = {name: int(sizes[places].sum()) for name, places in self.parts.items()}
        found = {
            name: mean_nll(backbone, "policy", Selection(self.windows, places), engine)
            for name, places in self.parts.items()
        }
        total = sum(found[name] * counts[name] for name in found) / sum(counts.values())
        return {"nll": total, **{f"nll_{name}": value for name, value in found.items()}}


def parts_in(node: Any) -> Iterator[str]:
    """Names of a mixture's parts, in a data source or in what it is made of."""
    values = node.arguments if isinstance(node, Spec) else node
    if isinstance(values, Mapping):
        parts = values.get("parts")
        yield from parts if isinstance(parts, Mapping) else ()
        for value in values.values():
            yield from parts_in(value)


def part_of(document: TokenGroup) -> str:
    """Part of a mixture that a document is from; empty where there is none."""
    return str(document.meta.get("part", ""))


def corpus_of(documents: Prepared) -> dict[str, Any]:
    """Documents and tokens of a corpus, EOS included, in all and by part of a mixture."""
    tokens = documents.sizes() - 1
    total = int(tokens.sum())
    known = {"documents": len(documents), "tokens": total}
    if not part_of(documents[0]):
        return known
    counts: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for document, size in zip(documents, tokens.tolist(), strict=True):
        counts[part_of(document)] += 1
        weights[part_of(document)] += size
    parts = {
        name: {"documents": counts[name], "tokens": size, "share": size / total}
        for name, size in weights.items()
    }
    return {**known, "parts": parts}
