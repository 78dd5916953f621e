"""The stages of a study while it is being designed: plain mappings that are copied and rewired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignlab.errors import ConfigError, did_you_mean
from alignlab.spec import locate

Node = Mapping[str, Any]  # one stage as composed: `_target_`, `inputs` and its fields
Change = Callable[[Node], Node]


@dataclass(frozen=True)
class Draft:
    """Stages by name; of a copy, which stage of the pipeline it is a copy of."""

    stages: Mapping[str, Node]
    origins: Mapping[str, str] = field(default_factory=dict)  # of copies alone

    def origin(self, name: str) -> str:
        """Name in the pipeline of the stage that ``name`` is, or is a copy of."""
        return self.origins.get(name, name)

    def copies(self, origin: str) -> list[str]:
        """Names of the stages that are ``origin`` or a copy of it, in order."""
        return [name for name in self.stages if self.origin(name) == origin]


@dataclass(frozen=True)
class Variant:
    """One way in which a stage is copied, with everything that reads it."""

    suffix: str  # of the names of the copies
    change: Change  # of the stage itself; the stages below it only read the copy instead


def inputs_of(node: Any) -> Mapping[str, str]:
    """Role → stage name; empty for what is no stage, which the plan refuses with its path."""
    found = node.get("inputs") if isinstance(node, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def kind_of(name: str, node: Node) -> str | None:
    """Kind of a stage, from its class; refused like a plan would refuse it."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    found: str | None = getattr(locate(target, f"stages.{name}._target_"), "kind", None)
    return found


def readers(stages: Mapping[str, Node]) -> dict[str, list[str]]:
    """Stages that read a stage directly, by the name of the stage that is read."""
    found: dict[str, list[str]] = {name: [] for name in stages}
    for name, node in stages.items():
        for source in dict.fromkeys(inputs_of(node).values()):
            found.setdefault(source, []).append(name)
    return found


def below(name: str, read_by: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the stage and every stage that reads it, directly or through others."""
    found, waiting = {name}, [name]
    while waiting:
        for child in read_by.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def multiplied(draft: Draft, variants: Mapping[str, Sequence[Variant]]) -> Draft:
    """Put the variants of each named stage in its place, each with its own copy of what is below.

    No stage may be below two of the named ones. Whatever is neither a named stage nor below one
    is shared by all copies.
    """
    read_by = readers(draft.stages)
    belongs = {member: name for name in variants for member in below(name, read_by)}
    stages: dict[str, Node] = {}
    origins: dict[str, str] = {}
    for name, node in draft.stages.items():
        head = belongs.get(name)
        for variant in variants[head] if head is not None else ():
            copied = {
                s: s + variant.suffix for s in inputs_of(node).values() if belongs.get(s) == head
            }
            copy = rewired(node, copied)
            stages[name + variant.suffix] = variant.change(copy) if name == head else copy
            origins[name + variant.suffix] = draft.origin(name)
        if head is None:
            stages[name] = node
            origins[name] = draft.origin(name)
    return Draft(stages, origins)


def rewired(node: Node, names: Mapping[str, str]) -> Node:
    """Return the stage with those of its inputs renamed that are in ``names``."""
    return {
        **node,
        "inputs": {r: names.get(source, source) for r, source in inputs_of(node).items()},
    }


def require_stage(name: str, stages: Mapping[str, Node], path: str) -> None:
    """Raise ConfigError naming ``path`` when there is no stage ``name``."""
    if name not in stages:
        raise ConfigError(
            f"{path}: there is no stage named '{name}' (stages: {', '.join(stages)})."
            f"{did_you_mean(name, stages)}"
        )


def with_field(node: Any, keys: Sequence[str], value: Any, path: str) -> Any:
    """Return a copy of the mapping with ``value`` at ``keys``; everything beside it is shared.

    Raises:
        ConfigError: there is no such field; the message names ``path``, where it was asked for.
    """
    key = keys[0]
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path}: '{key}' cannot be set, because {node!r} above it has no keys.")
    if node and key not in node:  # what an empty mapping takes, its type says
        known = [str(k) for k in node if k != "_target_"]
        raise ConfigError(
            f"{path}: there is no field '{key}'.{did_you_mean(key, known)} Known here: "
            f"{', '.join(sorted(known))}."
        )
    inner = value if len(keys) == 1 else with_field(node[key], keys[1:], value, path)
    return {**node, key: inner}


def field_of(node: Any, keys: Sequence[str], path: str) -> Any:
    """Return the value at ``keys``; refused as by :func:`with_field`."""
    with_field(node, keys, None, path)
    for key in keys:
        node = node.get(key)
    return node
