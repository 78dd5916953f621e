"""What a reward model starts from, and the annotated groups in tokens that it can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.errors import ConfigError
from alignlab.models.encoders import Pooling, require_scorer
from alignlab.rewards.apart import encoding_of, save_reading, stands_apart

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone
    from alignlab.models.load import BackboneConfig
    from alignlab.rewards.apart import Encodes
    from alignlab.run import Run
    from alignlab.stages.reward import Reward
    from alignlab.stages.stage import Stage

    Select = Callable[[Run, str, Encodes | None], Sequence[TokenGroup]]


@dataclass(frozen=True)
class Start:
    """A backbone with the view ``reward``, and what it is trained and measured on."""

    backbone: Backbone
    groups: Sequence[TokenGroup]
    held_out: Sequence[TokenGroup]
    apart: bool  # whether it reads texts with a tokenizer of its own

    def mark(self, run: Run, engine: Engine) -> None:
        """Leave word in the saved model folder for those who have it behind ``reward``."""
        if self.apart and engine.workers().is_main:
            save_reading(run.model_dir, self.backbone.config)


def started(
    stage: Reward, inputs: Mapping[str, Run], run: Run, engine: Engine, select: Select
) -> Start:
    """Open what the stage trains; without ``init`` that is its own backbone, reading texts.

    With one it goes on from that run, on the very tokens that were annotated, unless that run is a
    reward model that stands apart itself.
    """
    from alignlab.stages.annotate import require_own_template, require_verdicts
    from alignlab.stages.session import open_backbone

    init = inputs["init"].model_dir if "init" in inputs else None
    apart = init is None or stands_apart(init)
    backbone = open_backbone(stage.backbone, run, engine, stage.seed, shared=True)
    backbone.add("reward", source=init, trainable=True, head=True)
    if stage.pooling is not None:
        with backbone.view("reward") as view:
            view.scalar_head.pooling = stage.pooling
    encoding = encoding_of(backbone) if apart else None
    if encoding is None:
        require_own_template(inputs["annotations"], backbone)
    groups, held_out = (
        select(inputs["annotations"], split, encoding) for split in ("train", "validation")
    )
    require_verdicts(groups, inputs["annotations"])
    cut = sum(any(g.truncated) or "prompt_cut" in g.meta for g in groups) if apart else 0
    if cut:
        run.warn(f"{cut} of {len(groups)} prompts or their completions were cut to fit the model")
    return Start(backbone, groups, held_out, apart)


def require_start(
    backbone: BackboneConfig, pooling: Pooling | None, init: Stage | None, cache: Path
) -> str | None:
    """Check what a reward model starts from, when the plan is made; the type of an encoder.

    Raises:
        ConfigError: an encoder cannot start from a policy, nor a decoder's score be pooled.
    """
    if init is not None and getattr(init, "backbone", None) is None and init.kind == "reward":
        raise ConfigError("inputs.init: a reward function has no model to start from.")
    found = require_scorer(backbone, cache, pooling)
    if found is not None and init is not None and init.kind != "reward":
        raise ConfigError(
            f"inputs.init: a {found} is an encoder and cannot start from a policy ({init.kind}). "
            "It starts from its own files and reads texts: leave the input out, as in "
            "'~stages.reward.inputs.init'."
        )
    return found
