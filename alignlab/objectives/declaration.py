"""Read what an objective needs from its signature, so that no table of methods exists anywhere."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alignlab.annotations import hints
from alignlab.errors import ConfigError
from alignlab.tensors import PairLogps, SingleLogps

View = Literal["pair", "single"]

_VIEWS: Mapping[Any, View] = {PairLogps: "pair", SingleLogps: "single"}


@dataclass(frozen=True)
class Declaration:
    """What a preference stage has to supply to an objective."""

    view: View
    """``pair``: ordered pairs, `PairLogps`; ``single``: completions with a thumb, `SingleLogps`."""
    needs_reference: bool
    """The objective has a ``reference`` parameter: a pass of the frozen reference, same type."""
    needs_kl_point: bool
    """The objective has a ``kl_point`` parameter: KTO's statistic of the optimizer step."""


def declaration(objective: Callable[..., Any]) -> Declaration:
    """Read the declaration of a preference objective.

    Args:
        objective: a function, or a ``functools.partial`` of one with its hyperparameters bound.

    Raises:
        ConfigError: not a preference objective: the first parameter is neither `PairLogps` nor
            `SingleLogps`.
    """
    while isinstance(objective, functools.partial):
        objective = objective.func
    first, *others = [*inspect.signature(objective).parameters, ""]
    annotation = hints(objective).get(first)
    view = next((name for kind, name in _VIEWS.items() if kind is annotation), None)
    if view is None:
        found = getattr(annotation, "__name__", annotation)
        raise ConfigError(
            f"{objective.__module__}.{objective.__qualname__} is not a preference objective: its"
            f" first parameter must be annotated PairLogps or SingleLogps, not {found}."
        )
    return Declaration(view, "reference" in others, "kl_point" in others)
