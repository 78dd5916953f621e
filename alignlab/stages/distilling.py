"""Distillation to the starting model: both models read the same tokens, and are compared there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignlab.data.order import step_rows
from alignlab.data.pack import flatten
from alignlab.data.template import Tokenization
from alignlab.engine.work import Micro
from alignlab.errors import ConfigError, DataError
from alignlab.models.logps import CHUNK_ELEMENTS, Head
from alignlab.rollout.rollout import sample_rollout
from alignlab.spec import build, function
from alignlab.stages.anchor_terms import LABEL
from alignlab.stages.session import parts
from alignlab.stages.sft import completion_tokens, demonstrations

if TYPE_CHECKING:
    from alignlab.data.group import TokenGroup
    from alignlab.models.view import View
    from alignlab.stages.anchor_terms import Scene
    from alignlab.stages.anchors import Distillation
    from alignlab.stages.packed import Metrics
    from alignlab.tensors import FlatBatch

START = "start"  # the view of the starting model


@dataclass(frozen=True)
class Compared:
    """One micro-batch with what the starting model makes of it."""

    batch: FlatBatch
    hidden: Tensor  # (N, H) of the start, at the predictor of each target
    head: Head  # of the start
    divergence: Callable[[Tensor, Tensor], Tensor]
    weight: float
    count: float  # targets of the whole step, over all micro-batches and processes

    def loss(self, view: View) -> tuple[Tensor, Metrics]:
        """``weight · Σ_t D_t / count``."""
        hidden, head = view.features(self.batch).at_targets, view.lm_head
        rows = max(16, CHUNK_ELEMENTS // head.weight.shape[0])
        total = hidden.new_zeros(())
        for own, start in zip(hidden.split(rows), self.hidden.split(rows), strict=True):
            # (rows, V) of both models are computed again for the gradient, and never kept.
            total = total + checkpoint(self._chunk, own, start, head, use_reentrant=False)
        measured = (total.detach().double(), len(hidden))
        return self.weight * total / self.count, {"anchor": measured}

    def _chunk(self, own: Tensor, start: Tensor, head: Head) -> Tensor:
        with torch.no_grad():
            theirs = torch.log_softmax(self.head.logits(start), -1)
        return self.divergence(torch.log_softmax(head.logits(own), -1), theirs).sum()


class Distilling:
    """The micro-batches of a `Distillation`, step by step."""

    def __init__(self, anchor: Distillation, scene: Scene) -> None:
        if scene.engine.zero == 3:
            raise ConfigError(
                "anchor: under ZeRO 3 the head that the two models are compared by is in shares. "
                "Use engine=zero2."
            )
        self.anchor, self.scene = anchor, scene
        self.divergence = function(anchor.divergence)
        self.tokenization = Tokenization(
            scene.backbone.tokenizer, anchor.max_prompt, anchor.max_completion
        )
        scene.backbone.add(START, source=scene.source, trainable=False)
        self.rows: Sequence[TokenGroup] = () if anchor.data is None else self._rows()

    def _rows(self) -> Sequence[TokenGroup]:
        anchor = self.anchor
        assert anchor.data is not None
        found = build(anchor.data).load(anchor.split)
        if anchor.sampled:
            groups = self.tokenization.prompts(found[: anchor.rows])
        else:
            groups = self.tokenization.groups(demonstrations(found)[: anchor.rows])
        if not groups:
            raise DataError(f"anchor: the split '{anchor.split}' of its data has no such row.")
        return groups

    def groups(self, step: int) -> Sequence[TokenGroup]:
        """Rows of a step that are dealt to this process."""
        scene, workers = self.scene, self.scene.engine.workers()
        if self.anchor.data is None:
            return workers.share(scene.chosen(step))
        chosen = step_rows(step - 1, self.anchor.batch, len(self.rows), scene.seed + 1)
        mine = workers.share([self.rows[row] for row in chosen])
        if not self.anchor.sampled:
            return mine
        if not mine:
            return ()
        with scene.backbone.view(scene.view) as view:
            rollout = sample_rollout(
                view, mine, self.tokenization, self.anchor.sampling, 1, scene.seed, step=step
            )
        return rollout.groups

    def micros(self, step: int) -> list[Micro]:
        """Pack the rows, and let the starting model read them."""
        scene, workers = self.scene, self.scene.engine.workers()
        groups = self.groups(step)
        count = workers.reduce_sums({"tokens": completion_tokens(groups)})["tokens"]
        micros = []
        with torch.no_grad(), scene.backbone.view(START) as start:
            for _, part in parts(groups, scene.engine.budget):
                batch = flatten(part).to(workers.device)
                hidden, head = start.features(batch).at_targets, start.lm_head
                data = Compared(batch, hidden, head, self.divergence, self.anchor.weight, count)
                label = f"{LABEL}: rows " + ", ".join(str(g.row) for g in part[:8])
                micros.append(Micro(scene.view, data, 2 * batch.tokens, label))
        return micros
