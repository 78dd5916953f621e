"""The graph of the stages of a study: what reads what, every edge checked, in an order to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING

from alignlab.errors import ConfigError, did_you_mean, located
from alignlab.stages.stage import role_of

if TYPE_CHECKING:
    from alignlab.plan import Node
    from alignlab.stages.stage import Stage


def ordered(stages: Mapping[str, Stage]) -> list[str]:
    """Names, inputs before the stages that read them.

    Raises:
        ConfigError: an unknown or unsuitable input, a cycle.
    """
    for name, stage in stages.items():
        for role, source in stage.inputs.items():
            _check_edge(name, role, source, stages)
        with located(f"stages.{name}"):
            stage.accept({role: stages[source] for role, source in stage.inputs.items()})
    order: list[str] = []
    waiting = dict(stages)
    while waiting:
        ready = [n for n, s in waiting.items() if waiting.keys().isdisjoint(s.inputs.values())]
        if not ready:
            raise ConfigError(f"stages: the inputs go in a circle: {_cycle(waiting)}.")
        order.extend(ready)
        for name in ready:
            del waiting[name]
    _check_templates(order, stages)
    return order


def counted(nodes: Mapping[str, Node], done: Set[str]) -> set[str]:
    """Runs that are not done and that nothing waits for: failures that a selection has counted.

    All that read such a run do so through a tolerant role and are done, or are such runs too.
    """
    readers: dict[str, list[tuple[str, bool]]] = {run: [] for run in nodes}
    for run, node in nodes.items():
        for name, parent in node.parents.items():
            readers[parent].append((run, node.stage.roles[role_of(name)].tolerant))
    found: set[str] = set()
    for run in reversed(list(nodes)):  # readers before what they read
        if run not in done and readers[run]:
            fine = (r in found or (tolerant and r in done) for r, tolerant in readers[run])
            found |= {run} if all(fine) else set()
    return found


def _check_templates(order: Sequence[str], stages: Mapping[str, Stage]) -> None:
    """Refuse a chat template that changes between stages; null takes the one of the inputs."""
    used: dict[str, str | None] = {}
    for name in order:
        backbone = getattr(stages[name], "backbone", None)
        inputs = {r: s for r, s in stages[name].inputs.items() if s in used}
        first = next((used[source] for source in inputs.values()), None)
        if backbone is None:  # pretraining makes a model without a template, others hand one on
            used |= {name: first} if inputs else {}
            continue
        used[name] = first if backbone.template is None else backbone.template
        for role, source in inputs.items():
            if used[source] != used[name]:
                mine, theirs = (t or "the tokenizer's own" for t in (used[name], used[source]))
                raise ConfigError(
                    f"stages.{name}.backbone.template: the stage would write its prompts with the "
                    f"chat template {mine}, and its input {role} ('{source}') with {theirs}. One "
                    "template goes through all stages: set backbone.template, not one stage's."
                )


def _check_edge(name: str, role: str, source: str, stages: Mapping[str, Stage]) -> None:
    path = f"stages.{name}.inputs.{role}"
    if source not in stages:
        known = ", ".join(stages)
        raise ConfigError(
            f"{path}: there is no stage named '{source}' (stages: {known})."
            f"{did_you_mean(source, stages)}"
        )
    kinds = stages[name].roles[role_of(role)].kinds
    kind = stages[source].kind
    if kind not in kinds:
        raise ConfigError(
            f"{path}: '{source}' is of kind {kind}, and the role '{role}' of a "
            f"{stages[name].kind} stage takes {' or '.join(kinds)}."
        )


def _cycle(waiting: Mapping[str, Stage]) -> str:
    name = next(iter(waiting))
    path: list[str] = []
    while name not in path:
        path.append(name)
        name = next(s for s in waiting[name].inputs.values() if s in waiting)
    return " → ".join([*path[path.index(name) :], name])
