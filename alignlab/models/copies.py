"""Views as whole models: policy, reference, reward and value are separate copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from torch import nn

from alignlab.errors import ConfigError
from alignlab.models.bodies import Read, made_as
from alignlab.models.load import technique_of
from alignlab.models.sharding import elements, sharing
from alignlab.models.vision import freeze

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignlab.models.techniques import Technique


class ModelPerView:
    """What bodies have in common that keep a model for each view: there is nothing to switch."""

    _models: dict[str, PreTrainedModel]

    def activate(self, name: str) -> PreTrainedModel:
        """Return the model of ``name``."""
        return self._models[name]

    def count(self, name: str) -> int:
        """Parameters of the view's model."""
        return sum(map(elements, self.all_parameters(name)))

    def all_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that `count` counts."""
        return list(self._models[name].parameters())

    def modules(self) -> dict[str, nn.Module]:
        """The model of every view."""
        return {f"{name}_model": model for name, model in self._models.items()}

    def sharing(self) -> Self:
        """The same parameters in modules of their own."""
        twin = copy.copy(self)
        twin._models = {name: sharing(model) for name, model in self._models.items()}
        return twin


class CopyBodies(ModelPerView):
    """One model per view; ``load(folder, trainable)`` reads one, ``place`` moves it."""

    mode = "full"
    shares_base = False

    def __init__(
        self,
        base: Path,
        load: Read,
        store: Callable[[PreTrainedModel], None],
        place: Callable[[nn.Module], None] | None,
    ) -> None:
        self._base = base
        self._load = load
        self._store = store
        self._place = place
        self._models: dict[str, PreTrainedModel] = {}
        self._trainable: dict[str, bool] = {}

    def add(self, name: str, source: Path | None, *, trainable: bool) -> None:
        """Load the model of ``source`` (an adapter there is merged into its base) or the base."""
        folder = source or self._base
        mode = made_as(folder)["mode"]
        if mode != "full":
            technique = technique_of(mode, folder)
            if technique.unmergeable:
                raise ConfigError(
                    f"{folder} was trained with adapter={mode}, which adapter=full cannot start "
                    f"from: {technique.unmergeable}. Set adapter={mode} in this stage too."
                )
            self._models[name] = self._merged(folder, technique, trainable)
        else:
            self._models[name] = self._load(folder, trainable)
        if self._place is not None:
            self._place(self._models[name])
        freeze(self._models[name])
        self._trainable[name] = trainable

    def _merged(self, folder: Path, technique: type[Technique], trainable: bool) -> PreTrainedModel:
        base = self._load(self._base, True)  # in fp32: the sum should not be rounded
        model: PreTrainedModel = technique.merged(technique.applied(base, folder))
        model.requires_grad_(trainable)
        if not trainable:
            self._store(model)
        return model

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Trained parameters of ``name`` (tied ones once); none for a frozen view."""
        named = self._models[name].named_parameters()
        return {n: p for n, p in named if p.requires_grad} if self._trainable[name] else {}

    def save(self, name: str, folder: Path) -> None:
        """Write an ordinary Hugging Face model folder."""
        self._models[name].save_pretrained(folder)

    def drop(self, name: str) -> None:
        """Free the model of ``name``."""
        del self._models[name], self._trainable[name]
