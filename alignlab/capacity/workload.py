"""What a stage holds and does, without a word of where: what its memory and time follow from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignlab.models.dimensions import Dimensions


@dataclass(frozen=True)
class Model:
    """A base model, what of it is trained, and how it computes."""

    dimensions: Dimensions
    adapter: int | None  # parameters of one low-rank adapter; None: every parameter is trained
    rank: int  # of an adapter; 0 without
    adapted: int  # adapted matrices of a block
    dtype: Literal["auto", "float32", "bfloat16"]
    checkpointing: bool
    packed: float | None = None  # bytes of a matrix's element where it is quantised
    zero: int = 3  # highest ZeRO stage that the technique trains under
    freed: int = 3  # results of an adapted layer's width that come and go
    kept: int = 0  # results of an adapted layer's width that it keeps beside its own (DoRA)
    drops: bool = False  # whether adapters drop some of what they read
    still: bool = False  # whether no linear layer keeps what it reads: none has anything trained
    reached: int | None = None  # blocks from the top that a backward pass goes through; None: all

    @property
    def trainable(self) -> int:
        """Parameters that one trained view has."""
        return self.dimensions.total if self.adapter is None else self.adapter

    @property
    def passed(self) -> int:
        """Blocks that a backward pass goes through."""
        return self.dimensions.layers if self.reached is None else self.reached


@dataclass(frozen=True)
class Update:
    """Optimizer steps over micro-batches that go forward and backward."""

    steps: int
    tokens: int  # most tokens of one step, of one trained view
    group: int  # most tokens of one prompt with its completions: no micro-batch is smaller
    row: int  # most tokens that attend to each other
    targets: float  # share of the tokens that are predicted


@dataclass(frozen=True)
class Decode:
    """Sampling with a key-value memory."""

    rows: int  # completions sampled at one go
    batch: int  # of them side by side, at most
    prompt: int  # most tokens of a prompt
    new: int  # most tokens of a completion
    times: int = 1  # how often
    live: bool = False  # from the view that is being trained


@dataclass(frozen=True)
class Workload:
    """Everything about a stage that its memory and time follow from."""

    model: Model
    trained: int = 0  # views that are trained: each has gradients and optimizer states
    frozen: int = 0  # views held beside them; 0 for those that are gone before training
    update: Update | None = None
    decode: Decode | None = None
    scored: int = 0  # tokens that pass forward only, those of sampling left out
    group: int = 0  # of them: most tokens of one prompt with its completions
    row: int = 0
    budget: int = 0  # tokens of such a pass; 0: the engine's token budget
    states: float = 8.0  # bytes of optimizer state of a trained weight; AdamW's two moments
    starts: int = 0  # float32 copies of one trained view that an anchor compares with
    averages: int = 0  # further float32 copies of what is trained (moving average, best weights)
    apart: int = 0  # bytes of models of other families that are held beside (reward models)
