"""How a vision-language model computes: features of images in the place of their tokens.

The layout of a flat batch is the language model's alone. The vision tower keeps its own attention,
sees every image of a micro-batch once, however many completions its prompt has, and its features
become the states of the image tokens before the first layer. Pixels are read from the images'
references when a batch is computed, so none are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignlab.errors import ConfigError, TrainingError
from alignlab.images import Reference, opened
from alignlab.models.sighted import Family, Trained, family_of, is_visual, require_technique

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedConfig, PreTrainedModel

    from alignlab.models.load import BackboneConfig

_ATTRIBUTE = "alignlab_sight"


@dataclass(frozen=True)
class Sight:
    """What a vision-language model needs beside its weights, and what of it is trained."""

    processor: Any  # of transformers
    family: Family
    trained: Trained | None
    # names of weights that are trained -> which of them no image reaches
    known: dict[frozenset[str], frozenset[str]] = field(default_factory=dict, compare=False)

    def pixels(self, images: Sequence[Image], device: torch.device) -> dict[str, Tensor]:
        """Tensors that the processor makes of images, without the tokens beside them."""
        text = self.processor.image_token * len(images)
        made = self.processor(images=list(images), text=[text], return_tensors="pt")
        return {name: value.to(device) for name, value in made.items() if torch.is_tensor(value)}

    def frozen(self, name: str) -> bool:
        """Whether the parameter or module of this name is never trained."""
        parts = name.split(".")
        if self.trained == "all":
            return False
        return self.family.tower in parts or (
            self.trained is None and not set(self.family.connector).isdisjoint(parts)
        )


def sight_for(
    config: BackboneConfig, model: PreTrainedConfig, folder: Path, place: Any | None = None
) -> Sight | None:
    """How the model of ``folder`` sees; None for a model of texts.

    Raises:
        ConfigError: an architecture or a technique that cannot be trained, or weights in shares
            (``place``).
    """
    if getattr(model, "vision_config", None) is None:
        if config.vision is not None:
            raise ConfigError(
                f"backbone.vision={config.vision}: {config.path} has nothing that sees. Set it to "
                "null."
            )
        return None
    family = family_of(model.model_type)
    require_technique(config)
    if place is not None:
        raise ConfigError(
            "engine.zero=3 does not train vision-language models: a micro-batch of texts would not "
            "gather the tower that others wait for. Use engine=zero2."
        )
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder)
    except ImportError as error:  # of torchvision, for processors that also take videos
        raise ConfigError(
            f"backbone.path={config.path}: its processor needs a package that is not installed: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    if getattr(processor, "image_token", None) is None:
        raise ConfigError(
            f"backbone.path={config.path}: a vision-language model without the files of its "
            "processor (processor_config.json, preprocessor_config.json). Add them."
        )
    return Sight(processor, family, config.vision)


def attach(model: PreTrainedModel, sight: Sight | None) -> PreTrainedModel:
    """Let ``model`` see; what is not to be trained of what sees is frozen."""
    if sight is not None:
        setattr(model, _ATTRIBUTE, sight)
        freeze(model)
    return model


def sight_of(model: Any) -> Sight | None:
    """How a model sees, if it does."""
    found: Sight | None = getattr(model, _ATTRIBUTE, None)
    return found


def freeze(model: Any) -> None:
    """Take what is never trained of what sees out of training; nothing of a model of texts."""
    sight = sight_of(model)
    if sight is not None:
        for name, parameter in model.named_parameters():
            if sight.frozen(name):
                parameter.requires_grad_(False)


def outside_of_adapters(model: Any) -> str | None:
    """Pattern of the whole names of modules that adapters leave alone, as peft takes it."""
    sight = sight_of(model)
    if sight is None or sight.trained == "all":
        return None
    parts = [sight.family.tower, *(() if sight.trained else sight.family.connector)]
    return rf"(.*\.)?({'|'.join(parts)})(\..*)?"


def decoder_of(model: Any) -> Any:
    """The part of a model that makes hidden states of tokens."""
    return model.base_model if sight_of(model) is None else model.get_decoder()


def embedded(model: Any, ids: Tensor, images: Sequence[Reference]) -> Tensor:
    """Inputs ``(T, H)`` of the language model: embeddings, and features in place of image tokens.

    Raises:
        TrainingError: the tower makes another number of features than there are tokens for them.
    """
    states: Tensor = model.get_input_embeddings()(ids)
    places = ids == model.config.image_token_id
    if not images:  # what is trained of what sees gets a gradient of 0, on every process
        return states + 0.0 * sum(p.sum() for p in _reached(model)) if _learns(model) else states
    shown = [opened(image) for image in images]
    features = torch.cat(list(_features(model, shown))).to(states.dtype)
    tokens = int(places.sum())
    if tokens != len(features):
        raise TrainingError(
            f"{len(images)} images have {len(features)} features and {tokens} image tokens: "
            "processor and model do not belong together."
        )
    return states.masked_scatter(places[:, None], features)


def _learns(model: Any) -> bool:
    sight = sight_of(model)
    return sight is not None and sight.trained is not None and torch.is_grad_enabled()


def unreached(model: Any) -> list[torch.nn.Parameter]:
    """Trained weights of what sees that no image's features depend on.

    Llava, for one, reads the states below the tower's last layer. Nothing may give such weights a
    gradient, or processes with and without images would not have gradients of the same weights.
    """
    sight = sight_of(model)
    own = {n: p for n, p in model.named_parameters() if p.requires_grad and is_visual(n)}
    if sight is None or not own:
        return []
    names = frozenset(own)
    if names not in sight.known:
        from PIL import Image

        with torch.enable_grad():
            features = torch.cat(list(_features(model, [Image.new("RGB", (64, 64))])))
            found = torch.autograd.grad(features.sum(), list(own.values()), allow_unused=True)
        pairs = zip(own, found, strict=True)
        sight.known[names] = frozenset(name for name, gradient in pairs if gradient is None)
    return [own[name] for name in sorted(sight.known[names])]


def _reached(model: Any) -> Iterator[Tensor]:
    left = {id(parameter) for parameter in unreached(model)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and is_visual(name) and id(parameter) not in left:
            yield parameter


def _features(model: Any, images: Sequence[Image]) -> Iterator[Tensor]:
    """Features ``(tokens, H)`` of every image (or of several together), in order."""
    sight = sight_of(model)
    assert sight is not None
    pixels = sight.pixels(images, model.device)
    see = model.base_model.get_image_features
    known = inspect.signature(see).parameters
    found = see(**{name: value for name, value in pixels.items() if name in known})
    for part in found.pooler_output:
        yield part.reshape(-1, part.shape[-1])
