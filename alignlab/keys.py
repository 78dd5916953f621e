"""The key of a stage: the hash of all that its result depends on, and of nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from alignlab import typed
from alignlab.run import content_key
from alignlab.spec import Spec, locate

if TYPE_CHECKING:
    from alignlab.stages.stage import Stage


def target_of(stage: Stage) -> str:
    """Dotted name of a stage's class."""
    return f"{type(stage).__module__}.{type(stage).__qualname__}"


def stage_key(stage: Stage, data: str, parents: Mapping[str, str]) -> str:
    """Name a stage by all that its result depends on.

    ``data`` is the fingerprint of what it reads by itself, ``parents`` the run names of its inputs
    by role. Fields that the class declares as ``unkeyed`` stay out, and so do those that it, or a
    dataclass inside it, declares as ``unkeyed_if_null`` while they are null.
    """
    return key_of(stage, typed.to_mapping(stage), data, parents)


def key_of(stage: Stage, fields: Mapping[str, Any], data: str, parents: Mapping[str, str]) -> str:
    """The same of a stage whose ``fields`` as plain data are at hand."""
    return content_key(
        {
            "stage": target_of(stage),
            "version": stage.version,
            "fields": _without(_stated(stage, fields), {*stage.unkeyed, "inputs"}),
            "inputs": parents,
            "data": data,
        }
    )


def _without(fields: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Leave ``names`` out; ``judge.limits`` is what stands as limits inside the field judge."""
    kept = {key: value for key, value in fields.items() if key not in names}
    for head, _, rest in (name.partition(".") for name in names):
        if rest and isinstance(kept.get(head), Mapping):
            kept[head] = _without(kept[head], {rest})
    return kept


def _stated(obj: Any, plain: Any) -> Any:
    """``plain``, which is ``obj`` as plain data, without later fields that are null, at any depth.

    A dataclass names those in ``unkeyed_if_null``; a late object's are those of its class.
    """
    if isinstance(plain, list) and isinstance(obj, list | tuple):
        return [_stated(inner, value) for inner, value in zip(obj, plain, strict=True)]
    if not isinstance(plain, Mapping):
        return plain
    if isinstance(obj, Spec):
        values, silent = obj.arguments, _silent(locate(obj.target, typed.TARGET))
    elif is_dataclass(obj):
        values, silent = {name: getattr(obj, name, None) for name in plain}, _silent(obj)
    else:
        values, silent = obj if isinstance(obj, Mapping) else {}, frozenset[str]()
    return {
        name: _stated(values.get(name), value)
        for name, value in plain.items()
        if value is not None or name not in silent
    }


def _silent(obj: Any) -> frozenset[str]:
    found: frozenset[str] = getattr(obj, "unkeyed_if_null", frozenset())
    return found
