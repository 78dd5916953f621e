"""A grid: every combination of the stated values becomes a stage, with all that reads it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.design.draft import (
    Draft,
    Node,
    Variant,
    below,
    inputs_of,
    multiplied,
    readers,
    require_stage,
    with_field,
)
from alignlab.design.spelling import spelled_apart
from alignlab.errors import ConfigError

EXAMPLE = "grid={dpo: {objective.beta: [0.03, 0.1, 0.3]}}"


@dataclass(frozen=True)
class Axis:
    """One field of one stage, and the values that it takes."""

    stage: str
    keys: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def field(self) -> str:
        """Dotted path of the field in its stage."""
        return ".".join(self.keys)


def with_grid(draft: Draft, grid: Any) -> Draft:
    """Replace each stage of the grid by its points, and copy what is below for every point.

    The points of a stage are named ``STAGE,field=value``, and so are the copies of the stages
    below it; a field is named by its last word where that is clear. A stage whose settings are no
    point of the grid is not run; to run it as well, name its value.

    Raises:
        ConfigError: an unknown stage or field, or values that are no list of different ones.
    """
    axes = axes_of(grid, draft.stages)
    names = _short_names(axes, draft.stages)
    for origin in _inputs_first({axis.stage for axis in axes}, draft.stages):
        own = [axis for axis in axes if axis.stage == origin]
        columns = [_steps(axis, names[axis.stage, axis.field]) for axis in own]
        variants = [_variant(own, point) for point in itertools.product(*columns)]
        draft = multiplied(draft, dict.fromkeys(draft.copies(origin), variants))
    return draft


def axes_of(grid: Any, stages: Mapping[str, Node]) -> list[Axis]:
    """Read a grid; fields may be written ``objective.beta`` or one mapping in the other."""
    if not isinstance(grid, Mapping):
        raise ConfigError(f"grid: expected stages with fields and values, as in {EXAMPLE}.")
    found: list[Axis] = []
    for stage, fields in grid.items():
        require_stage(stage, stages, f"grid.{stage}")
        if not isinstance(fields, Mapping) or not fields:
            raise ConfigError(f"grid.{stage}: expected fields and their values, as in {EXAMPLE}.")
        for keys, values in fields_in(fields):
            path = f"grid.{stage}.{'.'.join(keys)}"
            if not isinstance(values, list | tuple) or not values:
                raise ConfigError(f"{path}: expected a list of values, got {values!r}.")
            if len({repr(value) for value in values}) < len(values):
                raise ConfigError(f"{path}: a value is named twice in {list(values)}.")
            with_field(stages[stage], keys, None, path)
            if any(axis.stage == stage and axis.keys == keys for axis in found):
                raise ConfigError(f"{path}: the field is named twice.")
            found.append(Axis(stage, keys, tuple(values)))
    return found


def fields_in(fields: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
    """Keys from a stage to a field, and what is said of it, for every leaf of a mapping."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in fields.items():
        head = tuple(str(key).split("."))
        if isinstance(value, Mapping) and value:
            found += [((*head, *rest), leaf) for rest, leaf in fields_in(value)]
        else:
            found.append((head, value))
    return found


def _steps(axis: Axis, name: str) -> list[tuple[str, Any]]:
    """Part of a name, and the value that it stands for, of every value of an axis."""
    texts = spelled_apart(axis.values)
    return [(f",{name}={text}", value) for text, value in zip(texts, axis.values, strict=True)]


def _variant(axes: Sequence[Axis], point: Sequence[tuple[str, Any]]) -> Variant:
    def change(node: Node) -> Node:
        for axis, (_, value) in zip(axes, point, strict=True):
            node = with_field(node, axis.keys, value, f"grid.{axis.stage}.{axis.field}")
        return node

    return Variant("".join(text for text, _ in point), change)


def _short_names(axes: Sequence[Axis], stages: Mapping[str, Node]) -> dict[tuple[str, str], str]:
    """Name a field by its last word, unless another one of that name meets it in some stage."""
    read_by = readers(stages)
    reach = {axis.stage: below(axis.stage, read_by) for axis in axes}
    found = {}
    for axis in axes:
        met = [
            other
            for other in axes
            if other is not axis
            and other.keys[-1] == axis.keys[-1]
            and reach[other.stage] & reach[axis.stage]
        ]
        name = axis.field if any(other.stage == axis.stage for other in met) else axis.keys[-1]
        met_elsewhere = any(other.stage != axis.stage for other in met)
        found[axis.stage, axis.field] = f"{axis.stage}.{name}" if met_elsewhere else name
    return found


def _inputs_first(wanted: set[str], stages: Mapping[str, Node]) -> list[str]:
    """Order stages so that none comes before a stage that it reads, directly or through others."""
    order: list[str] = []
    path: set[str] = set()

    def visit(name: str) -> None:
        if name in path or name in order or name not in stages:
            return  # a circle or an unknown input: the plan refuses it, with its path
        path.add(name)
        for source in inputs_of(stages[name]).values():
            visit(source)
        path.discard(name)
        order.append(name)

    for name in stages:
        visit(name)
    return [name for name in order if name in wanted]
