"""How completions are sampled: the hyperparameters alone, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from alignlab.typed import Range


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Decoding hyperparameters; temperature 0 is greedy decoding."""

    max_new_tokens: Annotated[int, Range(min=1)]
    temperature: Annotated[float, Range(min=0)]
    top_p: Annotated[float, Range(min=0, max=1, min_open=True)]  # 1 = off
    top_k: Annotated[int, Range(min=0)]  # 0 = off
    batch: Annotated[int, Range(min=1)]  # rows decoded side by side; changes speed, not samples

    @property
    def truncated(self) -> bool:
        """Whether top-k or top-p removes tokens from the distribution that is sampled from."""
        return self.top_k > 0 or self.top_p < 1
