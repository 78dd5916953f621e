"""Encoders (BERT, RoBERTa, DeBERTa, ModernBERT): which models are some, and where they fit.

An encoder reads a text in both directions and predicts no next token: it can score texts, and can
be no policy. Told from the model's ``config.json``, before anything is loaded; imports no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignlab.errors import ConfigError
from alignlab.files import read_json

if TYPE_CHECKING:
    from alignlab.models.load import BackboneConfig
    from alignlab.models.memory import Shapes

Pooling = Literal["first", "mean"]  # the state of the first token ([CLS]), or the mean of all

# Model types that tests/models/test_encoders.py has seen working, by how their rows are laid out.
PACKED = frozenset(
    ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "modernbert"]
)
PADDED = {
    "deberta-v2": "its attention adds terms of relative position",
    "deberta": "its attention adds terms of relative position",
    "mpnet": "its attention adds terms of relative position",
}
ENCODERS = PACKED | PADDED.keys()
EXACT = frozenset(["deberta"])  # that compute in float32 alone
TECHNIQUES = ("full", "lora", "dora", "rslora", "lora_plus", "selective")

# Tensors of a checkpoint that is more than the encoder: poolers, heads of earlier trainings.
_HEADS = (
    "cls.", "lm_head.", "classifier.", "pooler.", "pre_classifier.", "qa_outputs.", "decoder.",
    "vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "mask_predictions.",
    "lm_predictions.", "discriminator_predictions.", "generator_predictions.", "generator_lm_head.",
    "head.",
)  # fmt: skip
_PREFIXES = ("bert.", "roberta.", "deberta.", "electra.", "distilbert.", "mpnet.", "model.")


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of an encoder that is known here."""
    return config.get("model_type") in ENCODERS and not config.get("is_decoder")


def encoder_type(config: BackboneConfig, cache: Path) -> str | None:
    """Model type of a backbone that is an encoder, else None.

    Raises:
        ConfigError: it is an encoder and a decoder in one (T5), which nothing here trains.
    """
    stated = stated_config(config, cache)
    if stated.get("is_encoder_decoder"):
        raise ConfigError(
            f"backbone.path={config.path}: a {stated.get('model_type')} is an encoder with a "
            "decoder behind it, and no stage trains such a model. Use a decoder (Llama, Qwen, "
            "GPT-2 …) as a policy, or an encoder (BERT, DeBERTa …) as a reward model."
        )
    return str(stated["model_type"]) if is_encoder(stated) else None


def stated_config(config: BackboneConfig, cache: Path) -> Mapping[str, Any]:
    """The ``config.json`` of a backbone; empty where the model comes with alignlab or is known."""
    from alignlab.models.load import resolve
    from alignlab.models.published import PUBLISHED

    if config.path.partition(":")[0] in ("random", "wheel", "package"):
        return {}
    if Path(config.path).expanduser().is_dir():
        return read_json(resolve(config.path, cache) / "config.json") or {}
    if config.path in PUBLISHED:
        return {}
    return _of_hub(config.path, config.revision)


@functools.lru_cache(maxsize=64)
def _of_hub(path: str, revision: str | None) -> Mapping[str, Any]:
    """The ``config.json`` of a hub model: the one that is here already, else the hub's."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    failed: Exception | None = None
    for here in (True, False):
        try:
            file = hf_hub_download(path, "config.json", revision=revision, local_files_only=here)
            return read_json(Path(file)) or {}
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            failed = error
    raise ConfigError(
        f"backbone.path={path}: cannot be read from the Hugging Face hub ({failed})."
    ) from failed


def rows_for(wanted: str, model_type: str) -> tuple[Literal["packed", "padded"], str]:
    """How an encoder's rows are laid out, and the reason in a few words.

    Raises:
        ConfigError: prompts are to be shared, which both directions of attention forbid.
    """
    if wanted in ("grouped", "flex"):
        raise ConfigError(
            f"backbone.layout={wanted} shares a prompt among its completions, and in a "
            f"{model_type} every token sees the whole row: the prompt would see all of them. Use "
            "layout=auto (a row of its own for every prompt and completion)."
        )
    if wanted == "padded":
        return "padded", "as configured"
    if model_type in PACKED:
        return "packed", f"{model_type}: a row for each completion, without padding"
    return "padded", f"{model_type}: {PADDED[model_type]}"


def require_policy(config: BackboneConfig, cache: Path, kind: str) -> None:
    """Refuse an encoder where a stage of ``kind`` samples, or reads next-token probabilities.

    Raises:
        ConfigError: says what an encoder is good for.
    """
    found = encoder_type(config, cache)
    if found is None:
        return
    raise ConfigError(
        f"backbone.path={config.path}: a {found} is an encoder. It reads in both directions and "
        f"predicts no next token, so a {kind} stage can neither train nor sample from it. It can "
        "be a reward model: keep a decoder as backbone, and give the reward stage its own with "
        f"+backbone@stages.reward.backbone=hub stages.reward.backbone.path={config.path} "
        "'~stages.reward.inputs.init'."
    )


def require_scorer(config: BackboneConfig, cache: Path, pooling: Pooling | None) -> str | None:
    """Refuse what does not go together with an encoder; its type, or None for a decoder.

    Raises:
        ConfigError: a technique or layout for decoders, or a pooling that only encoders have.
    """
    found = encoder_type(config, cache)
    if found is None:
        if pooling is not None:
            raise ConfigError(
                f"pooling={pooling}: a decoder's score is read at its last token, which alone has "
                "seen the whole text. Set pooling=null, or use an encoder."
            )
        return None
    rows_for(config.layout, found)
    if found in EXACT and config.dtype != "float32":
        raise ConfigError(
            f"backbone.dtype={config.dtype}: a {found} masks its attention with float32's lowest "
            "number (transformers 5.23), which bfloat16 does not hold. Set dtype=float32."
        )
    mode = config.adapter.mode
    if mode not in TECHNIQUES:
        raise ConfigError(
            f"adapter={mode} is made for decoders; with an encoder ({found}) use one of "
            f"{', '.join(TECHNIQUES)} (last_layers, head_only, bitfit and layernorm are selective)."
        )
    return found


def positions_of(config: Mapping[str, Any]) -> int:
    """Most tokens of a row: the position table, less what RoBERTa's kind leaves out at its start.

    Positions of RoBERTa, CamemBERT, XLM-R and MPNet begin behind the padding token's id.
    """
    most = int(config.get("max_position_embeddings") or 512)
    offset = config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet")
    return most - int(config.get("pad_token_id") or 0) - 1 if offset else most


def encoder_shapes(shapes: Shapes) -> Shapes:
    """Tensors of a checkpoint that the encoder itself computes with: no pooler, no head."""
    found: Shapes = {}
    for name, shape in shapes.items():
        bare = next((name.removeprefix(p) for p in _PREFIXES if name.startswith(p)), name)
        if not bare.startswith(_HEADS) and not bare.endswith("position_ids"):
            found[bare] = shape
    return found
