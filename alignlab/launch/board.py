"""Which stages of a plan can start now: the bookkeeping that every launcher shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.launch.task import Outcome
from alignlab.stages.stage import role_of

if TYPE_CHECKING:
    from alignlab.plan import Node, Plan


class Board:
    """State of every node of a plan while it is executed.

    A failed stage blocks its descendants, with the reason, and nothing else. A tolerant role of a
    stage waits for all stages behind it, and is content with one that is done.
    """

    def __init__(self, plan: Plan) -> None:
        self.nodes = plan.nodes
        self.outcomes: dict[str, Outcome] = {
            run: Outcome(run, node.name, "cached")
            for run, node in plan.nodes.items()
            if node.cached
        }
        for run in plan.counted():
            reason = "it failed before, and a stage that is done has counted it"
            self.outcomes[run] = Outcome(run, plan.nodes[run].name, "counted", reason=reason)
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
            if run not in self.outcomes and run not in self.started and self._can_start(node)
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
            settled += self._blocked_by(outcome)
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

    def _can_start(self, node: Node) -> bool:
        strict, tolerant = parents_of(node)
        return all(map(self._finished, strict)) and all(
            all(run in self.outcomes for run in behind) and any(map(self._finished, behind))
            for behind in tolerant.values()
        )

    def _blocked_by(self, outcome: Outcome) -> list[Outcome]:
        """Block every stage that cannot run any more, now that a node has failed."""
        found: list[Outcome] = []
        lost = [outcome.run]
        while lost:
            for run in self._children[lost.pop(0)]:
                if run not in self.outcomes and not self._possible(self.nodes[run]):
                    reason = f"{outcome.name} ({outcome.run}) failed"
                    found.append(Outcome(run, self.nodes[run].name, "blocked", reason=reason))
                    self.outcomes[run] = found[-1]
                    lost.append(run)
        return found

    def _possible(self, node: Node) -> bool:
        strict, tolerant = parents_of(node)
        return not any(map(self._lost, strict)) and not any(
            all(map(self._lost, behind)) for behind in tolerant.values()
        )

    def _lost(self, run: str) -> bool:
        return run in self.outcomes and not self._finished(run)

    def _downstream(self) -> dict[str, float]:
        # Starting the longest remaining path first shortens the whole; every stage counts a second
        # at least, so that depth decides where nothing is known of the costs.
        weight: dict[str, float] = {}
        for run in reversed(list(self.nodes)):
            below = max((weight[c] for c in self._children[run]), default=0.0)
            node = self.nodes[run]
            weight[run] = below + (0.0 if node.cached else max(node.seconds, 1.0))
        return weight


def parents_of(node: Node) -> tuple[list[str], dict[str, list[str]]]:
    """Runs that must all be done, and by tolerant role those of which one must be."""
    strict: list[str] = []
    tolerant: dict[str, list[str]] = {}
    for name, run in node.parents.items():
        role = role_of(name)
        if node.stage.roles[role].tolerant:
            tolerant.setdefault(role, []).append(run)
        else:
            strict.append(run)
    return strict, tolerant
