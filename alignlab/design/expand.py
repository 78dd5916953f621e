"""All stages of one job: the pipeline's, then its rounds, grid, search and assessments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignlab.design.assess import with_assessments
from alignlab.design.draft import Draft
from alignlab.design.grid import with_grid
from alignlab.design.rounds import refuse_varied_rounds, with_rounds
from alignlab.design.search import Cost, with_search
from alignlab.errors import ConfigError


def expanded(config: Mapping[str, Any], cost: Cost) -> Mapping[str, Any]:
    """Return the stages of a composed configuration, with those that its design adds.

    ``cost`` estimates one stage of a mapping of stages; only a budget of tokens or FLOPs asks.

    Raises:
        ConfigError: a design that names what is not there, or says what cannot be.
    """
    stages: Mapping[str, Any] = config["stages"]
    if not any(config.get(key) for key in ("rounds", "grid", "search", "budget", "assess")):
        return stages
    draft = Draft(stages)
    if config.get("rounds"):
        refuse_varied_rounds(config)
        draft = with_rounds(draft, config["rounds"])
    if config.get("grid"):
        draft = with_grid(draft, config["grid"])
    if config.get("search"):
        draft = with_search(draft, config, cost)
    elif config.get("budget"):
        raise ConfigError("budget: there is no search to spend it; choose one, as search=default.")
    if config.get("assess"):
        draft = with_assessments(draft, config["assess"])
    return draft.stages
