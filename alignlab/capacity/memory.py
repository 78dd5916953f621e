"""The memory of one process at the widest moments of a stage, part by part.

What a stage holds is counted from how this package stores it: trained weights in float32 with a
float32 gradient and two moments (16 bytes each, as in Rajbhandari et al. 2020,
https://arxiv.org/abs/1910.02054, §3.1, but in another split: there 2 + 2 + 12), frozen matrices in
bfloat16 where products are, the rest in float32. Sharded states are those of `engine.sharded`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

from alignlab.capacity.activations import FLOAT, freed_bytes, layer_bytes, pass_bytes
from alignlab.capacity.allocator import Allocation
from alignlab.capacity.workload import Model, Workload

CHUNK = 1 << 23  # logits held at a time, `models.logps.CHUNK_ELEMENTS`
COPIES = 3  # of a chunk of logits in float32: itself, shifted, and exponentials or a gradient
PREFILL = 4096  # prompt tokens of one pass, `rollout.slots.PREFILL_TOKENS`
COLUMNS = 32  # by which the key-value memory grows, `rollout.slot_memory.BLOCK`
DRAW = 24  # bytes per logit while a token is drawn: float32 twice, probabilities, float64 sums
BUCKET = 20_000_000  # elements that travel at a time, `engine.sharded.BUCKET_ELEMENTS`
MIB = 1 << 20

Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class Setting:
    """How a stage is executed, as far as memory depends on it."""

    token_budget: int
    processes: int = 1
    zero: int = 0
    offload: Offload = "none"

    @property
    def stage(self) -> int:
        """ZeRO stage that takes effect: alone there is nothing to share, but what may wait."""
        return self.zero if self.processes > 1 or self.offload != "none" else 0


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at one moment.

    ``host`` is main memory beside a GPU's, and no part of `total`.
    """

    phase: str
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0  # keys and values of sampling
    buffers: int = 0  # casts of weights, gathered shards, files being read
    overhead: int = 0  # reserved by the allocator and unused
    runtime: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return sum(getattr(self, name) for name in PARTS)


PARTS = tuple(f.name for f in fields(Memory) if f.name not in ("phase", "host"))


def peak(workload: Workload, setting: Setting, allocation: Allocation) -> Memory:
    """Widest moment of a stage."""
    return max(phases(workload, setting, allocation), key=lambda memory: memory.total)


def phases(workload: Workload, setting: Setting, allocation: Allocation) -> list[Memory]:
    """Every moment that can be the widest: loading, sampling, scoring, updating."""
    held = _held(workload, setting, allocation)
    found = [_load(workload, held, allocation)]
    if workload.decode is not None:
        found += _decode(workload, held, setting, allocation)
    if workload.scored:
        found.append(_score(workload, held, setting, allocation))
    if workload.update is not None:
        found += _update(workload, held, setting, allocation)
    return [_finished(memory, allocation) for memory in found]


def stored(model: Model, half: bool) -> int:
    """Bytes of a frozen base: its matrices as products take them or quantised, the rest float32."""
    d = model.dimensions
    each = (2 if half else FLOAT) if model.packed is None else model.packed
    return round(d.matrices * each) + (d.total - d.matrices) * FLOAT


def _weights(w: Workload, allocation: Allocation) -> int:
    """Bytes of all views, whole."""
    model = w.model
    trained = model.trainable * w.trained * FLOAT
    frozen = stored(model, allocation.half)
    if model.adapter is None:
        return trained + frozen * w.frozen + w.apart
    return frozen + trained + model.adapter * FLOAT * w.frozen + w.apart


