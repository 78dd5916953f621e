"""Cost estimates of the stages, from model files' headers alone: no weights are read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alignlab.capacity.workload import Decode, Model, Update, Workload
from alignlab.data.batch import TokenBatch
from alignlab.stages.stage import Estimate

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.data.batch import Batch
    from alignlab.models.load import BackboneConfig
    from alignlab.rollout.sampling import Sampling
    from alignlab.stages.annotate import Annotate
    from alignlab.stages.preference import Preference
    from alignlab.stages.reward import Reward
    from alignlab.stages.sft import SFT


def shown_tokens(batch: Batch, steps: int | None, *, prompts: float, per_prompt: int) -> int:
    """Most tokens that a training sees: ``steps`` steps, or as many as show ``prompts`` prompts."""
    if isinstance(batch, TokenBatch):
        return round(prompts * per_prompt) if steps is None else steps * batch.tokens
    return round((prompts if steps is None else steps * batch) * per_prompt)


def update_of(batch: Batch, tokens: float, *, group: int, prompt: int, completions: int) -> Update:
    """Optimizer steps that ``tokens`` tokens take, in groups of one prompt and its completions."""
    per_step = batch.tokens if isinstance(batch, TokenBatch) else batch * group
    return Update(
        steps=max(1, round(tokens / per_step)),
        tokens=per_step,
        group=group,
        row=prompt + (group - prompt) // completions,
        targets=(group - prompt) / group,
    )


def averages(stage: SFT | Reward | Preference) -> int:
    """Copies of the trained weights that are kept in float32: their average, the best ones."""
    return (stage.optimizer.ema is not None) + (stage.early_stopping is not None)


def offline_estimate(
    stage: Reward | Preference,
    cache: Path,
    made: Annotate,
    *,
    each: int,
    shown: float,
    logits: bool = True,
    scored: int = 0,
) -> Estimate:
    """Training on ``shown`` annotated prompts with ``each`` completions, at the length limits."""
    size = made.max_prompt + each * made.max_completion
    tokens = shown_tokens(stage.batch, stage.steps, prompts=shown, per_prompt=size)
    prompt = made.max_prompt
    update = update_of(stage.batch, tokens, group=size, prompt=prompt, completions=each)
    return training_estimate(
        stage.backbone,
        cache,
        tokens=tokens,
        update=update if logits else replace(update, targets=0.0),
        scored=scored,
        averages=averages(stage),
    )


def training_estimate(
    backbone: BackboneConfig,
    cache: Path,
    *,
    tokens: int,
    update: Update,
    forward_tokens: int = 0,
    **held: Any,
) -> Estimate:
    """Parameters, FLOPs and workload of training on ``tokens`` tokens.

    ``forward_tokens`` are those that are sampled or scored, without a backward pass; ``held`` are
    fields of the `Workload`.
    """
    from alignlab.models.memory import parameter_counts, training_flops

    total, trained = parameter_counts(backbone, cache)
    held = {"trained": 1, "group": update.group, "row": update.row, **held}
    return Estimate(
        params_total=total,
        params_trained=trained,
        tokens=tokens + forward_tokens,
        flops=training_flops(total, trained, tokens) + 2.0 * total * forward_tokens,
        workload=Workload(model_of(backbone, cache), update=update, **held),
    )


def sampling_estimate(
    backbone: BackboneConfig, cache: Path, *, tokens: int, frozen: int = 1, **held: Any
) -> Estimate:
    """Parameters, FLOPs (2 per parameter and token) and workload of ``tokens`` sampled tokens.

    Without a ``decode`` among the fields of the `Workload` they are scored instead.
    """
    from alignlab.models.memory import parameter_counts

    total, _ = parameter_counts(backbone, cache)
    if "decode" not in held:
        held = {"scored": tokens, **held}
    return Estimate(
        params_total=total,
        tokens=tokens,
        flops=2.0 * total * tokens,
        workload=Workload(model_of(backbone, cache), frozen=frozen, **held),
    )


def decode_of(
    sampling: Sampling, rows: int, prompt: int, *, times: int = 1, live: bool = False
) -> Decode:
    """Sampling ``rows`` completions, ``times`` times."""
    return Decode(rows, sampling.batch, prompt, sampling.max_new_tokens, times, live)


def model_of(backbone: BackboneConfig, cache: Path) -> Model:
    """Sizes of the base model and of what is trained on it."""
    from alignlab.models.memory import adapted_shapes, base_shapes, dimensions_of

    dimensions = dimensions_of(backbone, cache)
    own, adapted = None, 0
    if backbone.adapter.rank is not None:
        shapes = adapted_shapes(base_shapes(backbone, cache), backbone.adapter)
        own = backbone.adapter.rank * sum(map(sum, shapes))
        adapted = len(shapes) // dimensions.layers
    return Model(
        dimensions=dimensions,
        adapter=own,
        rank=backbone.adapter.rank or 0,
        adapted=adapted,
        dtype=backbone.dtype,
        checkpointing=backbone.gradient_checkpointing,
    )
