"""Vision-language models by their architectures: which ones train here, and which parts see.

Imports nothing heavy: plans read a model's ``config.json`` with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignlab.errors import ConfigError
from alignlab.files import read_json

if TYPE_CHECKING:
    from alignlab.models.load import BackboneConfig

Trained = Literal["connector", "all"]


@dataclass(frozen=True)
class Family:
    """Names of the parts of a model that see; the rest is its language model."""

    tower: str  # from pixels to features
    connector: tuple[str, ...]  # from features to the states of the language model


_LLAVA = Family("vision_tower", ("multi_modal_projector",))
_NEXT = Family("vision_tower", ("multi_modal_projector", "image_newline"))
_IDEFICS = Family("vision_model", ("connector",))
# Kept true by tests/vision, which compares each with transformers' own forward pass.
FAMILIES: dict[str, Family] = {
    "llava": _LLAVA, "llava_next": _NEXT, "idefics3": _IDEFICS, "smolvlm": _IDEFICS,
}  # fmt: skip

_MROPE = "its positions have three axes (M-RoPE), and those of the flat batch have one"
_BOTH_WAYS = "its image tokens see one another in both directions"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "glm4v", "ernie4_5_vl"),
        _MROPE,
    ),
    **dict.fromkeys(("gemma3", "paligemma"), _BOTH_WAYS),
    "mllama": "its images are read by layers of cross-attention, and are no tokens",
    "gemma3n": "its tokens have inputs of their own in every layer",
}
PARTS = frozenset(name for one in FAMILIES.values() for name in (one.tower, *one.connector))


def sees(config: Mapping[str, Any]) -> bool:
    """Whether a model's ``config.json`` is that of a vision-language model."""
    return bool(config.get("vision_config")) and "text_config" in config


def family_of(model_type: str) -> Family:
    """Parts of a vision-language model of this type.

    Raises:
        ConfigError: it is one that cannot be trained here; says why.
    """
    if model_type not in FAMILIES:
        why = REFUSED.get(model_type, "nobody has compared it with transformers' own pass yet")
        raise ConfigError(
            f"backbone: {model_type} is a vision-language model that cannot be trained here: {why}."
            f" Use one of {', '.join(FAMILIES)}."
        )
    return FAMILIES[model_type]


def is_visual(parameter: str) -> bool:
    """Whether a parameter or module of this name belongs to what sees."""
    return not PARTS.isdisjoint(parameter.split("."))


def sees_at(path: str) -> bool | None:
    """Whether the backbone behind ``path`` sees, by a local folder's config; None: not known yet.

    Raises:
        ConfigError: it does, and cannot be trained here.
    """
    file = Path(path).expanduser() / "config.json"
    if path.partition(":")[0] in ("random", "wheel", "package"):
        return False
    if not file.is_file():
        return None
    return _sees(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _sees(file: Path, modified: int) -> bool:
    config = read_json(file) or {}
    if not sees(config):
        return False
    family_of(str(config.get("model_type")))
    return True


def require_backbone(config: BackboneConfig, *, images: bool) -> None:
    """Refuse a backbone that cannot do what is asked of it, as far as it is known before loading.

    Raises:
        ConfigError: images for a model of texts, a technique or a part that there is not.
    """
    seeing = sees_at(config.path)
    if seeing is False and images:
        raise ConfigError(
            f"backbone.path={config.path} reads texts, and data.images says that rows show images. "
            f"Use a vision-language model ({', '.join(FAMILIES)}), or data.images=null."
        )
    if seeing is False and config.vision is not None:
        raise ConfigError(
            f"backbone.vision={config.vision}: {config.path} has nothing that sees. Set it to null."
        )
    if seeing:
        require_technique(config)


def require_technique(config: BackboneConfig) -> None:
    """Refuse techniques of which nobody knows what they do beside a vision tower."""
    known = ("full", "lora", "dora", "rslora", "lora_plus")
    if config.adapter.mode not in known:
        raise ConfigError(
            f"adapter={config.adapter.mode} is not for vision-language models yet; use one of "
            f"{', '.join(known)}."
        )
