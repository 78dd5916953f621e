"""Prompts that a pass has computed, kept for other completions of the same prompts.

KTO compares each prompt of a step with other prompts' completions too. A prompt's keys, values and
last state do not depend on what follows it, so those completions pass through the model alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from alignlab.models.attention_plan import NO_LEAD, plan_behind
from alignlab.models.grouped_attention import KEEP, LEAD, PLAN, placeholder_mask
from alignlab.models.virtual_tokens import lead_of
from alignlab.models.vision import decoder_of
from alignlab.tensors import FlatBatch, GroupSpan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rotary embeddings that turn a token by an angle that also depends on the longest row beside it.
_OF_LENGTH = frozenset(("dynamic", "longrope"))


@dataclass
class KeptPrompts:
    """What one pass over a flat batch leaves for others; nothing, where its prompts do not fit.

    They fit where the pass was over the flat batch as it is (*grouped*), with text alone, and with
    nothing before the prompts; under gradient checkpointing, which holds no keys, none are kept
    either. No gradient flows back from what is computed behind them.
    """

    keys_values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by layer: all T
    spans: tuple[GroupSpan, ...] = ()
    tokens: int = 0  # T
    states: Tensor | None = None  # (G, H) at the last token of every prompt

    def arguments(self, model: PreTrainedModel, batch: FlatBatch) -> dict[str, Any]:
        """Arguments with which a pass over the flat ``batch`` keeps its keys and values."""
        rope = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
        kinds = {of.get("rope_type") for of in (rope, *rope.values()) if isinstance(of, dict)}
        again = model.training and model.is_gradient_checkpointing
        if again or batch.images or lead_of(model) != NO_LEAD or kinds & _OF_LENGTH:
            return {}
        self.spans, self.tokens = batch.spans, batch.tokens
        return {KEEP: self.keys_values}

    def take(self, hidden: Tensor) -> None:
        """Keep the last states out of those of the pass ``(T, H)``."""
        if self.keys_values:
            ends = torch.tensor([span.prompt[1] - 1 for span in self.spans], device=hidden.device)
            self.states = hidden.detach().index_select(0, ends)


def states_behind(
    model: PreTrainedModel, batch: FlatBatch, kept: KeptPrompts
) -> tuple[Tensor, Tensor]:
    """States of the completions of ``batch``, whose prompts are those of ``kept``, in order.

    Returns:
        ``(G + T′, H)``: at the prompts' ends, then at the T′ completion tokens; and ``(N,)`` int64,
        where among them the predictor of each target is.

    Raises:
        ValueError: other prompts, by their lengths.
    """
    if kept.states is None:
        raise ValueError("No prompts were kept.")
    there, here = _lengths(kept.spans), _lengths(batch.spans)
    if there != here:
        raise ValueError(f"Prompts of {here} tokens behind kept ones of {there}.")
    device = batch.input_ids.device
    parts = [part for span in batch.spans for part in span.completions]
    own = np.concatenate([np.arange(start, end) for start, end in parts])
    place = np.zeros(batch.tokens, dtype=np.int64)
    place[[span.prompt[1] - 1 for span in batch.spans]] = np.arange(len(batch.spans))
    place[own] = len(batch.spans) + np.arange(len(own))
    tokens = torch.from_numpy(own).to(device)
    plan = plan_behind(kept.spans, kept.tokens, batch.spans, str(device))
    backbone: Any = decoder_of(model)
    hidden = backbone(
        input_ids=batch.input_ids[None, tokens],
        position_ids=batch.position_ids[None, tokens],
        attention_mask=placeholder_mask(device),
        use_cache=False,
        **{PLAN: plan, LEAD: kept.keys_values},
    )[0][0]
    states = torch.cat([kept.states, hidden])
    return states, torch.from_numpy(place).to(device)[batch.predictor_index]


def _lengths(spans: tuple[GroupSpan, ...]) -> list[int]:
    return [span.prompt[1] - span.prompt[0] for span in spans]
