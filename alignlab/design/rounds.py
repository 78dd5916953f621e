"""Rounds: some stages again and again, each time on what the round before has made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from alignlab import typed
from alignlab.design.draft import (
    Draft,
    Node,
    field_of,
    inputs_of,
    kind_of,
    require_stage,
    rewired,
    with_field,
)
from alignlab.errors import ConfigError
from alignlab.spec import locate
from alignlab.stages.stage import METHOD_KINDS
from alignlab.typed import Range


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Which stages make a round, and what the next one takes from it."""

    count: Annotated[int, Range(min=1)]
    repeat: tuple[str, ...]
    carry: Mapping[str, str]  # STAGE.INPUT of the next round → stage of this one
    advance: Mapping[str, int] = field(default_factory=dict)  # STAGE.FIELD → added every round


def with_rounds(draft: Draft, rounds: Any) -> Draft:
    """Repeat stages: iterative DPO, expert iteration, self-training, as stages like all others.

    The first round is what the pipeline says. In the next ones a stage is named ``STAGE,round=2``;
    an input that ``carry`` names reads that stage of the round before, another input of a repeated
    stage its own round, any other what it did. Numbers of ``advance`` grow: the seed of what
    samples should. A stage outside that reads a repeated one reads that of the last round.

    Raises:
        ConfigError: an unknown stage, input or field.
    """
    made = typed.build(Rounds, rounds, "rounds")
    _check(made, draft.stages)
    stages: dict[str, Node] = {}
    last = {name: _named(name, made.count) for name in made.repeat}
    for name, node in draft.stages.items():
        if name not in made.repeat:
            stages[name] = rewired(node, last)
    for number in range(1, made.count + 1):
        for name in made.repeat:
            stages[_named(name, number)] = _copy(name, draft.stages[name], made, number)
    return Draft(stages, {**draft.origins, **{name: name for name in stages}})


def _named(name: str, number: int) -> str:
    return name if number == 1 else f"{name},round={number}"


def round_of(stage: str) -> int:
    """Which round a stage of this name is of: 1 where it says nothing.

    >>> round_of("policy"), round_of("policy,round=3")
    (1, 3)
    """
    found = re.search(r",round=(\d+)$", stage)
    return int(found[1]) if found else 1


def _copy(name: str, node: Node, rounds: Rounds, number: int) -> Node:
    """The stage ``name`` as it is in a round."""
    if number == 1:
        return node
    own = {stage: _named(stage, number) for stage in rounds.repeat}
    inputs = {role: own.get(source, source) for role, source in inputs_of(node).items()}
    for place, source in rounds.carry.items():
        stage, _, role = place.partition(".")
        if stage == name:
            inputs[role] = _named(source, number - 1)
    changed: Node = {**node, "inputs": inputs}
    for place, step in rounds.advance.items():
        stage, _, key = place.partition(".")
        if stage == name:
            keys, path = key.split("."), f"rounds.advance.{place}"
            value = field_of(changed, keys, path) or 0
            changed = with_field(changed, keys, value + step * (number - 1), path)
    label = _label(name, node)
    return changed if label is None else {**changed, "label": f"{label}, round {number}"}


def _label(name: str, node: Node) -> str | None:
    """What the stage is called in tables, of those that are compared; else None."""
    if node.get("label") is not None:
        return str(node["label"])
    if kind_of(name, node) not in METHOD_KINDS:
        return None
    objective = node.get("objective")
    if isinstance(objective, Mapping):
        from alignlab.objectives.declaration import display_name

        return display_name(locate(objective["_target_"], f"stages.{name}.objective"))
    return name


def _check(rounds: Rounds, stages: Mapping[str, Node]) -> None:
    for name in rounds.repeat:
        require_stage(name, stages, "rounds.repeat")
    for place, source in rounds.carry.items():
        path = f"rounds.carry.{place}"
        require_stage(source, {name: stages[name] for name in rounds.repeat}, path)
        stage, _, role = place.partition(".")
        require_stage(stage, {name: stages[name] for name in rounds.repeat}, path)
        known = inputs_of(stages[stage])
        if role not in known:
            raise ConfigError(
                f"{path}: stage '{stage}' has no input '{role}' (it has: {', '.join(known)})."
            )
    for place in rounds.advance:
        require_stage(place.partition(".")[0], stages, f"rounds.advance.{place}")


def refuse_varied_rounds(config: Mapping[str, Any]) -> None:
    """Refuse a grid or a search over what is repeated: it would vary one round, not all of them.

    Raises:
        ConfigError: names what to use instead.
    """
    if config.get("search"):
        raise ConfigError(
            "search: stages in rounds are not searched; set search=null, and vary all rounds at"
            " once with -m, as in: alignlab run -m pipeline=iterative_preference"
            " objective.beta=0.03,0.1"
        )
    repeated = [n for n in config["rounds"].get("repeat") or () if n in (config.get("grid") or {})]
    if repeated:
        raise ConfigError(
            f"grid.{repeated[0]}: the stage is repeated (rounds.repeat), and a grid would vary one"
            " round of it; vary all at once with -m, as in: alignlab run -m objective.beta=0.03,0.1"
        )
