"""Mappings to frozen dataclasses: every unknown, missing or mistyped key is named with its path.

``build(PPO, {"kl_coeff": -1}, "stages.policy")`` collects all problems of the mapping and raises
one :class:`~alignlab.errors.ConfigError`. Conversion is strict, because a configuration that is
silently bent is a wrong experiment:

* ``bool`` is never a number, a number is never a ``str``, a float is never an ``int``;
* an ``int`` is accepted for ``float``;
* a string such as ``"1e-4"`` is accepted for ``float``: YAML 1.1 wants a dot in a number with an
  exponent and otherwise reads ``1e-4`` as text. ``"inf"`` is accepted as well, because
  :func:`to_mapping` writes it; any other text is refused;
* a list becomes a tuple; ``???`` (OmegaConf's mark) is a missing value.

A type of its own kind (see ``alignlab.spec.Spec``) takes part by having the two methods of
:class:`~alignlab.annotations.Parsed`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from alignlab.annotations import (
    Parsed,
    Range,
    described,
    expressible,
    hints,
    join,
    reads_itself,
    shown,
)
from alignlab.errors import ConfigError, did_you_mean
from alignlab.scalars import SCALARS, literal, near_choice, scalar

__all__ = ["Problems", "Range", "build", "convert", "described", "expressible", "to_mapping"]

T = TypeVar("T")

TARGET = "_target_"
ABSENT = "???"
TAG = "method"  # tells the dataclasses of a union apart


class Problems(ConfigError):
    """One error for all that is wrong with one mapping; ``problems`` holds a line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        head = f"{len(self.problems)} problems in the configuration:\n  "
        super().__init__(
            self.problems[0] if len(self.problems) == 1 else head + "\n  ".join(self.problems)
        )


def build(cls: type[T], mapping: Mapping[str, Any], path: str = "") -> T:
    """Make the dataclass ``cls`` from ``mapping``; ``path`` is what messages call the mapping.

    A ``_target_`` key is allowed when it names ``cls``. Raises ConfigError listing every problem.
    """
    problems: list[str] = []
    built = _dataclass(cls, mapping, path, problems)
    if problems:
        raise Problems(problems)
    return built


def convert(annotation: Any, value: Any, path: str) -> Any:
    """Convert one value to ``annotation``; raise ConfigError listing every problem."""
    problems: list[str] = []
    converted = _convert(annotation, value, path, problems)
    if problems:
        raise Problems(problems)
    return converted


def to_mapping(obj: Any) -> Any:
    """Write ``obj`` as JSON-able data, the inverse of :func:`build`; equal objects write equally.

    Dataclasses become mappings in the order of their fields, tuples lists, sets sorted lists, paths
    text, and numbers that are not finite the text ``"nan"``, ``"inf"`` or ``"-inf"``.
    Raises TypeError for anything else.
    """
    if obj is None or type(obj) in (bool, int, str):
        return obj
    if not isinstance(obj, type) and reads_itself(obj.__class__):
        return to_mapping(obj.to_node())
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: to_mapping(getattr(obj, f.name)) for f in dataclasses.fields(obj) if f.init}
    if isinstance(obj, Mapping):
        if wrong := [key for key in obj if not isinstance(key, str)]:
            raise TypeError(f"a mapping with the key {wrong[0]!r}: only text keys can be written")
        return {key: to_mapping(value) for key, value in obj.items()}
    if isinstance(obj, (set, frozenset)):
        return sorted(to_mapping(value) for value in obj)
    if isinstance(obj, (tuple, list)):
        return [to_mapping(value) for value in obj]
    if isinstance(obj, Path):
        return obj.as_posix()
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else str(float(obj))
    if isinstance(obj, (bool, int, str)):
        return obj
    raise TypeError(f"a {type(obj).__name__} cannot be written as configuration: {obj!r}")


def _dataclass(cls: Any, mapping: Any, path: str, problems: list[str]) -> Any:
    """Build ``cls``; on a problem append to ``problems`` and return None."""
    if isinstance(mapping, cls):
        return mapping
    before = len(problems)
    values = arguments(cls, mapping, path, problems)
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except (ConfigError, ValueError) as error:
        problems.extend(f"{path}: {line}" if path else line for line in lines(error))
        return None


