"""A search under a budget: every method is tried with as many settings as the others.

The points are the same for every training seed, and every training seed makes its own choice: a
seed is then one replicate of all that was done to get the policy, tuning included, and intervals
over seeds hold what the luck of a search adds. (Searching with one seed and training the winner
with the others is cheaper, but it conditions every seed on one lucky search, and its intervals are
too narrow for the question "which method, tuned like this?".) It also gives settings × seeds, from
which the report draws what fewer trials would have found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from alignlab import typed
from alignlab.design.draft import Draft, Node, inputs_of, kind_of, with_field
from alignlab.design.space import Dimension, dimensions_of, points
from alignlab.design.spelling import spelled
from alignlab.errors import ConfigError, did_you_mean
from alignlab.stages.stage import METHOD_KINDS, Estimate
from alignlab.typed import Range

Cost = Callable[[Mapping[str, Node], str], Estimate]  # of one of these stages
SELECT = "alignlab.stages.select.Select"


@dataclass(frozen=True, kw_only=True)
class Search:
    """How trials are made, scored and chosen; the space is read apart."""

    metric: Literal["gold", "audit", "proxy", "reference_nll"]
    direction: Literal["max", "min"]
    prompts: Annotated[int, Range(min=1)]
    samples: Annotated[int, Range(min=1)]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What each method may spend; of several limits the one that is met first counts."""

    trials: Annotated[int, Range(min=1)] | None
    tokens: Annotated[float, Range(min=0, min_open=True)] | None
    flops: Annotated[float, Range(min=0, min_open=True)] | None

    def __post_init__(self) -> None:
        if self.trials is None and self.tokens is None and self.flops is None:
            raise ConfigError("a search without a limit never ends: set trials, tokens or flops.")


def with_search(draft: Draft, config: Mapping[str, Any], cost: Cost) -> Draft:
    """Replace each method by its trials, their evaluations and the selection of the best.

    The selection takes the method's name, so that whatever read the method reads the tuned one;
    the trials are named ``METHOD,trial=2,field=value``. The first trial has the configured
    settings. Fields that the grid sets are not searched.

    Raises:
        ConfigError: a space of unknown stages or fields, a method without a space, a budget that
            does not buy one trial.
    """
    stated = config["search"]
    if not isinstance(stated, Mapping) or not isinstance(stated.get("space"), Mapping):
        raise ConfigError("search: expected a space; choose search=default and change it.")
    rest = {k: v for k, v in stated.items() if k != "space"}
    search = typed.build(Search, rest, "search")
    budget = typed.build(Budget, config.get("budget") or {}, "budget")
    spaces = spaces_of(draft, stated["space"], config.get("grid") or {})
    stages: dict[str, Node] = {}
    origins = dict(draft.origins)
    for name, node in draft.stages.items():
        dimensions = spaces.get(name)
        if not dimensions:
            stages[name] = node
            continue
        made = searched(name, draft, dimensions, search, budget, cost)
        stages |= made
        origins |= dict.fromkeys(made, draft.origin(name))
    return Draft(stages, origins)


def spaces_of(
    draft: Draft, space: Mapping[str, Any], grid: Mapping[str, Any]
) -> dict[str, list[Dimension]]:
    """What is searched of each method: by the name of its stage, its objective, or its kind.

    Raises:
        ConfigError: an unknown name, or a method that nothing is said of.
    """
    from alignlab.design.grid import fields_in

    names = {name: names_of(draft.origin(name), node) for name, node in draft.stages.items()}
    methods = {name: found for name, found in names.items() if found}
    known = {known for found in methods.values() for known in found}
    for key in space:
        if key not in known and key not in all_methods():
            raise ConfigError(
                f"search.space.{key}: there is no method of that name (methods here: "
                f"{', '.join(dict.fromkeys(found[0] for found in methods.values()))})."
                f"{did_you_mean(key, {*known, *all_methods()})}"
            )
    spaces = {}
    for name, found in methods.items():
        key = next((n for n in found if n in space), "")
        if not key:
            raise ConfigError(
                f"search.space: says nothing of '{name}', and a comparison of methods that are "
                f"tuned with one that is not is none. Give search.space.{found[0]}, or null for it "
                "to be run as it is configured."
            )
        if space[key] is not None:
            found_here = dimensions_of(space[key], draft.stages[name], f"search.space.{key}")
            fixed = {".".join(k) for k, _ in fields_in(grid.get(draft.origin(name)) or {})}
            spaces[name] = [d for d in found_here if d.field not in fixed]
    return spaces


