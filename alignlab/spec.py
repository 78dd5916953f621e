"""Late objects of a configuration: ``_target_`` under ``alignlab.``, checked when the plan is made.

A node such as ``{_target_: alignlab.objectives.pairwise.ipo, tau: 0.1}`` becomes a :class:`Spec`.
Its target is imported and its arguments are bound to the signature at once, so that a wrong name or
type is refused before anything is loaded. What the configuration cannot give (tensors, runs) is
*late*: parameters that are positional without a default, and fields of a dataclass without a
default whose type no configuration can hold. ``build`` and ``function`` receive or leave those.

Defaults of hyperparameters are written into the arguments, so a changed default changes every key
that was made from it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from inspect import Parameter
from types import ModuleType
from typing import Any, Self

from alignlab import typed
from alignlab.annotations import described, expressible, hints, join, shown
from alignlab.errors import ConfigError, did_you_mean
from alignlab.typed import ABSENT, TARGET, Problems

ROOT = "alignlab"
_UNSET = object()


@dataclass(frozen=True)
class Spec:
    """What to make later: the dotted name of a class or function, and its arguments."""

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", dict(self.arguments))

    @classmethod
    def from_node(cls, node: Any, path: str) -> Self:
        """Read a configuration node; the same as :func:`parse`."""
        target, arguments = _parsed(node, path)
        return cls(target, arguments)

    def to_node(self) -> dict[str, Any]:
        """Write the node that :meth:`from_node` reads."""
        return {TARGET: self.target, **self.arguments}


def parse(node: Any, path: str) -> Spec:
    """Read ``node`` as a spec with its arguments bound; raise ConfigError listing every problem."""
    return node if isinstance(node, Spec) else Spec.from_node(node, path)


def build(spec: Spec, *args: Any, **late: Any) -> Any:
    """Make the object of a class spec, giving it what the configuration could not."""
    found = locate(spec.target, TARGET)
    if not isinstance(found, type):
        raise ConfigError(f"{spec.target} is a function, and a class is expected here.")
    return found(*args, **spec.arguments, **late)


def function(spec: Spec) -> functools.partial[Any]:
    """Return the function of a spec with its hyperparameters bound."""
    found = locate(spec.target, TARGET)
    if isinstance(found, type):
        raise ConfigError(f"{spec.target} is a class, and a function is expected here.")
    return functools.partial(found, **spec.arguments)


def late(spec: Spec) -> dict[str, Any]:
    """Name and annotation of every parameter that the caller has to give, in order."""
    found = locate(spec.target, TARGET)
    given = set(spec.arguments)
    return {name: kind for name, kind in _late(found).items() if name not in given}


def locate(target: Any, path: str) -> Callable[..., Any]:
    """Import the public class or function called ``target``, defined in this package.

    Raises ConfigError naming ``path`` for a name outside ``alignlab.``, a private or missing name,
    or a module that needs a package which is not installed.
    """
    if not isinstance(target, str):
        raise ConfigError(f"{path}: expected a dotted name, got {shown(target)}.")
    parts = target.split(".")
    if parts[0] != ROOT or len(parts) < 3 or not all(part.isidentifier() for part in parts):
        raise ConfigError(
            f"{path}: {target!r} is not a class or function of this package; only names under "
            f"'{ROOT}.' can be configured, for example 'alignlab.objectives.pairwise.dpo'."
        )
    if private := [part for part in parts if part.startswith("_")]:
        raise ConfigError(f"{path}: {target!r} is refused, {private[0]!r} is private.")
    module = _module(parts[:-1], target, path)
    found: Any = getattr(module, parts[-1], None)
    if not _public(found):
        names = [name for name, value in vars(module).items() if _public(value)]
        near = did_you_mean(parts[-1], names) or f" It has {', '.join(sorted(names)) or 'none'}."
        raise ConfigError(
            f"{path}: {module.__name__} has no class or function {parts[-1]!r}.{near}"
        )
    return found


def _module(parts: list[str], target: str, path: str) -> ModuleType:
    module = importlib.import_module(parts[0])
    for depth in range(2, len(parts) + 1):
        name = ".".join(parts[:depth])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and not error.name.startswith(ROOT):
                raise ConfigError(
                    f"{path}: {target!r} needs the package {error.name!r}, which is not installed."
                ) from error
            folder = getattr(module, "__path__", [])
            near = did_you_mean(parts[depth - 1], [m.name for m in pkgutil.iter_modules(folder)])
            raise ConfigError(f"{path}: there is no module {name!r}.{near}") from error
    return module


def _public(value: Any) -> bool:
    """Whether this is a class or function of our own, so not ``subprocess.run`` by another name."""
    name = getattr(value, "__name__", "_")
    ours = str(getattr(value, "__module__", "")).startswith(f"{ROOT}.")
    return ours and not name.startswith("_") and (inspect.isclass(value) or callable(value))


def _parsed(node: Any, path: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, Mapping) or TARGET not in node:
        raise ConfigError(f"{path}: expected a mapping with {TARGET!r}, got {shown(node)}.")
    target = node[TARGET]
    found = locate(target, join(path, TARGET))
    given = {key: value for key, value in node.items() if key != TARGET}
    problems: list[str] = []
    if dataclasses.is_dataclass(found):
        arguments = _dataclass_arguments(found, given, path, problems)
    else:
        arguments = _bound_arguments(found, given, path, problems)
    if problems:
        raise Problems(problems)
    return target, arguments


def _dataclass_arguments(
    cls: Any, given: Mapping[str, Any], path: str, problems: list[str]
) -> dict[str, Any]:
    """Convert the fields of a dataclass; build it once when nothing is late, for its own checks."""
    later = _late(cls)
    resolved = hints(cls)
    if early := [name for name in given if name in later]:
        problems.append(f"{join(path, early[0])}: is given by the stage, not by the configuration.")
        return {}
    arguments = typed.arguments(cls, given, path, problems, late=frozenset(later))
    if problems:
        return {}
    for entry in dataclasses.fields(cls):
        if entry.init and entry.name not in arguments and expressible(resolved[entry.name]):
            if entry.default is not MISSING:
                arguments[entry.name] = entry.default
            elif entry.default_factory is not MISSING:
                arguments[entry.name] = entry.default_factory()
    if not later:
        typed.build(cls, arguments, path)
    return arguments


def _bound_arguments(
    found: Callable[..., Any], given: Mapping[str, Any], path: str, problems: list[str]
) -> dict[str, Any]:
    """Convert and bind the arguments of a function, or of a class that is no dataclass."""
    parameters = _parameters(found)
    resolved = _resolved(found)
    later = _late(found)
    arguments: dict[str, Any] = {}
    for key, value in given.items():
        where = join(path, key)
        annotation = resolved.get(key, Any)
        if key not in parameters:
            names = [name for name in parameters if name not in later]
            near = did_you_mean(str(key), names) or f" It takes {', '.join(names) or 'nothing'}."
            problems.append(f"{where}: unknown argument of {found.__name__}.{near}")
        elif key in later and not expressible(annotation):
            problems.append(f"{where}: is given by the stage, not by the configuration.")
        elif value != ABSENT:
            arguments[key] = _converted(annotation, value, where, problems)
    for key, parameter in parameters.items():
        keyword = parameter.kind is Parameter.KEYWORD_ONLY
        if keyword and parameter.default is Parameter.empty and given.get(key, ABSENT) == ABSENT:
            wanted = resolved.get(key, Any)
            expected = f", expected {described(wanted)}" if expressible(wanted) else ""
            problems.append(f"{join(path, key)}: missing{expected}.")
        elif keyword and key not in arguments and expressible(resolved.get(key, _UNSET)):
            arguments[key] = parameter.default
    return arguments


def _converted(annotation: Any, value: Any, path: str, problems: list[str]) -> Any:
    if not expressible(annotation):
        return value
    try:
        return typed.convert(annotation, value, path)
    except ConfigError as error:
        problems.extend(typed.lines(error))
        return None


def _parameters(found: Callable[..., Any]) -> dict[str, Parameter]:
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    listed = inspect.signature(found).parameters
    return {name: p for name, p in listed.items() if p.kind not in variadic}


def _resolved(found: Callable[..., Any]) -> Mapping[str, Any]:
    return hints(found.__init__ if isinstance(found, type) else found)  # type: ignore[misc]


def _late(found: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(found):
        resolved = hints(found)  # type: ignore[arg-type]
        required = [
            f.name
            for f in dataclasses.fields(found)
            if f.init and f.default is MISSING and f.default_factory is MISSING
        ]
        return {name: resolved[name] for name in required if not expressible(resolved[name])}
    resolved = _resolved(found)
    return {
        name: resolved.get(name, Any)
        for name, parameter in _parameters(found).items()
        if parameter.kind is not Parameter.KEYWORD_ONLY and parameter.default is Parameter.empty
    }
