"""Which class of transformers reads a folder: causal or vision-language models, or encoders."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError
from alignlab.models.encoders import ENCODERS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def encodes(config: PreTrainedConfig) -> bool:
    """Whether a model of this configuration is an encoder."""
    return config.model_type in ENCODERS and not getattr(config, "is_decoder", False)


def auto_class(config: PreTrainedConfig) -> tuple[Any, dict[str, Any]]:
    """The auto class that reads a model of ``config``, and its further arguments.

    An encoder is read without a language-model head, and without a pooler on its first token: a
    scalar head reads the state itself.
    """
    from transformers import (
        MODEL_MAPPING,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    if getattr(config, "vision_config", None) is not None:
        return AutoModelForImageTextToText, {}
    if not encodes(config):
        return AutoModelForCausalLM, {}
    model: Any = MODEL_MAPPING[type(config)]
    wanted = inspect.signature(model).parameters
    return AutoModel, {"add_pooling_layer": False} if "add_pooling_layer" in wanted else {}


def read_model(folder: Path, **options: Any) -> PreTrainedModel:
    """Read the model of ``folder``: a causal or vision-language model, or an encoder.

    Raises:
        ConfigError: an encoder's weights are not all there.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    kind, more = auto_class(config)
    if not encodes(config):
        model: PreTrainedModel = kind.from_pretrained(folder, local_files_only=True, **options)
        return model
    with _quiet():  # about heads in the file that an encoder is read without
        model, found = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **options, **more
        )
    if found["missing_keys"]:
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise ConfigError(f"{folder}: its weights are not all there ({some} would be random).")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
