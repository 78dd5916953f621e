"""How long a stage takes on a named device: arithmetic, memory traffic of sampling, exchange.

Training and scoring are arithmetic at a share of the device's peak. Sampling reads every weight and
the key-value memory once per token, whatever the batch (Pope et al. 2022,
https://arxiv.org/abs/2211.05102, §2.1), and a block takes no less time than launching its kernels.
Sums of gradients and gathering of shards are counted as if nothing ran beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from alignlab.capacity.activations import FLOAT
from alignlab.capacity.device import Device
from alignlab.capacity.memory import Setting, micro_tokens, stored
from alignlab.capacity.workload import Workload

GIGA = 1e9


@dataclass(frozen=True)
class Duration:
    """Seconds of a stage by what it does."""

    training: float = 0.0
    scoring: float = 0.0
    sampling: float = 0.0
    exchange: float = 0.0  # between processes, and with main memory

    @property
    def seconds(self) -> float:
        """All of it, one after another."""
        return self.training + self.scoring + self.sampling + self.exchange


def duration(workload: Workload, setting: Setting, device: Device) -> Duration:
    """Seconds of ``workload`` on ``setting.processes`` devices."""
    half = device.allocation(workload.model.dtype).half
    rate = device.rate(half) * setting.processes
    total = workload.model.dimensions.total + (workload.model.adapter or 0)
    trained = 0.0
    if workload.update is not None:
        update = workload.update
        again = 2.0 * total if workload.model.checkpointing else 0.0
        each = 4.0 * total + 2.0 * workload.model.trainable + again
        trained = update.steps * update.tokens * workload.trained * each
    return Duration(
        training=trained / rate,
        scoring=2.0 * total * workload.scored / rate,
        sampling=_sampling(workload, setting, device, half),
        exchange=_exchange(workload, setting, device, half),
    )


def _sampling(workload: Workload, setting: Setting, device: Device, half: bool) -> float:
    decode, d = workload.decode, workload.model.dimensions
    if decode is None:
        return 0.0
    mine = math.ceil(decode.rows / setting.processes)
    together = min(decode.batch, mine)
    element = 2 if half else FLOAT
    weights = stored(workload.model, half)
    keys = together * (decode.prompt + decode.new / 2) * 2 * d.keys * element * d.layers
    step = max(
        (weights + keys) / (device.bandwidth_gbs * GIGA),
        2.0 * d.total * together / device.rate(half),
        d.layers * device.layer_microseconds * 1e-6,
    )
    prompts = 2.0 * d.total * mine * decode.prompt / device.rate(half)
    return decode.times * (prompts + mine / together * decode.new * step)


def _exchange(workload: Workload, setting: Setting, device: Device, half: bool) -> float:
    update, model, n = workload.update, workload.model, setting.processes
    if update is None:
        return 0.0
    weights = model.trainable * FLOAT * workload.trained
    seconds = 0.0
    if n > 1:
        link = device.interconnect_gbs if n <= device.count else device.network_gbs
        moved = 2.0 * weights  # gradients are reduced, and sums or new weights handed out
        if setting.zero == 3:
            mine = math.ceil(update.tokens / n)
            micros = math.ceil(mine / micro_tokens(setting, update.group, mine))
            whole = weights if model.adapter is None else stored(model, half)
            passes = 3 if model.checkpointing else 2
            moved = weights + passes * micros * whole
        seconds += update.steps * moved * (n - 1) / n / (link * GIGA)
    if setting.offload != "none" and device.kind == "cuda":
        moved = 2.0 * weights / n  # gradients down, weights up
        seconds += update.steps * moved / (device.host_gbs * GIGA)
    return seconds