def arguments(
    cls: Any, mapping: Any, path: str, problems: list[str], late: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Convert ``mapping`` to keyword arguments of ``cls``; fields in ``late`` may be missing."""
    if not isinstance(mapping, Mapping):
        problems.append(f"{path or cls.__name__}: expected a mapping, got {shown(mapping)}.")
        return {}
    resolved = hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    name = f"{cls.__module__}.{cls.__qualname__}"
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        where = join(path, key)
        if key == TARGET:
            if value != name:
                problems.append(f"{where}: expected {name!r}, got {shown(value)}.")
        elif key not in fields:
            problems.append(f"{where}: unknown key of {cls.__name__}." + _suggest(key, fields))
        elif value != ABSENT:
            values[key] = _convert(resolved[key], value, where, problems)
    for key, field in fields.items():
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if key not in late and not optional and mapping.get(key, ABSENT) == ABSENT:
            problems.append(f"{join(path, key)}: missing, expected {described(resolved[key])}.")
    return values


def _suggest(key: Any, names: Mapping[str, Any]) -> str:
    near = did_you_mean(str(key), names)
    return near or f" The keys are {', '.join(names) or 'none'}."


def lines(error: Exception) -> tuple[str, ...]:
    """Return the separate problems that an error reports."""
    return error.problems if isinstance(error, Problems) else (str(error),)


def _convert(annotation: Any, value: Any, path: str, problems: list[str]) -> Any:
    """Convert ``value``; on a problem append to ``problems`` and return None."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin is Annotated:
        return _annotated(inner, value, path, problems)
    if origin in (Union, types.UnionType):
        return _union(inner, value, path, problems)
    if origin is Literal:
        return literal(inner, value, path, problems)
    if origin in (tuple, list, Sequence):
        return _sequence(annotation, value, path, problems)
    if origin in (dict, Mapping):
        return _mapping(annotation, value, path, problems)
    if annotation in SCALARS:
        return scalar(annotation, value, path, problems)
    if reads_itself(annotation):
        return _parsed(annotation, value, path, problems)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return _dataclass(annotation, value, path, problems)
    raise TypeError(f"{path}: a configuration cannot hold the type {annotation!r}")


def _annotated(inner: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    before = len(problems)
    converted = _convert(inner[0], value, path, problems)
    if len(problems) > before or not isinstance(converted, (int, float)):
        return converted  # Annotated[float | None, Range(...)]: null has no bounds to keep
    problems += [
        f"{path}: expected {described(inner[0])} {bound}, got {shown(value)}."
        for bound in inner[1:]
        if isinstance(bound, Range) and not bound.holds(converted)
    ]
    return converted


def _union(members: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    """Prefer the member that takes the value as it is, then the first that can convert it.

    Of several dataclasses the one is meant whose field ``method`` the mapping states.
    """
    tagged = [member for member in members if dataclasses.is_dataclass(member)]
    if len(tagged) > 1 and isinstance(value, Mapping):
        return _tagged(tagged, value, path, problems)
    converted: list[Any] = []
    failures: list[list[str]] = []
    for member in members:
        trouble: list[str] = []
        result = _convert(member, value, path, trouble)
        if trouble:
            failures.append(trouble)
        elif type(result) is type(value):
            return result
        else:
            converted.append(result)
    if converted:
        return converted[0]
    # A mapping or list was meant for the one member that reads such: its own problems say more.
    reads = [m for m in members if getattr(m, "__origin__", m) not in (*SCALARS, Literal)]
    if isinstance(value, (Mapping, list, tuple)) and len(reads) == 1:
        problems.extend(failures[members.index(reads[0])])
    else:
        expected = " or ".join(map(described, members))
        near = "".join(near_choice(m, value) for m in members if typing.get_origin(m) is Literal)
        problems.append(f"{path}: expected {expected}, got {shown(value)}.{near}")
    return None


def _tagged(members: Sequence[Any], value: Any, path: str, problems: list[str]) -> Any:
    """Build the dataclass whose ``method`` is the stated one, or the one that has no such field."""
    named = {_tag(member): member for member in members}
    tag = value.get(TAG)
    if tag in named:
        return _convert(named[tag], value, path, problems)
    names = sorted(name for name in named if name is not None)
    near = did_you_mean(tag, names) if isinstance(tag, str) else ""
    problems.append(
        f"{join(path, TAG)}: expected one of {', '.join(names)}, got {shown(tag)}.{near}"
    )
    return None


def _tag(member: Any) -> str | None:
    """The one value that the field ``method`` of a dataclass may have; None without such field."""
    found = hints(member).get(TAG)
    return typing.get_args(found)[0] if typing.get_origin(found) is Literal else None


def _sequence(annotation: Any, value: Any, path: str, problems: list[str]) -> Any:
    """Make a tuple of a list: frozen dataclasses hold nothing that can be changed."""
    inner = typing.get_args(annotation)
    fixed = typing.get_origin(annotation) is tuple and not (len(inner) == 2 and inner[1] is ...)
    listed = isinstance(value, (list, tuple))
    if not listed or (fixed and len(value) != len(inner)):
        problems.append(f"{path}: expected {described(annotation)}, got {shown(value)}.")
        return None
    members = inner if fixed else (inner[0],) * len(value)
    parts = enumerate(zip(members, value, strict=True))
    return tuple(_convert(m, v, f"{path}[{i}]", problems) for i, (m, v) in parts)


def _mapping(annotation: Any, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{path}: expected {described(annotation)}, got {shown(value)}.")
        return None
    wrong = [key for key in value if not isinstance(key, str)]
    problems += [f"{join(path, key)}: expected a text key, got {shown(key)}." for key in wrong]
    member = typing.get_args(annotation)[1]
    return {key: _convert(member, item, join(path, key), problems) for key, item in value.items()}


def _parsed(cls: type[Parsed], value: Any, path: str, problems: list[str]) -> Any:
    if isinstance(value, cls):
        return value
    try:
        return cls.from_node(value, path)
    except ConfigError as error:
        problems.extend(lines(error))
        return None
