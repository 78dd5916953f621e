"""Cost estimates of the stages, from model files' headers alone: no weights are read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from alignlab.capacity.workload import Decode, Model, Update, Workload
from alignlab.data.batch import TokenBatch
from alignlab.stages.anchors import anchor_of
from alignlab.stages.stage import Estimate, filling

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignlab.data.batch import Batch
    from alignlab.engine.optimizer import Optimizer
    from alignlab.models.load import BackboneConfig
    from alignlab.rollout.sampling import Sampling
    from alignlab.spec import Spec
    from alignlab.stages.annotate import Annotate
    from alignlab.stages.continued_pretrain import ContinuedPretrain
    from alignlab.stages.online_stage import Online
    from alignlab.stages.preference import Preference
    from alignlab.stages.reward import Reward
    from alignlab.stages.sft import SFT
    from alignlab.stages.stage import Stage

    Trainer: TypeAlias = SFT | ContinuedPretrain | Reward | Preference | Online


def require_thaw(stage: Stage, cache: Path) -> None:
    """Refuse stated steps that are too few for gradual unfreezing, before anything is trained.

    Raises:
        ConfigError: a layer group of the whole model would not thaw within ``steps``.
    """
    from alignlab.models.memory import dimensions_of, parameter_counts

    steps, optimizer = getattr(stage, "steps", None), getattr(stage, "optimizer", None)
    if steps is None or optimizer is None or optimizer.layerwise is None:
        return
    backbone: BackboneConfig = getattr(stage, "backbone")  # noqa: B009 (stages in general have none)
    total, trained = parameter_counts(backbone, cache)
    if trained == total:  # embeddings are one more group than there are layers
        optimizer.layerwise.check(dimensions_of(backbone, cache).layers + 1, steps)


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


def averages(stage: Trainer, cache: Path) -> int:
    """Copies of the trained weights that are kept in float32: average, best ones, reference.

    And what an anchor compares with (`anchor_copies`).
    """
    moving = getattr(stage, "reference_moves", None) is not None
    stopping = getattr(stage, "early_stopping", None) is not None
    own = (stage.optimizer.ema is not None) + stopping + moving
    return own + anchor_copies(stage.anchor, stage.backbone, cache)


def anchor_copies(spec: Spec | None, backbone: BackboneConfig, cache: Path) -> int:
    """Copies of one view's trained weights that an anchor compares with.

    For adapters that may be as large as the matrices that they adapt, counted in copies of the
    adapter.
    """
    from alignlab.models.memory import parameter_counts

    anchor = anchor_of(spec)
    if anchor is None:
        return 0
    if not (anchor.of_matrices and backbone.adapter.shares_base):
        return anchor.copies
    total, trained = parameter_counts(backbone, cache)
    return 1 + -(-total // trained)


def starting_views(stage: Trainer) -> int:
    """Views of the starting model that an anchor holds beside the trained one."""
    anchor = anchor_of(stage.anchor)
    return int(anchor is not None and anchor.holds_start)


def apart_behind(inputs: Mapping[str, Stage], cache: Path) -> tuple[int, int]:
    """How many reward stages make models that stand apart, and the bytes of all these."""
    from alignlab.models.memory import parameter_counts

    count = size = 0
    for judge in (inputs[name] for name in filling("reward", inputs)):
        if getattr(judge, "apart", False):  # a matrix may be stored in two bytes; this is the most
            count += 1
            backbone = getattr(judge, "backbone", None)  # a function has none
            size += 4 * parameter_counts(backbone, cache)[0] if backbone is not None else 0
    return count, size


def offline_estimate(
    stage: Reward | Preference,
    cache: Path,
    made: Annotate,
    *,
    each: int,
    shown: float,
    logits: bool = True,
    scored: int = 0,
    rows: bool = False,
) -> Estimate:
    """Training on ``shown`` annotated prompts with ``each`` completions, at the length limits.

    In ``rows`` every completion has a prompt of its own beside it (encoders).
    """
    prompts = each if rows else 1
    size = prompts * made.max_prompt + each * made.max_completion
    tokens = shown_tokens(stage.batch, stage.steps, prompts=shown, per_prompt=size)
    prompt = 0 if rows else made.max_prompt
    update = update_of(stage.batch, tokens, group=size, prompt=prompt, completions=each)
    return training_estimate(
        stage.backbone,
        cache,
        tokens=tokens,
        update=update if logits else replace(update, targets=0.0),
        scored=scored,
        averages=averages(stage, cache),
        optimizer=stage.optimizer,
        frozen=starting_views(stage),
    )


def training_estimate(
    backbone: BackboneConfig,
    cache: Path,
    *,
    tokens: int,
    update: Update,
    forward_tokens: int = 0,
    optimizer: Optimizer | None = None,
    **held: Any,
) -> Estimate:
    """Parameters, FLOPs and workload of training on ``tokens`` tokens.

    ``forward_tokens`` are those that are sampled or scored, without a backward pass;
    ``optimizer`` is AdamW where nothing is said; ``held`` are fields of the `Workload`.
    """
    from alignlab.models.memory import parameter_counts, training_flops

    total, trained = parameter_counts(backbone, cache)
    held = {"trained": 1, "group": update.group, "row": update.row, **held}
    model = model_of(backbone, cache)
    if optimizer is not None:
        d = model.dimensions
        held["states"] = optimizer.state_bytes(d.matrices / d.total if trained == d.total else 1.0)
    return Estimate(
        params_total=total,
        params_trained=trained,
        tokens=tokens + forward_tokens,
        flops=training_flops(total, trained, tokens) + 2.0 * total * forward_tokens,
        workload=Workload(model, update=update, **held),
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
    from alignlab.models.memory import adapted_sizes, dimensions_of

    dimensions = dimensions_of(backbone, cache)
    sizes = adapted_sizes(backbone, cache)
    return Model(
        dimensions=dimensions,
        adapter=sizes.trained,
        rank=sizes.rank,
        adapted=sizes.adapted // dimensions.layers,
        dtype=backbone.dtype,
        checkpointing=backbone.gradient_checkpointing,
        packed=sizes.packed,
        zero=backbone.adapter.zero[0],
        freed=sizes.freed,
        kept=sizes.kept,
        drops=sizes.rank > 0 and getattr(backbone.adapter, "dropout", 0.0) > 0,
        still=sizes.still,
        reached=sizes.reached,
    )