def _held(w: Workload, setting: Setting, allocation: Allocation) -> Memory:
    """What is there all the time: weights, and optimizer states after the first step.

    DeepSpeed updates a copy of the weights, so a share of the states is three numbers a weight.
    """
    stage, n = setting.stage, setting.processes
    trained = w.model.trainable * w.trained * FLOAT
    weights = _weights(w, allocation) // (n if stage == 3 else 1)
    states = trained * 3 // n if stage else round(trained // FLOAT * w.states)
    copies = w.trained * w.averages + w.starts
    states += w.model.trainable * copies * FLOAT // (n if stage == 3 else 1)
    away = 0
    if w.update is not None and not allocation.cpu:  # there it is the same memory
        if setting.offload != "none":
            states, away = 0, states
        if setting.offload == "all":
            weights, away = 0, away + weights
    return Memory("", weights=weights, optimizer=states, host=away)


def _load(w: Workload, held: Memory, allocation: Allocation) -> Memory:
    """All views are there, and the file of the last one is still open.

    On a CPU float32 files become weights as they are mapped, and what is converted lies beside its
    file. For a GPU a model is whole in main memory first.
    """
    full, total = w.model.adapter is None, w.model.dimensions.total
    memory = replace(held, phase="load", optimizer=0)
    whole = (FLOAT if full else 2) * total
    if not allocation.cpu:
        return replace(memory, host=held.host + whole)
    converted = allocation.half or not full
    return replace(memory, buffers=whole if converted else 0)


