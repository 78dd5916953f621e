"""How much an optimizer step takes: so many prompts, or as many as fit into so many tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from alignlab.typed import Range


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """As many whole prompts, with all their completions, as fit into ``tokens`` tokens.

    Counted is what passes through the model: a prompt once and every completion. A prompt that is
    larger than ``tokens`` is an optimizer step of its own.
    """

    tokens: Annotated[int, Range(min=1)]


Batch = Annotated[int, Range(min=1)] | TokenBatch
"""Of the whole optimizer step, over all processes, in prompts or in tokens; never in both."""
