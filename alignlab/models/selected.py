"""Views as twins of one frozen base: each owns its trained parameters and shares all others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.models.auto import encodes, read_model
from alignlab.models.copies import ModelPerView
from alignlab.models.selective import MODE, Selective
from alignlab.models.sharding import elements, sharing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

    from alignlab.models.bodies import Base

FILE = "selected.safetensors"


class SelectedBodies(ModelPerView):
    """One base model, and for each view modules of its own that hold mostly the base's tensors.

    Every view is a model, whose parameters are the base's own objects
    but for those that it trains, or that its run has trained.
    """

    mode = MODE
    shares_base = True

    def __init__(self, base: Base, technique: Selective) -> None:
        self._base = base.frozen()
        # Where the base is rounded or cut, what is trained begins with the weights of the file.
        as_it_is = base.dtype == torch.float32 and not base.place
        whole = self._base if as_it_is else read_model(base.folder, dtype="auto")
        named = dict(whole.named_parameters())
        chosen = technique.chosen(named)
        self._start = {name: named[name].detach() for name in chosen}
        if technique.head and not encodes(whole.config):
            self._start[head_name(whole)] = whole.get_output_embeddings().weight.detach()
        if whole is not self._base:
            self._start = {name: t.float().clone() for name, t in self._start.items()}
        self._name, self._device, self._scored = base.name, base.device, base.scored
        self._models: dict[str, PreTrainedModel] = {}
        self._own: dict[str, dict[str, nn.Parameter]] = {}
        self._trained: dict[str, frozenset[str]] = {}

    def add(self, name: str, source: Path | None, *, trainable: bool) -> None:
        """Make a twin with the tensors in ``source``, and copies of what it will train."""
        saved = read_selected(source, self._base, self._name) if source else {}
        formats = {key: p.dtype for key, p in self._base.named_parameters()}
        trained = frozenset(self._trains(name)) if trainable else frozenset()
        own = {}
        for key in dict.fromkeys([*saved, *self._start]):
            if key not in saved and key not in trained:
                continue
            value = saved[key] if key in saved else self._start[key]
            dtype = torch.float32 if key in trained else formats.get(key, torch.float32)
            copied = value.to(self._device, dtype, copy=True)
            own[key] = nn.Parameter(copied, requires_grad=key in trained)
        self._models[name] = twin = sharing(self._base)
        put(twin, own)
        self._own[name], self._trained[name] = own, trained

    def _trains(self, name: str) -> list[str]:
        """What the view trains: no language-model head beside a scalar one."""
        if encodes(self._base.config):
            return list(self._start)
        unused = head_name(self._base) if name in self._scored else ""
        return [key for key in self._start if key != unused]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Trained parameters of ``name``; none for a frozen view."""
        return {key: p for key, p in self._own[name].items() if key in self._trained[name]}

    def save(self, name: str, folder: Path) -> None:
        """Write the view's own tensors."""
        from safetensors.torch import save_file

        own = {key: p.detach().float().contiguous().cpu() for key, p in self._own[name].items()}
        save_file(own, folder / FILE, metadata={"format": "pt"})

    def drop(self, name: str) -> None:
        """Free the twin of ``name`` and what it owns."""
        del self._models[name], self._own[name], self._trained[name]


def head_name(model: PreTrainedModel) -> str:
    """Name of the weight of the language-model head.

    Raises:
        ConfigError: the model has none.
    """
    head = model.get_output_embeddings()
    for path, module in model.named_modules():
        if module is head:
            return f"{path}.weight"
    raise ConfigError(f"{type(model).__name__} has no language-model head to train.")


def put(model: PreTrainedModel, own: Mapping[str, nn.Parameter]) -> None:
    """Replace parameters of ``model`` by name, wherever they are used.

    A head that is the embedding becomes a parameter of its own if it is named, and the model's
    configuration says so.
    """
    named = dict(model.named_parameters())
    replaced = {id(named[key]): p for key, p in own.items() if key in named}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in replaced:
                module._parameters[leaf] = replaced[id(parameter)]
    for key in own.keys() - named.keys():
        path, _, leaf = key.rpartition(".")
        model.get_submodule(path)._parameters[leaf] = own[key]
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False


def read_selected(source: Path, model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    """Tensors of a run that trained selectively, checked against ``model``.

    Raises:
        ConfigError: there are none, or they are of another model.
    """
    from safetensors.torch import load_file

    if not (source / FILE).is_file():
        raise ConfigError(f"{source}: no selected parameters there ({FILE} is missing).")
    saved = load_file(source / FILE)
    named = dict(model.named_parameters())
    if not encodes(model.config) and (head := head_name(model)) not in named:
        named[head] = model.get_output_embeddings().weight
    for key, tensor in saved.items():
        if key not in named or elements(named[key]) != tensor.numel():
            raise ConfigError(f"{source}: these parameters do not fit {name} ({key}).")
    return saved


def merge_selected(model: PreTrainedModel, source: Path) -> PreTrainedModel:
    """Put the tensors of ``source`` into a model that is a plain copy of its base; returns it."""
    saved = read_selected(source, model, str(model.name_or_path))
    put(model, {key: nn.Parameter(t.to(model.device), False) for key, t in saved.items()})
    return model
