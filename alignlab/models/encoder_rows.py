"""The forward pass of an encoder: one row per prompt and completion, read at its pooled state.

A decoder shares a prompt among its completions, since the prompt never sees them. In an encoder it
does, so every completion has a row of its own, which begins with the group's prompt: for groups
that `alignlab.data.text_pairs` makes that is the one token [CLS]. *packed*: all rows in one flat
sequence without padding, each attending to itself alone. *padded*: right-padded rows, where the
attention does not go through transformers' ``AttentionInterface``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from alignlab.models.attention_plan import AttentionPlan, own_rows
from alignlab.models.encoders import Pooling
from alignlab.models.grouped_attention import PLAN, placeholder_mask
from alignlab.models.layout import Layout, padded_plan
from alignlab.tensors import FlatBatch, GroupSpan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RowPlan:
    """Rows of a flat batch one after another, each with a copy of its prompt."""

    attention: AttentionPlan
    index: Tensor  # (S,) token of the batch at each place; S is the sum of the rows' lengths
    position: Tensor  # (S,) place within the row
    row: Tensor  # (S,) row of each place
    starts: Tensor  # (C,) place of each row's first token
    lengths: Tensor  # (C,)


def row_plan(spans: tuple[GroupSpan, ...], device: torch.device | str) -> RowPlan:
    """Packed layout of a flat batch's spans on ``device``; kept between passes."""
    return _row_plan(spans, str(device))


@lru_cache(maxsize=32)
def _row_plan(spans: tuple[GroupSpan, ...], device: str) -> RowPlan:
    rows = [
        np.concatenate([np.arange(*span.prompt), np.arange(*own)])
        for span in spans
        for own in span.completions
    ]
    lengths = np.array([len(row) for row in rows])
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(rows)), lengths)
    position = np.arange(lengths.sum()) - starts[owner]
    arrays = (np.concatenate(rows), position, owner, starts, lengths)
    tensors = (torch.from_numpy(x).to(device) for x in arrays)
    return RowPlan(own_rows(tuple(lengths.tolist()), device), *tensors)


def pooled_states(
    model: PreTrainedModel, batch: FlatBatch, rows: Layout, pooling: Pooling
) -> Tensor:
    """One state for each completion's row ``(C, H)``: the first token's, or the mean of all."""
    second = _second_segment(model, batch)
    if rows == "packed" and _sees_whole(model, batch.spans):
        plan = row_plan(batch.spans, batch.input_ids.device)
        states = _packed(model, batch, plan, second)
        if pooling == "first":
            return states.index_select(0, plan.starts)
        total = states.new_zeros(len(plan.lengths), states.shape[1]).index_add(0, plan.row, states)
        return total / plan.lengths[:, None]
    padded = padded_plan(batch.spans, batch.input_ids.device)
    arguments: dict[str, Any] = {"attention_mask": padded.mask}
    if second is not None:
        arguments["token_type_ids"] = second[padded.row_index] * padded.mask
    hidden: Tensor = model(input_ids=batch.input_ids[padded.row_index], **arguments)[0]
    if pooling == "first":
        return hidden[:, 0]
    mask = padded.mask[..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def _packed(
    model: PreTrainedModel, batch: FlatBatch, plan: RowPlan, second: Tensor | None
) -> Tensor:
    """Last states ``(S, H)`` of the packed rows."""
    config: Any = model.config
    offset = config.pad_token_id + 1 if config.model_type in _BEHIND_PADDING else 0
    arguments: dict[str, Any] = {
        "input_ids": batch.input_ids[plan.index][None],
        "position_ids": (plan.position + offset)[None],
        "attention_mask": placeholder_mask(batch.input_ids.device),
        PLAN: plan.attention,
    }
    if second is not None:
        arguments["token_type_ids"] = second[plan.index][None]
    hidden: Tensor = model(**arguments)[0]
    return hidden[0]


_BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert")  # their first position has this offset


def _second_segment(model: PreTrainedModel, batch: FlatBatch) -> Tensor | None:
    """Segment (T,) of every token, 1 from the completion's text on; None where it is not read.

    What a group marks as its targets is the second segment: the text that is scored. A row whose
    targets are all of it has no first text, and one segment.
    """
    if int(getattr(model.config, "type_vocab_size", 0) or 0) < 2:
        return None
    segment = torch.zeros_like(batch.input_ids)
    places = batch.predictor_index + 1
    first = torch.cumsum(batch.lengths, 0) - batch.lengths
    starts = torch.tensor(
        [own[0] for span in batch.spans for own in span.completions], device=places.device
    )
    # The predictor of a completion's very first token is the shared prompt's last, not the place
    # before it; such a completion is one segment.
    paired = places[first.clamp(max=max(len(places) - 1, 0))] > starts
    segment[places[paired[batch.target_completion]]] = 1
    return segment


def _sees_whole(model: PreTrainedModel, spans: tuple[GroupSpan, ...]) -> bool:
    """Whether every layer sees the longest row whole: ModernBERT's window goes to both sides."""
    window = getattr(model.config, "sliding_window", None)
    if window is None:
        return True
    prompts = ((span.prompt[1] - span.prompt[0], span.completions) for span in spans)
    longest = max(prompt + end - start for prompt, owns in prompts for start, end in owns)
    return longest <= int(window)
