"""Open the policy that a stage goes on training, from whatever stage made it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone
    from alignlab.models.load import BackboneConfig
    from alignlab.run import Run


def open_policy(
    config: BackboneConfig, init: Run | None, run: Run, engine: Engine, seed: int
) -> tuple[Backbone, Path | None]:
    """Load the backbone with the view ``policy``, which is trained, as ``init`` left it.

    Also returns the folder of that policy, None where the base model's own weights are the start:
    without ``init``, and behind a pretrain stage, whose result is a base model.
    """
    from alignlab.stages.session import open_backbone

    pretrained = init is not None and init.kind == "pretrain"
    folder = None if init is None else init.model_dir
    base, source = (folder, None) if pretrained else (None, folder)
    backbone = open_backbone(config, run, engine, seed, base=base, shared=True)
    backbone.add("policy", source=source, trainable=True)
    return backbone, source
