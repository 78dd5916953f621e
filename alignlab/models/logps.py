"""Log-probabilities of target tokens without ever holding ``(N, V)`` logits.

The head is applied to the N predictor positions only, a chunk of rows at a time, in a function with
its own backward: chunk logits are recomputed for a head that is trained, and not even that for a
frozen one (see `token_logps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_ELEMENTS = 1 << 23  # logits held at a time (32 MB in fp32)


@dataclass(frozen=True)
class Head:
    """Language-model head: ``logits = softcap · tanh(scale · (W h + b) / softcap)``."""

    weight: Tensor  # (V, H)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``(…, V)`` in fp32 (fp64 for fp64 input) of hidden states ``(…, H)``."""
        dtype = _matmul_dtype(hidden)
        raw = torch.nn.functional.linear(
            hidden.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        )
        return _shape_logits(raw, self.scale, self.softcap)


def head_of(model: PreTrainedModel) -> Head:
    """Head of a causal language model, with the scaling and soft cap its configuration states.

    Granite divides logits by ``logits_scaling``; Cohere multiplies them by ``logit_scale``; Gemma 2
    caps them at ``final_logit_softcapping``; Falcon-H1 has ``lm_head_multiplier``.
    """
    config = model.config.get_text_config()
    linear = model.get_output_embeddings()
    if linear is None:
        raise ValueError(f"{type(model).__name__} has no language-model head.")
    scale = 1.0
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        scale /= float(divisor)
    for name in ("logit_scale", "lm_head_multiplier"):
        if (factor := getattr(config, name, None)) is not None:
            scale *= float(factor)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, getattr(linear, "bias", None), scale, softcap)


