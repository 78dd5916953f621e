"""NEFTune: uniform noise on the embeddings of a training pass (Jain et al. 2023, 2310.05914).

The noise of a row is drawn from a stream of its own, a function of the run's seed, the step and
the row. So it does not depend on how rows are packed, on their layout or on the number of
processes, and a continued run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from alignlab.tensors import GroupSpan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class EmbeddingNoise:
    """``ε ~ U(−1, 1) · α / √(L d)`` on every embedding of a flat batch of G groups.

    ``d`` is the width of the embeddings and ``L`` the length of the token's own sequence, without
    padding: prompt and completion. A prompt that several completions share is computed once; its L
    is that of the longest of them, so that no sequence gets more noise than it would alone.
    """

    alpha: float
    seeds: tuple[int, ...]  # (G,) of each group's stream

    def lengths(self, spans: Sequence[GroupSpan]) -> np.ndarray:
        """``L`` of every token ``(T,)``."""
        found: list[np.ndarray] = []
        for span in spans:
            prompt = span.prompt[1] - span.prompt[0]
            own = [end - start for start, end in span.completions]
            longest = prompt + max(own, default=0)
            found.append(np.full(prompt, longest))
            found += [np.full(length, prompt + length) for length in own]
        return np.concatenate(found)

    def draw(self, spans: Sequence[GroupSpan], width: int, device: torch.device) -> Tensor:
        """Noise ``(T, width)``, fp32."""
        parts: list[Tensor] = []
        for span, seed in zip(spans, self.seeds, strict=True):
            tokens = max([span.prompt[1], *(end for _, end in span.completions)]) - span.prompt[0]
            stream = torch.Generator(device).manual_seed(seed)
            parts.append(torch.rand(tokens, width, generator=stream, device=device))
        scale = self.alpha / np.sqrt(self.lengths(spans) * width)
        uniform = torch.cat(parts).mul_(2).sub_(1)
        return uniform.mul_(torch.from_numpy(scale).to(device, torch.float32)[:, None])


def noise_of(
    alpha: float | None, seed: int, step: int, rows: Sequence[int]
) -> EmbeddingNoise | None:
    """The noise of a micro-batch of optimizer step ``step`` that holds the data rows ``rows``."""
    if alpha is None:
        return None
    words = (np.random.SeedSequence([seed, step, row]).generate_state(2) for row in rows)
    return EmbeddingNoise(alpha, tuple((int(high) << 32) + int(low) for high, low in words))


@contextmanager
def disturbed(
    model: PreTrainedModel, draw: Callable[[int, torch.device], Tensor]
) -> Iterator[None]:
    """Add ``draw(width, device)`` to what the model's embeddings give for the last tokens.

    Those before them are virtual tokens, which are parameters and not embeddings of text.
    """

    def add(module: Any, inputs: Any, output: Tensor) -> Tensor:
        noise = draw(output.shape[-1], output.device).to(output.dtype)
        ahead = output.shape[-2] - noise.shape[-2]
        return output + torch.nn.functional.pad(noise, (0, 0, ahead, 0))

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
