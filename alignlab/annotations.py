"""What an annotation of a configuration field says: its bounds, its words, what can express it.

The vocabulary of :mod:`alignlab.typed`, which converts values by it.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, Union, runtime_checkable

_PLAIN = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
}


@runtime_checkable
class Parsed(Protocol):
    """A type that reads itself from a configuration node and writes itself back."""

    @classmethod
    def from_node(cls, node: Any, path: str) -> Self:
        """Read ``node``; raise ConfigError naming ``path``."""
        ...

    def to_node(self) -> dict[str, Any]:
        """Write what :meth:`from_node` reads."""
        ...


@dataclass(frozen=True)
class Range:
    """Bounds of a number, as in ``Annotated[float, Range(min=0, min_open=True, max=1)]``.

    ``min_open`` and ``max_open`` exclude the bound itself.
    """

    min: float | None = None
    max: float | None = None
    min_open: bool = False
    max_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies inside."""
        low = self.min is None or (value > self.min if self.min_open else value >= self.min)
        high = self.max is None or (value < self.max if self.max_open else value <= self.max)
        return low and high

    def __str__(self) -> str:
        low = f"{'>' if self.min_open else '>='} {self.min}" if self.min is not None else ""
        high = f"{'<' if self.max_open else '<='} {self.max}" if self.max is not None else ""
        return " and ".join(part for part in (low, high) if part)


@dataclass(frozen=True)
class Unresolved:
    """An annotation whose names exist for type checkers only (or inside a function)."""

    text: str


@functools.cache
def hints(owner: type | Callable[..., Any]) -> Mapping[str, Any]:
    """Resolve the annotations of a class or function, as far as its module's names allow."""
    # One by one, because one name that cannot be resolved must not hide the others.
    found: dict[str, Any] = {}
    for part in reversed(owner.__mro__) if isinstance(owner, type) else [owner]:
        names = vars(sys.modules[part.__module__])
        for name, annotation in getattr(part, "__annotations__", {}).items():
            single = type("Single", (), {"__annotations__": {name: annotation}})
            try:
                found |= typing.get_type_hints(single, names, include_extras=True)
            except NameError:
                found[name] = Unresolved(annotation)
    return types.MappingProxyType(found)


@functools.cache
def reads_itself(cls: Hashable) -> bool:
    """Whether values of ``cls`` have the two methods of `Parsed` (asking the protocol is slow)."""
    return isinstance(cls, type) and issubclass(cls, Parsed)


def expressible(annotation: Any) -> bool:
    """Whether a configuration can hold a value of this type (a tensor, say, it cannot)."""
    if typing.get_origin(annotation) is Annotated:
        return expressible(typing.get_args(annotation)[0])
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return True
    if origin is not None:
        inner = [a for a in typing.get_args(annotation) if a is not ...]
        known = origin in (Union, types.UnionType, tuple, list, dict) or _is_abstract(origin)
        return known and all(expressible(a) for a in inner)
    return annotation is Any or annotation in _PLAIN or _is_config_class(annotation)


def _is_abstract(origin: Any) -> bool:
    return isinstance(origin, type) and origin in (Mapping, Sequence)


def _is_config_class(annotation: Any) -> bool:
    """Whether a mapping can hold the class: Parsed, or a dataclass of expressible fields."""
    if not isinstance(annotation, type):
        return False
    if reads_itself(annotation):
        return True
    if not dataclasses.is_dataclass(annotation):
        return False
    resolved = hints(annotation)
    return all(expressible(resolved[f.name]) for f in dataclasses.fields(annotation) if f.init)


def described(annotation: Any) -> str:
    """Say in words that a person can act on what a type takes."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = " ".join(str(extra) for extra in inner[1:] if isinstance(extra, Range))
        return f"{described(inner[0])} {bounds}".rstrip()
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(described(member) for member in inner)
    if origin is tuple and (len(inner) != 2 or inner[1] is not ...):
        return f"a list of {len(inner)}: " + ", ".join(described(member) for member in inner)
    if origin in (tuple, list, Sequence):
        return f"a list, each {described(inner[0])}"
    if origin in (dict, Mapping):
        return f"a mapping, each value {described(inner[1])}"
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    return f"a mapping ({getattr(annotation, '__name__', annotation)})"


def join(path: str, key: Any) -> str:
    """Return the path of ``key`` inside ``path``."""
    return f"{path}.{key}" if path else str(key)


def shown(value: Any) -> str:
    """Show a value and its type, as messages do."""
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"
