"""The diagonal of the Fisher information of a data set, by squared gradients of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from alignlab import interruption
from alignlab.data.pack import flatten
from alignlab.data.template import Tokenization
from alignlab.engine.dealt import Dealt
from alignlab.errors import ConfigError, DataError
from alignlab.models.auto import encodes
from alignlab.spec import Spec, build
from alignlab.stages.sft import demonstrations

if TYPE_CHECKING:
    from alignlab.data.group import TokenGroup
    from alignlab.models.changes import Change
    from alignlab.stages.anchor_terms import Scene
    from alignlab.stages.anchors import EWC


@dataclass(frozen=True)
class Asked:
    """Of which data the information is asked for; `EWC` says the same of itself."""

    data: Spec
    split: str
    rows: int
    labels: Literal["data", "sampled"]
    max_prompt: int
    max_completion: int


def fisher(anchor: EWC | Asked, scene: Scene, changes: Sequence[Change]) -> list[Tensor]:
    """``F_j = Σ_n (∂ log p(y_n|x_n) / ∂θ_j)² / Σ_n |y_n|`` for every change, in float32.

    Processes share the rows. Dividing by tokens and not by rows makes it the curvature of the
    negative log-likelihood per token, the unit of the SFT loss.
    """
    if encodes(scene.backbone.model_config):
        raise ConfigError(
            "anchor: an encoder predicts no tokens, and the Fisher information is that of their "
            "likelihood. Hold its weights alike, with anchor l2sp."
        )
    workers, groups = scene.engine.workers(), rows_of(anchor, scene)
    weights = [change.weight for change in changes]
    for change in changes:
        if not change.weight.is_floating_point():
            raise ConfigError(
                f"The matrix of {change.name} is quantised and has no gradient, which the "
                "Fisher information is made of. Use another adapter, L2-SP, or distillation."
            )
    sums = [torch.zeros(w.shape, dtype=torch.float32, device=w.device) for w in weights]
    scene.backbone.train_mode(False)
    with requiring_gradients(weights), scene.backbone.view(scene.view) as view:
        for group in workers.share(groups):
            interruption.check()
            total = view.logps(flatten([group]).to(workers.device)).sum()
            for place, gradient in zip(
                sums, torch.autograd.grad(total, weights, allow_unused=True), strict=True
            ):
                if gradient is not None:
                    place += gradient.float().square()
    tokens = sum(sum(group.targets()) for group in groups)
    return [workers.sum(place) / tokens for place in sums]


def rows_of(anchor: EWC | Asked, scene: Scene) -> list[TokenGroup]:
    """The rows that the information is about, with the labels asked for."""
    from alignlab.rollout.sampling import Sampling

    tokenization = Tokenization(scene.backbone.tokenizer, anchor.max_prompt, anchor.max_completion)
    found = build(anchor.data).load(anchor.split)
    if anchor.labels == "data":
        groups = tokenization.groups(demonstrations(found)[: anchor.rows])
    else:
        prompts = tokenization.prompts(found[: anchor.rows])
        sampling = Sampling(
            max_new_tokens=anchor.max_completion, temperature=1.0, top_p=1.0, top_k=0, batch=256
        )
        dealt = Dealt(scene.backbone, scene.engine.workers(), scene.engine.budget)
        rollout = dealt.sample(scene.view, prompts, tokenization, sampling, 1, scene.seed)
        groups = dealt.workers.whole(rollout.groups)
    if not groups:
        raise DataError(
            f"anchor: the split '{anchor.split}' of its data has no row to learn from what matters."
        )
    return groups


@contextmanager
def requiring_gradients(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let frozen weights have gradients inside the block."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)