def token_logps(
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """Log-probability (nats) of each target: ``log softmax(logits(h_n) / temperature)[y_n]``.

    With a frozen head the forward stores ``J_n = ∂ logp_n / ∂ h_n = Wᵀ(e_y − p)`` ``(N, H)`` and the
    backward is ``g_n · J_n``: two matrix products instead of three. With a trained head (full
    fine-tuning, tied embeddings) the backward recomputes the logits of each chunk.

    Args:
        hidden: ``(N, H)`` predictor states.
        target_ids: ``(N,)`` tokens to predict.
        chunk: rows of logits held at a time; None chooses by vocabulary size.

    Returns:
        ``(N,)`` fp32 (fp64 for fp64 states), differentiable in states, head weight and bias.
    """
    return _run(hidden, head, target_ids, temperature, chunk, entropy=False)[0]


def token_logps_entropy(
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`token_logps` and the entropy (nats) of each predictive distribution, without its gradient."""
    return _run(hidden, head, target_ids, temperature, chunk, entropy=True)


def segment_sum(x: Tensor, index: Tensor, count: int) -> Tensor:
    """Sums of ``x`` ``(N,)`` by ``index`` ``(N,)``: ``(count,)``, zero where nothing points."""
    return x.new_zeros(count).index_add(0, index, x)


def _run(
    hidden: Tensor,
    head: Head,
    target_ids: Tensor,
    temperature: float,
    chunk: int | None,
    *,
    entropy: bool,
) -> tuple[Tensor, Tensor]:
    if temperature <= 0:
        raise ValueError(f"The temperature must be positive, not {temperature}.")
    if hidden.shape[0] != target_ids.shape[0]:
        raise ValueError(f"{hidden.shape[0]} states but {target_ids.shape[0]} targets.")
    rows = chunk or max(16, CHUNK_ELEMENTS // head.weight.shape[0])
    options = _Options(
        scale=head.scale / temperature,
        softcap=None if head.softcap is None else head.softcap / temperature,
        rows=rows,
        entropy=entropy,
        dtype=_matmul_dtype(hidden),
        gradient=torch.is_grad_enabled(),
    )
    logps, entropies = _TokenLogps.apply(hidden, head.weight, head.bias, target_ids, options)
    return logps, entropies


@dataclass(frozen=True)
class _Options:
    # softcap · tanh(scale · z / softcap) / temperature is the same form with both divided by it
    scale: float
    softcap: float | None
    rows: int
    entropy: bool
    dtype: torch.dtype
    gradient: bool


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _shape_logits(raw: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Scaled and capped logits in fp32 at least; ``raw`` is not used afterwards."""
    z = raw.to(torch.promote_types(raw.dtype, torch.float32))
    if scale != 1.0:
        z = z * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def _logit_gradient(z: Tensor, lse: Tensor, targets: Tensor, options: _Options) -> Tensor:
    """``∂ logp_n / ∂ (W h_n + b)`` ``(rows, V)`` from shaped logits, overwriting nothing."""
    gradient = torch.exp(z - lse[:, None]).neg_()
    gradient.scatter_add_(1, targets[:, None], torch.ones_like(lse)[:, None])
    if options.softcap is not None:
        gradient.mul_(1 - (z / options.softcap).square())
    return gradient.mul_(options.scale) if options.scale != 1.0 else gradient


class _TokenLogps(torch.autograd.Function):
    """Chunked target log-probabilities with recomputation, or a stored Jacobian (frozen head)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        options: _Options,
    ) -> tuple[Tensor, Tensor]:
        head_trained = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        store = options.gradient and ctx.needs_input_grad[0] and not head_trained
        with torch.autocast(hidden.device.type, enabled=False):
            states, matrix, offset = _cast(hidden, weight, bias, options)
            precision = torch.promote_types(options.dtype, torch.float32)
            logps = torch.empty(len(hidden), dtype=precision, device=hidden.device)
            lse = torch.empty_like(logps)
            entropy = torch.empty_like(logps) if options.entropy else logps.new_empty(0)
            jacobian = torch.empty_like(states) if store else None
            kept = None  # of a batch that is one chunk: no larger than what was held anyway
            for rows in _chunks(len(hidden), options.rows):
                z = _chunk_logits(states[rows], matrix, offset, options)
                lse[rows] = torch.logsumexp(z, -1)
                logps[rows] = z.gather(1, target_ids[rows, None])[:, 0] - lse[rows]
                if options.entropy:
                    p = torch.exp(z - lse[rows, None])
                    entropy[rows] = lse[rows] - (p * z).sum(-1)
                if jacobian is not None:
                    gradient = _logit_gradient(z, lse[rows], target_ids[rows], options)
                    jacobian[rows] = gradient.to(options.dtype) @ matrix
                elif options.gradient and len(hidden) <= options.rows:
                    kept = _logit_gradient(z, lse[rows], target_ids[rows], options)
        ctx.options = options
        ctx.mark_non_differentiable(entropy)
        ctx.save_for_backward(hidden, weight, bias, target_ids, lse, jacobian, kept)
        return logps, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target_ids, lse, jacobian, kept = ctx.saved_tensors
        if jacobian is not None:
            return (grad[:, None] * jacobian).to(hidden.dtype), None, None, None, None
        options: _Options = ctx.options
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        states, matrix, offset = _cast(hidden, weight, bias, options)
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight) if need_weight else None
        d_bias = torch.zeros_like(bias) if need_bias else None
        for rows in _chunks(len(hidden), options.rows):
            gradient = kept
            if gradient is None:
                z = _chunk_logits(states[rows], matrix, offset, options)
                gradient = _logit_gradient(z, lse[rows], target_ids[rows], options)
            gradient = gradient * grad[rows, None]
            if d_bias is not None:
                d_bias += gradient.sum(0)
            gradient = gradient.to(options.dtype)
            if d_hidden is not None:
                d_hidden[rows] = (gradient @ matrix).to(hidden.dtype)
            if d_weight is not None:
                if d_weight.dtype == options.dtype:
                    d_weight.addmm_(gradient.T, states[rows])
                else:
                    d_weight += gradient.T @ states[rows]
        return d_hidden, d_weight, d_bias, None, None


def _cast(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, options: _Options
) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = options.dtype
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _chunk_logits(
    states: Tensor, matrix: Tensor, offset: Tensor | None, options: _Options
) -> Tensor:
    raw = torch.nn.functional.linear(states, matrix, offset)
    return _shape_logits(raw, options.scale, options.softcap)


def _chunks(total: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, total)) for start in range(0, total, rows)]
