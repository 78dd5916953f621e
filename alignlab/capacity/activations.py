"""Bytes that a forward pass leaves behind for its backward, token by token and layer by layer.

Counted from what autograd keeps of the operations of a Llama-type block here: with *e* bytes per
element of a matrix product's result (4, or 2 under bfloat16), residual stream and norms in float32,
widths H (residual), A (queries), K (keys), I (inner) and rank r. A frozen linear layer keeps its
weight and not its input; an adapter keeps the input that its first factor is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

from alignlab.capacity.workload import Model

FLOAT = 4
SHORT = 384  # keys up to which attention on CPUs is two plain products in bfloat16


@dataclass(frozen=True)
class Arithmetic:
    """How a device computes: what activations depend on beside the model."""

    half: bool  # matrix products in bfloat16
    cpu: bool

    @property
    def element(self) -> int:
        """Bytes of an element of a product's result."""
        return 2 if self.half else FLOAT


def layer_bytes(model: Model, arithmetic: Arithmetic, row: int) -> float:
    """Bytes per token and block that the backward pass needs; ``row`` tokens attend to each other.

    >>> from alignlab.models.dimensions import Dimensions
    >>> d = Dimensions(1, 8, 16, 8, 4, 2, 100, True, True, total=1, matrices=1, largest=1)
    >>> layer_bytes(Model(d, None, 0, 0, "float32", False), Arithmetic(half=False, cpu=True), 4)
    584.0
    """
    d, e = model.dimensions, arithmetic.element
    full = model.adapter is None
    norms = 2 * d.hidden * FLOAT * (2 if full else 1)  # residual; and the normed one for its gain
    # What q, k, v and gate, up read: one float32 tensor each, or a cast for every product.
    shared = 3 + (2 if d.gated else 1)
    inputs = 0 if model.still else (shared if arithmetic.half or model.drops else 2) * d.hidden * e
    attention = (2 * d.queries + 2 * d.keys) * e + _weights(model, arithmetic, row)
    read = 0 if model.still else d.queries * e  # by the output product
    inner = ((4 if d.gated else 2) - model.still) * d.inner * e  # the last is read by a product
    low_rank = 0 if full else model.adapted * model.rank * e
    wide = model.kept * _widths(model) * e
    # What is dropped of each product's own input: a number there, a byte on GPUs.
    dropped = (shared * d.hidden + d.queries + d.inner) * (FLOAT if arithmetic.cpu else 1)
    return float(
        norms + inputs + attention + read + inner + low_rank + wide + model.drops * dropped
    )


def freed_bytes(model: Model, arithmetic: Arithmetic) -> float:
    """Bytes per token and block of results that adapted layers free at once.

    A layer of peft computes ``W x``, ``B A x`` and its scaled copy and keeps their sum: three
    results of its width go as they came (of DoRA, which keeps the first two, one). What else comes
    and goes is smaller than what is kept.
    """
    if model.adapter is None or not model.adapted:
        return 0.0
    return float(model.freed * arithmetic.element * _widths(model))


def _widths(model: Model) -> float:
    """Outputs of all adapted layers of a block."""
    d = model.dimensions
    widths = d.queries + 2 * d.keys + 2 * d.hidden + (2 if d.gated else 1) * d.inner
    share = min(1.0, model.adapted / d.linear_count) if d.linear_count else 1.0
    return widths * share


def _weights(model: Model, arithmetic: Arithmetic, row: int) -> float:
    """Attention weights, kept where no fused kernel is used: in float32, and as rounded."""
    if not (arithmetic.half and arithmetic.cpu and row <= SHORT):
        return model.dimensions.heads * FLOAT  # log-sum-exp
    return model.dimensions.heads * row * (FLOAT + 2)


def pass_bytes(model: Model, arithmetic: Arithmetic, row: int) -> float:
    """Bytes per token that a pass without gradients holds at its widest operation."""
    d, e = model.dimensions, arithmetic.element
    inner = 2 * d.hidden * FLOAT + 3 * d.inner * e
    scores = d.heads * row * (2 * FLOAT + 4) if arithmetic.half and arithmetic.cpu else 0.0
    if row > SHORT:
        scores = 0.0
    attention = 2 * d.hidden * FLOAT + 2 * (2 * d.queries + 2 * d.keys) * e + scores
    return float(max(inner, attention))
