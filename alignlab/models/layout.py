"""Which layout a model's forward pass uses, and the pass itself.

*grouped*: the flat batch as it is (`grouped_attention`). *flex*: the same, with one call of
FlexAttention per layer (`flex`, for GPUs). *padded*: one right-padded row per completion, prompt
repeated, for architectures whose layers do not fit the flat batch. All return the same hidden
states at the same flat places, so nothing above this file can tell them apart.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.models.auto import encodes
from alignlab.models.encoders import rows_for
from alignlab.models.flex import require_gpu
from alignlab.models.grouped_attention import register
from alignlab.models.noise import EmbeddingNoise, disturbed
from alignlab.models.virtual_tokens import flat_inputs, padded_inputs
from alignlab.models.vision import decoder_of, embedded, sight_of
from alignlab.tensors import FlatBatch, GroupSpan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from alignlab.models.kept_prompts import KeptPrompts

# Of encoders: "packed" or "padded" rows (`alignlab.models.encoder_rows`).
Layout = Literal["grouped", "flex", "padded", "packed"]

# Verdicts on model types, kept true by tests/models/test_layout.py, which measures each of them on
# a tiny random model. A type that is in neither is measured when it is first met.
GROUPED = frozenset(
    [
        *("llama", "smollm3", "mistral", "mixtral", "starcoder2"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
        *("gemma", "gemma2", "gemma3_text"),
        *("olmo", "olmo2", "olmo3", "olmoe"),
        *("phi", "phi3", "granite", "cohere", "cohere2"),
        *("gpt2", "gpt_neox", "opt"),
    ]
)
PADDED = {
    "bloom": "ALiBi biases are computed from the place in the row",
    "mpt": "ALiBi biases are computed from the place in the row",
    "mamba": "the state runs through the whole sequence",
    "mamba2": "the state runs through the whole sequence",
    "gpt_neo": "its attention does not go through transformers' AttentionInterface",
    "gptj": "its attention does not go through transformers' AttentionInterface",
    "codegen": "its attention does not go through transformers' AttentionInterface",
    "stablelm": "its layers do not hand the layout on to the attention function",
    "nemotron": "its layers do not hand the layout on to the attention function",
    "falcon": "its attention does not go through transformers' AttentionInterface",
}


def chosen_layout(
    wanted: Literal["auto", "grouped", "flex", "padded"],
    config: PreTrainedConfig,
    device: torch.device | str,
) -> tuple[Layout, str]:
    """Layout for a configuration's ``layout`` and a model, and the reason in a few words.

    Raises:
        ConfigError: the flat layout is asked for and does not fit, or not on ``device``.
    """
    config = config.get_text_config()
    if encodes(config):
        return rows_for(wanted, config.model_type)
    if wanted == "padded":
        return "padded", "as configured"
    layout, reason = layout_for(config)
    if wanted in ("grouped", "flex") and layout != "grouped":
        raise ConfigError(f"backbone.layout={wanted} does not fit: {reason}. Use layout=auto.")
    if wanted != "flex":
        return layout, reason
    require_gpu(device)
    return "flex", reason


def layout_for(config: PreTrainedConfig) -> tuple[Layout, str]:
    """Layout that fits the architecture of ``config``, and the reason in a few words.

    From the table above, else measured on a two-layer random model of the same configuration.
    """
    if config.model_type in GROUPED:
        window = window_of(config)
        limit = f"; rows over {window} tokens (its attention window) are padded" if window else ""
        return "grouped", f"{config.model_type}: causal attention{limit}"
    if config.model_type in PADDED:
        return "padded", f"{config.model_type}: {PADDED[config.model_type]}"
    return measure(config)


def window_of(config: PreTrainedConfig) -> int | None:
    """Longest row (tokens) that every attention layer sees whole; None without a limit."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((limit for limit in limits if limit), default=None)


