"""Read what an objective needs from its signature, so that no table of methods exists anywhere.

What it is called in tables and reports the objective says itself, by the decorator `called`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from alignlab.annotations import hints
from alignlab.errors import ConfigError
from alignlab.tensors import GroupLogps, PairLogps, SingleLogps

View = Literal["pair", "single", "group"]
F = TypeVar("F", bound=Callable[..., Any])

_VIEWS: Mapping[Any, View] = {PairLogps: "pair", SingleLogps: "single", GroupLogps: "group"}
_NAME = "display_name"


@dataclass(frozen=True)
class Declaration:
    """What a preference stage has to supply to an objective."""

    view: View
    """``pair``: ordered pairs, `PairLogps`; ``single``: completions with a thumb, `SingleLogps`;
    ``group``: all completions of a prompt at once, `GroupLogps`."""
    needs_reference: bool
    """The objective has a ``reference`` parameter: a pass of the frozen reference, same type."""
    needs_kl_point: bool
    """The objective has a ``kl_point`` parameter: KTO's statistic of the optimizer step."""
    needs_shift: bool = False
    """The objective has a ``log_ratio_shift`` parameter: BCO's statistic of the optimizer step."""

    @property
    def has_statistics(self) -> bool:
        """Whether something must be known of a whole step before its first micro-batch."""
        return self.needs_kl_point or self.needs_shift


def declaration(objective: Callable[..., Any]) -> Declaration:
    """Read the declaration of a preference objective.

    Args:
        objective: a function, or a ``functools.partial`` of one with its hyperparameters bound.

    Raises:
        ConfigError: not a preference objective: the first parameter is neither `PairLogps` nor
            `SingleLogps` nor `GroupLogps`.
    """
    objective = unbound(objective)
    first, *others = [*inspect.signature(objective).parameters, ""]
    annotation = hints(objective).get(first)
    view = next((name for kind, name in _VIEWS.items() if kind is annotation), None)
    if view is None:
        found = getattr(annotation, "__name__", annotation)
        raise ConfigError(
            f"{objective.__module__}.{objective.__qualname__} is not a preference objective: its"
            f" first parameter must be annotated PairLogps, SingleLogps or GroupLogps, not {found}."
        )
    statistics = ("kl_point" in others, "log_ratio_shift" in others)
    return Declaration(view, "reference" in others, *statistics)


def unbound(objective: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind any number of partials."""
    while isinstance(objective, functools.partial):
        objective = objective.func
    return objective


def called(name: str) -> Callable[[F], F]:
    """Decorator: what an objective is called in tables and reports."""

    def named(objective: F) -> F:
        setattr(objective, _NAME, name)
        return objective

    return named


def display_name(objective: Callable[..., Any]) -> str:
    """What the objective is called: what its decorator says, else the function's own name."""
    function = unbound(objective)
    name: str = getattr(function, _NAME, function.__name__)
    return name
