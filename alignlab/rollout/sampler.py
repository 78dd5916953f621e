"""Own key-value-cached decoding: one prefill per prompt, finished rows leave, log-probs kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignlab.errors import ConfigError, DataError, DivergenceError
from alignlab.images import Reference
from alignlab.models.lean import lean_layers
from alignlab.models.virtual_tokens import lead_of
from alignlab.rollout.sampling import Sampling
from alignlab.rollout.slots import decode_slots, fits_slots
from alignlab.rollout.streams import Drawn, uniform_stream
from alignlab.rollout.unfinished import Unfinished
from alignlab.rollout.waves import decode_waves

__all__ = ["Samples", "Sampling", "sample", "uniform_stream"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Sampled completions, prompt-major: sample s of prompt p is item ``p * n + s``."""

    ids: list[np.ndarray]  # P·n arrays of int32; the stop token is the last one where one was drawn
    logps: list[np.ndarray]  # P·n arrays of fp32, nats, of the distribution at temperature T
    finished: np.ndarray  # (P·n,) bool: ended with a stop token

    @property
    def tokens(self) -> int:
        """Sampled tokens, stop tokens included."""
        return sum(map(len, self.ids))


def sample(
    model: Any,
    prompts: Sequence[np.ndarray],
    *,
    n: int,
    sampling: Sampling,
    eos_id: int | Sequence[int],
    seeds: Sequence[int],
    device: torch.device | str,
    keep: Path | None = None,
    images: Sequence[Sequence[Reference]] | None = None,
) -> Samples:
    """Sample ``n`` completions of every prompt.

    Every (prompt, sample) has a random stream of its own (`uniform_stream`), so what is drawn does
    not depend on ``sampling.batch``, on the other prompts or on their order, *up to rounding*: the
    logits' last bits depend on the batch's shape. On a random model of 4,096 tokens with large
    logits that changed 4 of 10,000 tokens in fp32, 2 to 5 of 100 in bf16; same shapes, none.

    The model is in evaluation mode meanwhile (no dropout) and gets its mode back; the caller's
    autocast applies to the forward pass, logits are fp32. The kept log-probabilities are those of
    softmax(logits / T) *before* top-k and top-p (for T = 0, of softmax(logits)).

    Args:
        model: a transformers decoder language model.
        prompts: P arrays of token ids, each of length ≥ 1; ``n`` completions are made of each.
        sampling: hyperparameters; ``batch`` rows are decoded side by side.
        eos_id: id or ids that end a completion.
        seeds: P integers, one per prompt.
        device: where the model is.
        keep: where a rollout lies until the next one: after an interruption the same call goes on
            at the same token, in the same bits. (In waves it begins again.)
        images: those that each prompt shows, if any does.

    Raises:
        Interrupted: a signal came; see `interruption.check`.
        DataError: an empty prompt, or one that leaves no room for the completion.
        DivergenceError: log-probabilities that are not finite.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}.")
    _check_lengths(model, prompts, sampling.max_new_tokens + lead_of(model).length)
    if not prompts:  # of few prompts, a process of many may have none
        return Samples([], [], np.zeros(0, dtype=bool))
    stop = torch.tensor([eos_id] if isinstance(eos_id, int) else list(eos_id), device=device)
    asked = (prompts, n, sampling, stop, seeds)
    seen = images if images is not None and any(images) else None
    with torch.inference_mode(), _evaluation(model), lean_layers(model):
        if fits_slots(model):
            unfinished = Unfinished.of(keep, *asked, seen or ()) if keep is not None else None
            drawn = decode_slots(model, *asked, unfinished, seen)
        elif seen is not None:
            raise ConfigError(
                "Prompts with images are sampled for in the flat layout only: set"
                " backbone.layout=auto, or leave the stages out that sample."
            )
        else:
            drawn = decode_waves(model, *asked)
    return _samples(drawn)


def _samples(drawn: Drawn) -> Samples:
    numbers = drawn.ids.cpu().numpy().astype(np.int32)
    values = drawn.logps.cpu().numpy()
    lengths = drawn.length.tolist()
    for row, size in enumerate(lengths):
        if not np.isfinite(values[row, :size]).all():
            raise DivergenceError(
                "Sampling gave log-probabilities that are not finite: the policy's logits are "
                "broken. Look for a loss that blew up, or sample in float32."
            )
    return Samples(
        ids=[numbers[row, :size].copy() for row, size in enumerate(lengths)],
        logps=[values[row, :size].copy() for row, size in enumerate(lengths)],
        finished=drawn.finished.cpu().numpy(),
    )


def _check_lengths(model: Any, prompts: Sequence[np.ndarray], more: int) -> None:
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise DataError(f"Prompt {row} is empty: a first token needs something to follow.")
        if limit is not None and len(prompt) + more > limit:
            raise DataError(
                f"Prompt {row} has {len(prompt)} tokens; with {more} more (max_new_tokens and "
                f"virtual tokens) it does not fit the model's {limit} positions. Lower "
                "sampling.max_new_tokens or max_prompt."
            )


@contextmanager
def _evaluation(model: Any) -> Iterator[None]:
    """Switch dropout off, and give every module its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
