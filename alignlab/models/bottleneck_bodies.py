"""Views as bottleneck networks in the layers of one frozen base, and norms of their own."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.models.bottleneck import PLACES, Bottleneck, is_norm, is_place
from alignlab.models.sharding import elements, sharing
from alignlab.typed import build

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignlab.models.bodies import Base

CONFIG = "bottleneck_config.json"
WEIGHTS = "bottleneck.safetensors"
_FUNCTIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Network(nn.Module):
    """``y + W_up f(W_down y)``, with biases; W_up and its bias start at zero."""

    def __init__(self, hidden: int, technique: Bottleneck) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, technique.width(hidden), dtype=torch.float32)
        self.activation = _FUNCTIONS[technique.activation]()
        self.up = nn.Linear(technique.width(hidden), hidden, dtype=torch.float32)
        self.dropout = nn.Dropout(technique.dropout)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        """States ``(…, H)`` of the same shape and format."""
        return y + self.dropout(self.up(self.activation(self.down(y)))).to(y.dtype)


class Inserted(nn.Module):
    """A layer of the base and, for some views, a module that follows it or takes its place."""

    def __init__(self, layer: nn.Module, *, instead: bool) -> None:
        super().__init__()
        self.base_layer = layer
        self.instead = instead
        self.views = nn.ModuleDict()
        self.active: str | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the active view computes here."""
        if self.active is None or self.active not in self.views:
            return self.base_layer(*args, **kwargs)
        own = self.views[self.active]
        if self.instead:
            return own(*args, **kwargs)
        return own(self.base_layer(*args, **kwargs))


class BottleneckBodies:
    """Named sets of networks in one base model, at most one of them active."""

    mode = "bottleneck"
    shares_base = True
    family: frozenset[str] = frozenset()

    def __init__(self, base: Base, technique: Bottleneck) -> None:
        self._given, self._technique = base, technique
        self._base = base.frozen()
        self._made: dict[str, Bottleneck] = {}
        self._trainable: dict[str, bool] = {}

    def add(self, name: str, source: Path | None, *, trainable: bool) -> None:
        """Add the networks that `save` wrote to ``source``, or fresh ones (the base as it is)."""
        self._made[name] = _read_config(source) if source else self._technique
        _insert(self._base, _key(name), self._made[name])
        for parameter in self._named(name).values():
            parameter.requires_grad_(trainable)
        self._trainable[name] = trainable
        if source:
            _read_weights(self._named(name), source, self._given.name)

    def activate(self, name: str) -> PreTrainedModel:
        """Let the base compute with the networks of ``name``, and return it."""
        for _, module in _inserted(self._base):
            module.active = _key(name)
        return self._base

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Trained parameters of ``name``; none for a frozen view."""
        return self._named(name) if self._trainable[name] else {}

    def count(self, name: str) -> int:
        """Parameters that the view computes with: the base and its own networks."""
        return sum(map(elements, self.all_parameters(name)))

    def all_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that `count` counts; norms of the base count too."""
        others = {id(p) for n in self._made for p in self._named(n).values()}
        base = [p for p in self._base.parameters() if id(p) not in others]
        return [*base, *self._named(name).values()]

    def modules(self) -> dict[str, nn.Module]:
        """The base with all networks."""
        return {"base": self._base}

    def sharing(self) -> Self:
        """The same parameters in modules of their own."""
        twin = copy.copy(self)
        twin._base = sharing(self._base)
        twin._made, twin._trainable = dict(self._made), dict(self._trainable)
        return twin

    def save(self, name: str, folder: Path) -> None:
        """Write the view's parameters, and what networks they are of."""
        from safetensors.torch import save_file

        state = {key: p.detach().contiguous().cpu() for key, p in self._named(name).items()}
        save_file(state, folder / WEIGHTS)
        written = asdict(self._made[name]) | {"base_model": self._given.name}
        text = json.dumps(written, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    def drop(self, name: str) -> None:
        """Free the networks of a view."""
        for _, module in _inserted(self._base):
            if _key(name) in module.views:
                del module.views[_key(name)]
        del self._made[name], self._trainable[name]

    def _named(self, name: str) -> dict[str, nn.Parameter]:
        return _parameters(self._base, _key(name))


def applied(model: Any, folder: Path) -> Any:
    """Put the networks of ``folder`` into a plain model and let it compute with them."""
    _insert(model, "own", _read_config(folder))
    _read_weights(_parameters(model, "own"), folder, "the base model")
    for _, module in _inserted(model):
        module.active = "own"
    return model


def _key(name: str) -> str:
    return f"{name}_view"  # some names are methods of a ModuleDict, such as "values"


def _inserted(model: nn.Module) -> Iterator[tuple[str, Inserted]]:
    return ((path, m) for path, m in model.named_modules() if isinstance(m, Inserted))


def _parameters(model: nn.Module, key: str) -> dict[str, nn.Parameter]:
    """A view's parameters by the path of the layer that they follow, or stand for."""
    return {
        f"{path}.{name}": parameter
        for path, module in _inserted(model)
        if key in module.views
        for name, parameter in module.views[key].named_parameters()
    }


def _insert(model: Any, key: str, technique: Bottleneck) -> None:
    """Put fresh modules of a view at their places.

    Raises:
        ConfigError: an architecture whose places are not known here.
    """
    found = dict(_inserted(model))
    inside = tuple(f"{path}." for path in found)
    plain = {p: m for p, m in model.named_modules() if p and not p.startswith(inside)}
    layers = {p: m.base_layer if isinstance(m, Inserted) else m for p, m in plain.items()}
    config = model.config.get_text_config(decoder=True)
    counts = []
    for part in technique.after:
        places = [path for path in layers if is_place(path, (part,))]
        counts.append(len(places))
        for path in places:
            network = Network(config.hidden_size, technique)
            _put(model, path, layers[path], key, network, instead=False)
    if counts != [config.num_hidden_layers] * len(counts):
        raise ConfigError(
            f"adapter=houlsby and adapter=pfeiffer do not know the layers of "
            f"{type(model).__name__}: of {config.num_hidden_layers} layers, "
            f"{' and '.join(map(str, counts))} have a {' and a '.join(technique.after)} part that "
            f"ends in one of {', '.join(n for part in technique.after for n in PLACES[part])}."
        )
    if technique.norms:
        for path, layer in layers.items():
            if is_norm(path) and next(layer.parameters(recurse=False), None) is not None:
                _put(model, path, layer, key, copy.deepcopy(layer).float(), instead=True)


def _put(
    model: Any, path: str, layer: nn.Module, key: str, own: nn.Module, *, instead: bool
) -> None:
    place = model.get_submodule(path)
    if not isinstance(place, Inserted):
        place = Inserted(layer, instead=instead)
        model.set_submodule(path, place)
    device = next(layer.parameters()).device
    place.views[key] = own.to(device).train(layer.training)


def _read_config(source: Path) -> Bottleneck:
    if not (source / CONFIG).is_file():
        raise ConfigError(f"{source}: no bottleneck adapter there ({CONFIG} is missing).")
    written = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    written.pop("base_model")
    return build(Bottleneck, written, str(source / CONFIG))


def _read_weights(parameters: dict[str, nn.Parameter], source: Path, base: str) -> None:
    from safetensors.torch import load_file

    state = load_file(source / WEIGHTS)
    odd = [
        key
        for key in parameters.keys() | state.keys()
        if key not in state or key not in parameters or state[key].shape != parameters[key].shape
    ]
    if odd:
        raise ConfigError(f"{source}: these networks do not fit {base} ({min(odd)}).")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(state[key])
