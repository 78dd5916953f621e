"""The end of a training: the model saved once, and what the stage cost written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from alignlab.engine.distributed import Onlooker

if TYPE_CHECKING:
    from alignlab.engine.work import TrainResult
    from alignlab.models.backbone import Backbone
    from alignlab.run import Run


def finish_training(
    run: Run,
    backbone: Backbone,
    view: str,
    result: TrainResult,
    counts: Mapping[str, int],
    forward_tokens: int = 0,
) -> None:
    """Save the trained view and write what the stage cost into the run record.

    ``counts`` are the prompts and completions of all steps; ``forward_tokens`` were sampled or
    scored without a backward pass, at 2 FLOPs per parameter.
    """
    from alignlab.models.memory import training_flops
    from alignlab.models.templates import template_hash

    with backbone.whole(view):
        if not isinstance(run, Onlooker):
            backbone.save(view, run.model_dir)
    total, trained = backbone.parameter_counts(view)
    run.update_record(
        params_total=total,
        params_trained=trained,
        template=template_hash(backbone.tokenizer),
        updates=result.steps,
        **({} if result.best_step is None else {"best_step": result.best_step}),
        **counts,
        tokens_trained=result.tokens,
        flops=training_flops(total, trained, result.tokens) + 2.0 * total * forward_tokens,
    )