def _decode(
    w: Workload, held: Memory, setting: Setting, allocation: Allocation
) -> Iterator[Memory]:
    """First rows, while their prompts pass; last tokens, when the memory has all its columns.

    Where rows wait for others to end, prompts pass beside a memory that is full.
    """
    decode, model, d = w.decode, w.model, w.model.dimensions
    assert decode is not None
    mine = math.ceil(decode.rows / setting.processes)
    rows = min(decode.batch, mine)
    prompts = min(rows, max(1, PREFILL // decode.prompt)) * decode.prompt
    passing = round(prompts * pass_bytes(model, allocation.arithmetic, decode.prompt))
    column = 2 * d.keys * allocation.arithmetic.element * d.layers

    def columns(filled: int) -> int:
        return (filled // COLUMNS + 1) * COLUMNS * rows * column

    base = replace(
        held,
        phase="sample",
        logits=rows * d.vocabulary * DRAW + _head_copy(model, allocation),
        buffers=_casts(model, allocation, decode.live) + _gathered(w, setting, allocation, True),
    )
    last = columns(decode.prompt + decode.new)
    first = last if mine > rows else columns(decode.prompt)
    yield replace(base, phase="prefill", cache=first + prompts * column, activations=passing)
    yield replace(base, cache=last)


def _score(w: Workload, held: Memory, setting: Setting, allocation: Allocation) -> Memory:
    model, d = w.model, w.model.dimensions
    tokens = micro_tokens(setting, w.group, w.scored, w.budget)
    live = bool(w.trained)
    return replace(
        held,
        phase="score",
        activations=round(tokens * pass_bytes(model, allocation.arithmetic, w.row)),
        logits=_chunk(tokens, d.vocabulary) * COPIES + _head_copy(model, allocation),
        # Between updates a view is scored whole; a stage that trains nothing scores it in shares.
        buffers=_casts(model, allocation, live)
        + _gathered(w, setting, allocation, w.update is not None),
    )


def _update(w: Workload, held: Memory, setting: Setting, allocation: Allocation) -> list[Memory]:
    """Ends of the forward pass of the fullest micro-batch and of a second one, and of a backward.

    Gradients come as activations go, so a first micro-batch finds those of earlier views only.
    """
    update, model = w.update, w.model
    assert update is not None
    mine = math.ceil(update.tokens / setting.processes)
    tokens = micro_tokens(setting, update.group, mine)
    each, away = model.trainable * FLOAT, 0
    if setting.stage >= 2:
        each //= setting.processes
        if setting.offload != "none" and not allocation.cpu:
            each, away = 0, each * w.trained
    whole = model.packed is not None or not model.checkpointing
    casts = _casts(model, allocation) // (1 if whole else model.dimensions.layers)
    buffers = casts + _gathered(w, setting, allocation, False)
    if setting.stage:
        buffers += 2 * min(BUCKET, model.trainable * w.trained) * FLOAT  # on their way
    blocks = 1 if model.checkpointing else model.passed
    freed = freed_bytes(model, allocation.arithmetic) * tokens * blocks
    held = replace(
        held,
        buffers=buffers,
        host=held.host + away,
        overhead=round(allocation.holes * freed),
        runtime=allocation.training,
    )
    layer = round(layer_bytes(model, allocation.arithmetic, update.row) * tokens)
    found = [
        _forward(w, held, tokens, "forward", each * (w.trained - 1), allocation),
        replace(held, phase="backward", gradients=each * w.trained, activations=layer),
    ]
    if mine > tokens:
        rest = min(tokens, mine - tokens)
        found.append(_forward(w, held, rest, "accumulate", each * w.trained, allocation))
    return found


def _forward(
    w: Workload, held: Memory, tokens: int, phase: str, gradients: int, allocation: Allocation
) -> Memory:
    """Everything that the backward pass of a micro-batch needs, and the logits in work."""
    update, model, d = w.update, w.model, w.model.dimensions
    assert update is not None
    layer = round(layer_bytes(model, allocation.arithmetic, update.row) * tokens)
    residual = tokens * d.hidden * FLOAT
    kept = layer + model.passed * residual if model.checkpointing else model.passed * layer
    logits = 0
    if update.targets:
        logits = COPIES * _chunk(round(tokens * update.targets), d.vocabulary)
        logits += _head_copy(model, allocation)
        if model.adapter is None:  # the head's gradient, and what is added to it
            logits += 2 * d.vocabulary * d.hidden * FLOAT
    return replace(
        held,
        phase=phase,
        gradients=gradients,
        activations=kept + 2 * residual,  # two around the head
        logits=logits,
    )


def micro_tokens(setting: Setting, group: int, tokens: int, own: int = 0) -> int:
    """Tokens of the fullest micro-batch: the budget, or a single group that is larger."""
    return max(min(own or setting.token_budget, tokens), min(group, tokens))


def _chunk(targets: int, vocabulary: int) -> int:
    return min(CHUNK, max(16, targets) * vocabulary) * FLOAT


def _head_copy(model: Model, allocation: Allocation) -> int:
    """The head in the format of the products, one column wider: see `models.logps`."""
    d = model.dimensions
    return d.vocabulary * (d.hidden + 1) * 2 if allocation.half else 0


def _casts(model: Model, allocation: Allocation, live: bool = True) -> int:
    """Copies of trained matrices in bfloat16, kept until the backward pass has used them.

    A pass without gradients keeps them for the next micro-batch. Of four bits: the one in use.
    """
    if model.packed is not None:
        return model.dimensions.inner * model.dimensions.hidden * allocation.arithmetic.element
    if not allocation.half or model.adapter is not None or not live:
        return 0
    return model.dimensions.matrices * 2


def _gathered(w: Workload, setting: Setting, allocation: Allocation, view: bool) -> int:
    """Weights that shares are put together to: a whole view, or a block in use and the next one."""
    if setting.stage < 3:
        return 0
    model, d = w.model, w.model.dimensions
    if view:
        whole = d.total * FLOAT if model.adapter is None else stored(model, allocation.half)
        return whole * (setting.processes - 1) // setting.processes
    element = FLOAT if model.adapter is None else allocation.arithmetic.element
    return 2 * d.largest * element


def _finished(memory: Memory, allocation: Allocation) -> Memory:
    """With what the allocator and the libraries take.

    Of a mapped file nothing is lost, nor of chunks of logits on CPUs: glibc hands blocks of 32 MiB
    and more back at once.
    """
    moving = memory.activations + memory.cache + memory.buffers + memory.gradients
    moving += 0 if allocation.cpu else memory.logits
    lost = memory.overhead + (memory.phase != "load") * round(allocation.slack * moving)
    return replace(memory, overhead=lost, runtime=memory.runtime + allocation.runtime)
