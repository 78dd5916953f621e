"""What stands before every prompt of a view: virtual tokens, or keys and values of every layer.

The active view's is an attribute of its model, as an active adapter is a state of it: whoever runs
the model through `flat_inputs` or `padded_inputs` computes with it. A virtual token sees those
before it and nothing else, so one pass computes them once for all prompts of a flat batch. Real
tokens take the positions behind them, as in peft.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from alignlab.errors import ConfigError
from alignlab.images import Reference
from alignlab.models.attention_plan import NO_LEAD, Lead, attention_plan
from alignlab.models.flex import flex_plan
from alignlab.models.grouped_attention import LEAD, PLAN, placeholder_mask
from alignlab.models.vision import embedded, sight_of
from alignlab.tensors import GroupSpan

_ATTRIBUTE = "alignlab_soft_prompt"


class SoftPrompt(ABC):
    """What ``length`` virtual tokens add to a pass; ``encoder`` maps places (1, v) to states."""

    def __init__(self, encoder: nn.Module, length: int) -> None:
        self.encoder = encoder
        self.length = length

    @property
    @abstractmethod
    def lead(self) -> Lead:
        """How attention over the flat batch sees it."""

    @abstractmethod
    def flat(self, model: Any, ids: Tensor, position: Tensor) -> dict[str, Any]:
        """Inputs of a pass over a flat sequence: ids and positions (T,) of the real tokens."""

    @abstractmethod
    def padded(self, model: Any, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Inputs of a pass over right-padded rows (R, L)."""

    def states(self, training: bool) -> Tensor:
        """What the encoder makes of the virtual tokens ``(v, width)``, in its own precision."""
        self.encoder.train(training)
        place = next(self.encoder.parameters()).device
        with torch.autocast(place.type, enabled=False):
            found: Tensor = self.encoder(torch.arange(self.length, device=place)[None])[0]
        return found


class VirtualTokens(SoftPrompt):
    """Embeddings: prompt tuning and P-tuning. Virtual token i of v is written as the id i − v."""

    @property
    def lead(self) -> Lead:
        """Tokens of the sequence."""
        return Lead(self.length, tokens=True)

    def ids(self, like: Tensor) -> Tensor:
        """Ids ``(…, v)`` of the virtual tokens, for as many rows as ``like`` has."""
        own = torch.arange(-self.length, 0, device=like.device)
        return own.expand(*like.shape[:-1], -1)

    def embed(self, model: Any, ids: Tensor) -> Tensor:
        """Embeddings ``(…, H)`` of ids ``(…)``, the negative ones being virtual tokens."""
        real: Tensor = model.get_input_embeddings()(ids.clamp(min=0))
        own = self.states(model.training).to(real.dtype)
        return torch.where((ids < 0)[..., None], own[ids.clamp(max=-1)], real)

    def flat(self, model: Any, ids: Tensor, position: Tensor) -> dict[str, Any]:
        """The virtual tokens once, then all prompts and completions."""
        ahead = torch.arange(self.length, device=ids.device)
        return {
            "inputs_embeds": self.embed(model, torch.cat([self.ids(ids), ids]))[None],
            "position_ids": torch.cat([ahead, position + self.length])[None],
        }

    def padded(self, model: Any, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """The virtual tokens before every row."""
        return {
            "inputs_embeds": self.embed(model, torch.cat([self.ids(ids), ids], 1)),
            "attention_mask": _seen(mask, self.length),
        }


class Prefix(SoftPrompt):
    """Keys and values of every layer: prefix tuning. ``heads`` are those of keys and values."""

    def __init__(self, encoder: nn.Module, length: int, layers: int, heads: int) -> None:
        super().__init__(encoder, length)
        self.layers, self.heads = layers, heads

    @property
    def lead(self) -> Lead:
        """Keys alone."""
        return Lead(self.length)

    def keys_values(self, training: bool) -> Sequence[tuple[Tensor, Tensor]]:
        """Keys and values ``(1, heads, v, dim)`` of every layer; peft's order of the states."""
        states = self.states(training).view(self.length, 2 * self.layers, self.heads, -1)
        parts = states.permute(1, 2, 0, 3)[:, None].unbind()
        return list(zip(parts[::2], parts[1::2], strict=True))

    def flat(self, model: Any, ids: Tensor, position: Tensor) -> dict[str, Any]:
        """Keys and values go to the attention function, which puts them before its own."""
        return {
            "input_ids": ids[None],
            "position_ids": position[None] + self.length,
            LEAD: self.keys_values(model.training),
        }

    def padded(self, model: Any, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """A memory that already holds them, as peft passes them.

        Raises:
            ConfigError: transformers takes the memory away under gradient checkpointing.
        """
        if model.training and any(getattr(m, "gradient_checkpointing", 0) for m in model.modules()):
            raise ConfigError(
                "adapter=prefix does not go together with padded rows and"
                " backbone.gradient_checkpointing=true; switch that off, or use adapter=prompt."
            )
        cache = DynamicCache(config=model.config)
        self.fill(cache, len(ids), model)
        return {
            "input_ids": ids,
            "attention_mask": _seen(mask, self.length),
            "past_key_values": cache,
        }

    def fill(self, cache: Cache, rows: int, model: Any) -> None:
        """Write keys and values as the first of an empty memory of ``rows`` rows."""
        for layer, states in enumerate(self.keys_values(model.training)):
            keys, values = (x.to(_product_dtype(x)).expand(rows, -1, -1, -1) for x in states)
            cache.update(keys, values, layer)


def _seen(mask: Tensor, length: int) -> Tensor:
    return torch.cat([mask.new_ones(len(mask), length), mask], 1)


def _product_dtype(x: Tensor) -> torch.dtype:
    """Number format of matrix products, which is what keys and values come out in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def soft_prompt_of(model: Any) -> SoftPrompt | None:
    """What stands before the prompts of the model's active view, if anything."""
    found: SoftPrompt | None = getattr(model, _ATTRIBUTE, None)
    return found


def set_soft_prompt(model: Any, prompt: SoftPrompt | None) -> None:
    """Let ``model`` compute with ``prompt``, or as it is."""
    setattr(model, _ATTRIBUTE, prompt)


def lead_of(model: Any) -> Lead:
    """How attention over the flat batch sees what stands before the prompts."""
    prompt = soft_prompt_of(model)
    return NO_LEAD if prompt is None else prompt.lead


def flat_inputs(
    model: Any,
    ids: Tensor,
    position: Tensor,
    spans: tuple[GroupSpan, ...],
    images: Sequence[Reference] = (),
    *,
    flex: bool = False,
) -> dict[str, Any]:
    """Arguments of a pass over a flat sequence (T,); its last T states are those of the tokens.

    With ``flex`` attention is one call of FlexAttention (see `alignlab.models.flex`).
    """
    prompt = soft_prompt_of(model)
    arguments = {
        "attention_mask": placeholder_mask(ids.device),
        PLAN: (flex_plan if flex else attention_plan)(spans, ids.device, lead_of(model)),
    }
    if sight_of(model) is not None:
        states = embedded(model, ids, images)
        return {"inputs_embeds": states[None], "position_ids": position[None], **arguments}
    if prompt is None:
        return {"input_ids": ids[None], "position_ids": position[None], **arguments}
    return prompt.flat(model, ids, position) | arguments


def padded_inputs(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """Arguments of a pass over right-padded rows (R, L); its last L states are the tokens'."""
    prompt = soft_prompt_of(model)
    if prompt is None:
        return {"input_ids": ids, "attention_mask": mask}
    return prompt.padded(model, ids, mask)
