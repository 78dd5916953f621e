"""Runs of a plan that are finished in another place: found when it is made, brought when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from alignlab import seal
from alignlab.plan import Node, Plan
from alignlab.run import Store
from alignlab.upstream import Upstream, find, upstreams


def with_upstream(plan: Plan, configured: Iterable[str]) -> Plan:
    """Return the plan with the runs counted as cached that one of the places has finished.

    Raises:
        ConfigError: a place that is not there or does not answer.
    """
    places = upstreams(configured)
    for place in places:
        place.check()
    nodes: dict[str, Node] = {}
    for run, node in plan.nodes.items():
        found = None if node.cached else find(places, run)
        nodes[run] = node if found is None else replace(node, cached=True, upstream=found.where)
    return replace(plan, nodes=nodes)


def bring(plan: Plan, store: Store, note: Callable[[str], None]) -> None:
    """Put the runs of a plan that are elsewhere into the store.

    Those that a stage to be run stands on come whole, the others as far as a report reads them.

    Raises:
        TrainingError: what was found when the plan was made cannot be had now.
    """
    needed = behind(plan)
    for name, node in plan.nodes.items():
        run = store.run(node.kind, node.key)
        origin = node.upstream
        if not origin and name in needed and node.cached:
            origin = seal.read(run.path).get("upstream", "")
        if origin:
            Upstream(origin).bring(run, note, whole=name in needed)


def behind(plan: Plan) -> set[str]:
    """Runs that the stages to be run read, and those that these were made from."""
    waiting = [run for node in plan.pending() for run in node.parents.values()]
    found: set[str] = set()
    while waiting:
        run = waiting.pop()
        if run not in found:
            found.add(run)
            waiting += plan.nodes[run].parents.values()
    return found