def measure(config: PreTrainedConfig, seed: int = 0) -> tuple[Layout, str]:
    """Compare both layouts on a random model with this configuration and few layers."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(
                _few_layers(config), attn_implementation=register(), dtype=torch.float32
            ).eval()
        except Exception as error:  # whatever a foreign class raises; the reason is reported
            return "padded", f"{config.model_type}: no flat attention ({_first_line(error)})"
        for parameter in model.parameters():
            if parameter.ndim > 1:  # the usual std of 0.02 would hide what attention contributes
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return compare(model)


def _few_layers(config: PreTrainedConfig) -> PreTrainedConfig:
    """Copy of ``config`` with two layers, or as many as hold one layer of every kind."""
    small = copy.deepcopy(config)
    layers = getattr(small, "num_hidden_layers", 0)
    kinds = list(getattr(small, "layer_types", None) or [])
    keep = max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])
    if layers > keep:
        small.num_hidden_layers = keep
        for name, value in vars(config).items():
            if isinstance(value, list) and len(value) == layers:
                setattr(small, name, value[:keep])
    return small


def compare(model: PreTrainedModel, tolerance: float = 1e-4) -> tuple[Layout, str]:
    """Measure on ``model``: relative difference of the hidden states of both layouts."""
    name = model.config.model_type
    batch = _probe(model.config.get_text_config().vocab_size)
    with torch.no_grad():
        padded = hidden_states(model, batch, "padded").float()
        try:
            grouped = hidden_states(model, batch, "grouped").float()
        except Exception as error:  # whatever a foreign class raises; the reason is reported
            return "padded", f"{name}: the flat layout does not run ({_first_line(error)})"
    difference = float((grouped - padded).abs().max() / padded.abs().max())
    if not difference <= tolerance:
        return "padded", f"{name}: the flat layout differs by {difference:.0e} (measured)"
    return "grouped", f"{name}: equal to the padded layout up to {difference:.0e} (measured)"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _probe(vocabulary: int) -> FlatBatch:
    """Two groups with two and three completions of unlike lengths, ids all over the vocabulary."""
    prompts, completions = (5, 3), ((4, 2), (3, 5, 1))
    spans: list[GroupSpan] = []
    position: list[int] = []
    cursor = 0
    for prompt, parts in zip(prompts, completions, strict=True):
        own = [(cursor, cursor + prompt)]
        position += range(prompt)
        cursor += prompt
        for length in parts:
            own.append((cursor, cursor + length))
            position += range(prompt, prompt + length)
            cursor += length
        spans.append(GroupSpan(own[0], tuple(own[1:])))
    ends = [end - 1 for span in spans for _, end in span.completions]
    empty = torch.zeros(0, dtype=torch.int64)
    targets = [i for span in spans for start, end in span.completions for i in range(start, end)]
    ids = (torch.arange(cursor) * 37 + 11) % (vocabulary - 4) + 4  # past the usual special tokens
    return FlatBatch(
        input_ids=ids,
        position_ids=torch.tensor(position),
        predictor_index=torch.tensor(targets),
        target_ids=empty,
        target_completion=empty,
        end_index=torch.tensor(ends),
        lengths=empty,
        completion_group=empty,
        rows=empty,
        spans=tuple(spans),
    )


@dataclass(frozen=True)
class PaddedPlan:
    """Right-padded rows ``prompt + completion`` of a flat batch, and the way back."""

    row_index: Tensor  # (C, L) index into T of every slot; padding repeats the row's last token
    mask: Tensor  # (C, L) int64, 1 = token, 0 = padding
    flat_index: Tensor  # (T,) slot of each flat token among C·L; a prompt's in its first row


def padded_plan(spans: tuple[GroupSpan, ...], device: torch.device | str) -> PaddedPlan:
    """Padded layout of a flat batch's spans on ``device``; kept between passes."""
    return _padded_plan(spans, str(device))


@lru_cache(maxsize=32)
def _padded_plan(spans: tuple[GroupSpan, ...], device: str) -> PaddedPlan:
    rows: list[np.ndarray] = []
    for span in spans:
        prompt = np.arange(*span.prompt)
        rows += [np.concatenate([prompt, np.arange(*own)]) for own in span.completions] or [prompt]
    longest = max(map(len, rows))
    index = np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])
    mask = np.arange(longest)[None, :] < np.array([len(row) for row in rows])[:, None]
    # The first row that holds a token is its place: prompts repeat, and all copies are equal.
    _, flat = np.unique(np.where(mask, index, -1).ravel(), return_index=True)
    flat = flat[1:] if not mask.all() else flat
    tensors = (torch.from_numpy(x).to(device) for x in (index, mask.astype(np.int64), flat))
    return PaddedPlan(*tensors)


def hidden_states(
    model: PreTrainedModel,
    batch: FlatBatch,
    layout: Layout,
    noise: EmbeddingNoise | None = None,
    keep: KeptPrompts | None = None,
) -> Tensor:
    """Last hidden states ``(T, H)`` of the flat batch (after the final norm, before the head).

    ``noise`` disturbs the embeddings, in both layouts alike. A *grouped* pass without it leaves its
    prompts in ``keep``.
    """
    if noise is not None:
        by_row = layout == "padded" and sight_of(model) is None  # what sees embeds flat tokens
        plan = padded_plan(batch.spans, batch.input_ids.device) if by_row else None

        def draw(width: int, device: torch.device) -> Tensor:
            flat = noise.draw(batch.spans, width, device)
            return flat if plan is None else flat[plan.row_index]

        with disturbed(model, draw):
            return hidden_states(model, batch, layout)
    backbone: Any = decoder_of(model)
    if layout in ("grouped", "flex"):
        inputs = flat_inputs(
            model, batch.input_ids, batch.position_ids, batch.spans, batch.images,
            flex=layout == "flex",
        )  # fmt: skip
        if keep is not None and layout == "grouped":
            inputs |= keep.arguments(model, batch)
        hidden: Tensor = backbone(**inputs, use_cache=False)[0][0]
        hidden = hidden[-batch.tokens :]  # behind virtual tokens, if there are any
        if keep is not None:
            keep.take(hidden)
        return hidden
    plan = padded_plan(batch.spans, batch.input_ids.device)
    if sight_of(model) is None:
        inputs = padded_inputs(model, batch.input_ids[plan.row_index], plan.mask)
    else:  # every image is seen once, and its features stand in every row of its prompt
        states = embedded(model, batch.input_ids, batch.images)
        inputs = {"inputs_embeds": states[plan.row_index], "attention_mask": plan.mask}
    hidden = backbone(**inputs, use_cache=False)[0]
    rows = hidden[:, -plan.mask.shape[1] :]
    return rows.flatten(0, 1).index_select(0, plan.flat_index)