def names_of(origin: str, node: Node) -> list[str]:
    """Names under which the space of a stage is looked for; none for a stage that is no method."""
    kind = kind_of(origin, node)
    if kind not in METHOD_KINDS:
        return []
    objective = node.get("objective")
    target = objective.get("_target_") if isinstance(objective, Mapping) else None
    return [origin, *([str(target).rpartition(".")[2]] if target else []), str(kind)]


def all_methods() -> set[str]:
    """Names of all objectives and kinds of methods, whether they are in this study or not."""
    from alignlab.objectives import anchored, groupwise, links, pairwise, penalized, unpaired

    rooms = (pairwise, unpaired, penalized, anchored, links, groupwise)
    return {*METHOD_KINDS, *(name for room in rooms for name in vars(room))}


def searched(
    name: str,
    draft: Draft,
    dimensions: list[Dimension],
    search: Search,
    budget: Budget,
    cost: Cost,
) -> dict[str, Node]:
    """Trials of one method with their evaluations, and the selection, which takes its name."""
    node, template = draft.stages[name], _evaluation_of(name, draft)
    made: dict[str, Node] = {}
    inputs: dict[str, str] = {}
    spent = Estimate()
    for number, point in _affordable(dimensions, node, search.seed, budget):
        trial = dict(node)
        parts = [f",trial={number}"]
        for dimension, value in zip(dimensions, point, strict=True):
            path = f"search.space.{name}.{dimension.field}"
            trial = with_field(trial, dimension.keys, value, path)
            parts.append(f",{dimension.keys[-1]}={spelled(value)}")
        suffix = "".join(parts)
        score = {
            **template,
            "label": None,
            "split": "validation",
            "prompts": search.prompts,
            "samples": search.samples,
            "inputs": {**inputs_of(template), "policy": name + suffix},
        }
        pair = {name + suffix: trial, f"validate_{name}{suffix}": score}
        if budget.tokens is not None or budget.flops is not None:
            price = [cost({**draft.stages, **pair}, new) for new in pair]
            spent = Estimate(
                tokens=spent.tokens + sum(p.tokens for p in price),
                flops=spent.flops + sum(p.flops for p in price),
            )
            if _exceeds(spent, budget, name, number):
                break
        made |= pair
        inputs |= {f"trial/{number}": name + suffix, f"score/{number}": f"validate_{name}{suffix}"}
    made[name] = {
        "_target_": SELECT,
        "seed": node.get("seed"),
        "label": node.get("label"),
        "inputs": inputs,
        "method": name,
        "fields": [d.field for d in dimensions],
        "metric": search.metric,
        "direction": search.direction,
    }
    return made


def _affordable(
    dimensions: list[Dimension], node: Node, seed: int, budget: Budget
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    return itertools.islice(enumerate(points(dimensions, node, seed), start=1), budget.trials)


def _exceeds(spent: Estimate, budget: Budget, name: str, number: int) -> bool:
    """Whether the trials so far cost more than the budget; refused if the first one does."""
    for unit, limit, used in (
        ("tokens", budget.tokens, spent.tokens),
        ("flops", budget.flops, spent.flops),
    ):
        if limit is None:
            continue
        if used <= 0:
            raise ConfigError(f"budget.{unit}: '{name}' has no estimate; set budget.trials.")
        if used > limit and number == 1:
            raise ConfigError(
                f"budget.{unit}={limit:g}: one trial of '{name}' is planned with {used:.3g} {unit}"
                " (training and evaluation, at the limits of length). That is the least budget."
            )
        if used > limit:
            return True
    return False


def _evaluation_of(name: str, draft: Draft) -> Node:
    """Return the evaluation that trials of a method are scored like: the first of its own."""
    for other, node in draft.stages.items():
        reads = inputs_of(node).get("policy") == name and kind_of(other, node) == "evaluate"
        if reads and node.get("best_of") == 1:
            return node
    raise ConfigError(
        f"search.space: no evaluation reads '{name}', so its trials could not be scored; add an "
        "evaluate stage with the input policy."
    )
