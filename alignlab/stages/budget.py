"""A training's token budget, measured to fit where ``engine.token_budget`` is ``auto``."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.data.batch import TokenBatch
from alignlab.data.group import NONE, TokenGroup
from alignlab.data.mapped import sizes_of
from alignlab.data.pack import group_tokens
from alignlab.engine.fitting import SHARE, Trial, largest, reserved
from alignlab.engine.memory import highest_resident, room
from alignlab.errors import TrainingError
from alignlab.files import write_atomically
from alignlab.images import images_of
from alignlab.models.identity import identity
from alignlab.run import content_key
from alignlab.stages.session import cache_of

if TYPE_CHECKING:
    import torch

    from alignlab.data.batch import Batch
    from alignlab.engine.distributed import Engine
    from alignlab.engine.optimizer import Optimizer
    from alignlab.models.backbone import Backbone
    from alignlab.run import Run
    from alignlab.stages.online_stage import Online

FIRST = 256  # tokens that the search begins with
# Tokens beyond which larger micro-batches are no faster and would only take memory.
MOST = {"cpu": 8192, "cuda": 131_072}


def fit_offline(
    engine: Engine,
    backbone: Backbone,
    view: str,
    groups: Sequence[TokenGroup],
    batch: Batch,
    optimizer: Optimizer,
    run: Run,
    *,
    head: bool = False,
) -> Engine:
    """Return the engine with a budget that fits micro-batches of the largest of ``groups``.

    Warns of groups that are larger than a batch in tokens.
    """
    auto = engine.token_budget == "auto"
    if not auto and isinstance(batch, int):
        return engine
    sizes = sizes_of(groups)
    if isinstance(batch, TokenBatch) and (large := int((sizes > batch.tokens).sum())):
        run.warn(
            f"{large} of {len(groups)} prompts with their completions have more than the"
            f" {batch.tokens} tokens of a batch: each is an optimizer step of its own."
        )
    if not auto:
        return engine
    row = groups[int(sizes.argmax())]
    if isinstance(batch, TokenBatch):
        step = max(batch.tokens, int(sizes.max()))
    else:
        step = int(np.sort(sizes)[::-1][:batch].sum()) * -(-batch // min(batch, len(sizes)))
    return fitted(engine, backbone, [view], row, step, optimizer, run, head=head)


def fit_online(
    engine: Engine,
    backbone: Backbone,
    views: Sequence[str],
    prompts: Sequence[TokenGroup],
    stage: Online,
    run: Run,
    *,
    completions: int,
    step: int,
) -> Engine:
    """Return the engine with a budget that fits the longest prompt with its longest completions.

    ``step`` is the number of prompts of an optimizer step, each with ``completions`` completions.
    The first of ``views`` is measured.
    """
    if engine.token_budget != "auto":
        return engine
    longest = max(prompts, key=lambda group: len(group.prompt))
    written = np.resize(longest.prompt, stage.sampling.max_new_tokens)
    row = replace(longest, completions=(written,) * completions, truncated=(False,) * completions)
    row = replace(row, verdict=NONE, masks=())
    tokens = step * group_tokens(row)
    return fitted(engine, backbone, views, row, tokens, stage.optimizer, run)


def fitted(
    engine: Engine,
    backbone: Backbone,
    views: Sequence[str],
    row: TokenGroup,
    step: int,
    optimizer: Optimizer,
    run: Run,
    *,
    head: bool = False,
) -> Engine:
    """Search for the largest budget with which forward and backward of ``views[0]`` fit.

    Raises:
        TrainingError: not even one ``row`` fits.
    """
    workers, size = engine.workers(), group_tokens(row)
    limit = None if engine.memory_gb is None else engine.memory_gb * 1e9
    free = -workers.highest(-room(workers.device, limit))[0]
    zero, average = engine.zero, optimizer.ema is not None
    states = optimizer.state_bytes()
    later = reserved(backbone, views, average=average, zero=zero, of=workers.world, states=states)
    if workers.device.type == "cpu":  # the search sets the high-water mark back
        highest = max(int(run.record.get("peak_memory_bytes") or 0), highest_resident())
        run.update_record(peak_memory_bytes=highest)
    share = min(MOST[workers.device.type], -(-step // workers.world))
    trial = Trial(backbone, views[0], row, workers, head=head)
    taken = _remembered(trial, _key(engine, backbone, row, head, workers.device), run)
    try:
        rows = largest(taken, max(1, FIRST // size), -(-share // size), SHARE * (free - later))
    finally:
        trial.end()
    if not rows:
        raise TrainingError(
            f"engine.token_budget=auto: one row of {size} tokens does not fit into the"
            f" {max(free - later, 0) / 1e9:.2f} GB that are left beside what is loaded and"
            f" {later / 1e9:.2f} GB of gradients and optimizer state. Shorten the rows, set"
            " backbone.gradient_checkpointing=true, adapter=lora or engine=zero2"
            + ("." if limit is None else f", or raise engine.memory_gb={engine.memory_gb}.")
        )
    measured = {"tokens": rows * size, "row": size, "bytes": taken(rows), "free": free - later}
    run.update_record(token_budget=measured)
    return replace(engine, token_budget=rows * size)


def _remembered(trial: Trial, key: str, run: Run) -> Callable[[int], int]:
    """What ``trial`` finds, kept in the store; every process knows the same of it."""
    path = cache_of(run) / "budgets" / f"{key}.json"
    workers = trial.workers
    known: dict[str, int] = json.loads(path.read_text()) if path.is_file() else {}
    known = workers.from_main(known)

    def taken(rows: int) -> int:
        if str(rows) not in known:
            known[str(rows)] = trial.taken(rows)
            if workers.is_main:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, known)
        return known[str(rows)]

    return taken


def _key(
    engine: Engine, backbone: Backbone, row: TokenGroup, head: bool, device: torch.device
) -> str:
    """Name of all that decides what a pass takes: model, adapter, arithmetic, device, row."""
    import torch

    config = backbone.config
    on_gpu = device.type == "cuda"
    decides: dict[str, Any] = {
        "model": identity(config.path, config.revision),
        "backbone": config,
        "dtype": backbone.dtype_name,
        "layout": backbone.layout[0],
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "torch": torch.__version__,
        "engine": [engine.zero, engine.offload],
        "head": head,
        "row": [len(row.prompt), *map(len, row.completions)],
    }
    if shown := len(images_of(row.meta)):
        decides["images"] = shown
    return content_key(decides)
