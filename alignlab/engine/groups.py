"""Parameter groups of an optimizer: who learns how fast, what is decayed, and what still waits.

A group's full learning rate is the optimizer's, times the factor of its view, times the factors of
all patterns that its parameters' names match, times that of its depth (`Layerwise`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

from alignlab.errors import ConfigError, did_you_mean
from alignlab.typed import Range

if TYPE_CHECKING:
    import torch

    Parameters = Mapping[str, Mapping[str, torch.nn.Parameter]]  # view -> name -> parameter

HEADS = ("head.", "lm_head.", "embed_out.", "score.")  # how names of parameters on top begin
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_BOTTOM = re.compile(r"emb|\bwte\b|\bwpe\b|prompt")


@dataclass(frozen=True, kw_only=True)
class Layerwise:
    """Learning rates by depth, and layers that thaw one after another (Howard & Ruder 2018).

    ULMFiT (https://arxiv.org/abs/1801.06146): the rate of a layer is that of the layer above it
    divided by 2.6; training begins with the last layer, and one more layer from the top joins at
    each interval, which is an epoch there.
    """

    # rate of a layer group as a share of the one above it: 1/divide
    divide: Annotated[float, Range(min=1)] = 2.6
    # steps until the next layer group joins (< 1: share of all steps); None: all from the start
    thaw: Annotated[float, Range(min=0, min_open=True)] | None = None

    def __post_init__(self) -> None:
        """Refuse an interval of a number of steps that is not whole."""
        if self.thaw is not None and self.thaw > 1 and not float(self.thaw).is_integer():
            raise ConfigError(
                f"layerwise.thaw is {self.thaw}; it must be a share of the steps below 1, or a "
                "whole number of steps."
            )

    def thawed(self, step: int, steps: int) -> int:
        """Layer groups from the top that train in ``step`` (1-based) of ``steps``."""
        if self.thaw is None:
            return 1 << 30
        interval = math.ceil(self.thaw * steps) if self.thaw < 1 else int(self.thaw)
        return 1 + (step - 1) // interval

    def check(self, depths: int, steps: int) -> None:
        """Refuse an interval so long that a layer group would never train.

        Raises:
            ConfigError: the last of ``depths`` layer groups would not have thawed at the last step.
        """
        if self.thawed(steps, steps) < depths and self.thaw is not None:
            most = (steps - 1) // (depths - 1)
            advice = f"Set it to at most {most}" if most else f"Train for at least {depths} steps"
            raise ConfigError(
                f"optimizer.layerwise.thaw={self.thaw:g}: of {depths} layer groups the lower "
                f"{depths - self.thawed(steps, steps)} would not thaw within the {steps} steps. "
                f"{advice}, or train the upper layers alone with adapter=last_layers."
            )


def depth_of(name: str, layers: int) -> int:
    """Layer group of a parameter by its name: 0 is the top, ``layers + 1`` the embeddings.

    A head on top is group 0; the last of ``layers`` layers is group 1, with all that has no number
    (the last norm); then come the layers below it. The number is the first in the name.
    """
    if name.startswith(HEADS):
        return 0
    found = _LAYER.search(name)
    if found:
        return layers - int(found[1])
    return layers + 1 if _BOTTOM.search(name) else 1


def kind_of(name: str, dimensions: int) -> str:
    """What a parameter is: ``hidden`` (a matrix in a layer), ``embedding``, or ``rest``."""
    if name.startswith(HEADS):
        return "rest"
    if _LAYER.search(name):
        return "hidden" if dimensions == 2 else "rest"
    return "embedding" if _BOTTOM.search(name) else "rest"


def depths(parameters: Parameters) -> dict[str, dict[str, int]]:
    """Layer groups of all parameters, by view and name, numbered from 0 without gaps."""
    found = {}
    for view, named in parameters.items():
        numbers = [int(m[1]) for m in map(_LAYER.search, named) if m]
        layers = max(numbers, default=-1) + 1
        by_name = {name: depth_of(name, layers) for name in named}
        order = {depth: i for i, depth in enumerate(sorted(set(by_name.values())))}
        found[view] = {name: order[depth] for name, depth in by_name.items()}
    return found


def factors_of(
    parameters: Parameters, rates: Mapping[str, float], field: str = "optimizer.rates"
) -> dict[str, dict[str, float]]:
    """Factor on the learning rate of every parameter, by view and name.

    A key of ``rates`` is the name of a view, or a pattern (``*``, ``?``, ``[…]`` as in file names)
    on ``NAME`` or ``VIEW/NAME`` of parameters. Factors that fit the same parameter multiply.

    Raises:
        ConfigError: a key is neither a trained view nor a pattern that matches a parameter.
    """
    found = {view: dict.fromkeys(named, 1.0) for view, named in parameters.items()}
    for key, factor in rates.items():
        hits = list(_named_by(key, parameters))
        if not hits and re.search(r"[*?\[]", key):
            some = next((name for named in parameters.values() for name in named), "none")
            raise ConfigError(
                f"{field} has the pattern '{key}', which matches no trained parameter; "
                f"they are called like '{some}'."
            )
        if not hits and key not in parameters:
            raise ConfigError(
                f"{field} names '{key}', but the trained views are "
                f"{', '.join(parameters)}.{did_you_mean(key, parameters)} "
                "(Patterns on names of parameters have a '*'.)"
            )
        for view, name in hits:
            found[view][name] *= factor
    return found


def _named_by(key: str, parameters: Parameters) -> Iterator[tuple[str, str]]:
    for view, named in parameters.items():
        for name in named:
            if view == key or fnmatchcase(name, key) or fnmatchcase(f"{view}/{name}", key):
                yield view, name


def grouped(
    parameters: Parameters,
    *,
    learning_rate: float,
    weight_decay: float,
    rates: Mapping[str, float],
    technique: Mapping[str, float],
    layerwise: Layerwise | None,
    by_kind: bool,
) -> list[dict[str, Any]]:
    """Parameter groups: alike in view, learning rate, decay and depth; matrices first.

    Of each group, ``peak`` is the full learning rate, ``depth`` its layer group and, ``by_kind``,
    ``kind`` what its parameters are (`kind_of`). Parameters with fewer than two dimensions are not
    decayed. A parameter shared by two views belongs to the first of them. ``technique`` are factors
    as ``rates``, of the way in which the backbone is trained.

    Raises:
        ConfigError: a key of ``rates`` fits nothing, or nothing is trainable.
    """
    from alignlab.models.sharding import dimensions

    stated = factors_of(parameters, rates)
    own = factors_of(parameters, technique, "the adapter's rates")
    depth = depths(parameters)
    seen: set[int] = set()
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for view, named in parameters.items():
        fresh = {name: p for name, p in named.items() if id(p) not in seen}
        seen.update(map(id, fresh.values()))
        # Matrices first, and then in the order in which the model has them.
        for name, parameter in sorted(fresh.items(), key=lambda item: dimensions(item[1]) < 2):
            factor = stated[view][name] * own[view][name]
            level = depth[view][name] if layerwise else 0
            if layerwise:
                factor /= layerwise.divide**level
            peak = learning_rate * factor
            decay = weight_decay if dimensions(parameter) >= 2 else 0.0
            kind = kind_of(name, dimensions(parameter)) if by_kind else "any"
            key = (view, peak, dimensions(parameter) >= 2, level, kind)
            group = groups.setdefault(
                key,
                {"params": [], "weight_decay": decay, "lr": peak, "peak": peak,
                 "depth": level, "kind": kind},
            )  # fmt: skip
            group["params"].append(parameter)
    if not groups:
        raise ConfigError("Nothing to train: no view has a trainable parameter.")
    return list(groups.values())
