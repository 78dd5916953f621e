"""Which stages of a plan can start now: the bookkeeping that every launcher shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from alignlab.launch.task import Outcome

if TYPE_CHECKING:
    from alignlab.plan import Node, Plan


class Board:
    """State of every node of a plan while it is executed.

    A failed stage blocks its descendants, with the reason, and nothing else.
    """

    def __init__(self, plan: Plan) -> None:
        self.nodes = plan.nodes
        self.outcomes: dict[str, Outcome] = {
            run: Outcome(run, node.name, "cached")
            for run, node in plan.nodes.items()
            if node.cached
        }
        self.started: set[str] = set()
        self._children: dict[str, list[str]] = {run: [] for run in plan.nodes}
        for run, node in plan.nodes.items():
            for parent in dict.fromkeys(node.parents.values()):
                self._children[parent].append(run)
        self._rank = {run: i for i, run in enumerate(plan.nodes)}
        self._weight = self._downstream()

    def ready(self) -> list[Node]:
        """Nodes whose inputs are finished, the head of the longest remaining path first."""
        found = [
            node
            for run, node in self.nodes.items()
            if run not in self.outcomes
            and run not in self.started
            and all(self._finished(parent) for parent in node.parents.values())
        ]
        return sorted(found, key=lambda n: (-self._weight[n.run], self._rank[n.run]))

    def start(self, run: str) -> None:
        """Note that a node is being executed."""
        self.started.add(run)

    def settle(self, outcome: Outcome) -> list[Outcome]:
        """Note what became of a node; return it and the descendants that it blocks."""
        settled = [outcome]
        self.outcomes[outcome.run] = outcome
        if outcome.status == "failed":
            reason = f"{outcome.name} ({outcome.run}) failed"
            settled += [self._block(run, reason) for run in self._descendants(outcome.run)]
        return settled

    @property
    def finished(self) -> bool:
        """Whether every node has an outcome."""
        return len(self.outcomes) == len(self.nodes)

    def width(self) -> int:
        """How many nodes can ever be executed at one time, if all take equally long."""
        depth: dict[str, int] = {}
        for run, node in self.nodes.items():
            if not node.cached:
                above = [depth[p] for p in node.parents.values() if p in depth]
                depth[run] = max(above, default=-1) + 1
        levels = list(depth.values())
        return max((levels.count(level) for level in set(levels)), default=0)

    def alone(self) -> set[str]:
        """Runs to do that no other run to do can be executed beside: each is above or below."""
        todo = [run for run, node in self.nodes.items() if not node.cached]
        above = {run: 1 << i for i, run in enumerate(todo)}
        below = dict(above)
        for run in todo:
            for parent in self.nodes[run].parents.values():
                above[run] |= above.get(parent, 0)
        for run in reversed(todo):
            for child in self._children[run]:
                below[run] |= below.get(child, 0)
        everything = (1 << len(todo)) - 1
        return {run for run in todo if above[run] | below[run] == everything}

    def results(self) -> list[Outcome]:
        """Outcomes in the plan's order."""
        return [self.outcomes[run] for run in self.nodes if run in self.outcomes]

    def _finished(self, run: str) -> bool:
        return run in self.outcomes and self.outcomes[run].status in ("cached", "done")

    def _block(self, run: str, reason: str) -> Outcome:
        outcome = Outcome(run, self.nodes[run].name, "blocked", reason=reason)
        self.outcomes.setdefault(run, outcome)
        return outcome

    def _descendants(self, run: str) -> Iterable[str]:
        found: dict[str, None] = {}
        waiting = list(self._children[run])
        while waiting:
            child = waiting.pop(0)
            if child not in found and child not in self.outcomes:
                found[child] = None
                waiting += self._children[child]
        return list(found)

    def _downstream(self) -> dict[str, float]:
        # Starting the longest remaining path first shortens the whole; every stage counts a second
        # at least, so that depth decides where nothing is known of the costs.
        weight: dict[str, float] = {}
        for run in reversed(list(self.nodes)):
            below = max((weight[c] for c in self._children[run]), default=0.0)
            node = self.nodes[run]
            weight[run] = below + (0.0 if node.cached else max(node.seconds, 1.0))
        return weight
