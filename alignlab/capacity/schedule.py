"""When the stages of a graph end, if so many of them run at a time."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence


def critical_path(seconds: Mapping[str, float], parents: Mapping[str, Sequence[str]]) -> float:
    """Longest chain of a graph whose stages stand after what they read.

    >>> critical_path({"a": 2.0, "b": 3.0, "c": 1.0}, {"a": [], "b": ["a"], "c": ["a"]})
    5.0
    """
    ends: dict[str, float] = {}
    for name, taken in seconds.items():
        before = (ends[p] for p in parents[name] if p in ends)
        ends[name] = taken + max(before, default=0.0)
    return max(ends.values(), default=0.0)


def makespan(
    seconds: Mapping[str, float], parents: Mapping[str, Sequence[str]], width: int
) -> float:
    """End of the last stage if the first one that can start is started, ``width`` at a time.

    >>> makespan({"a": 2.0, "b": 3.0, "c": 1.0}, {"a": [], "b": ["a"], "c": ["a"]}, 1)
    6.0
    """
    order = {name: place for place, name in enumerate(seconds)}
    waits = {name: sum(p in order for p in parents[name]) for name in seconds}
    children: dict[str, list[str]] = {name: [] for name in seconds}
    for name in seconds:
        for parent in parents[name]:
            if parent in order:
                children[parent].append(name)
    ready = [(order[name], name) for name in seconds if not waits[name]]
    heapq.heapify(ready)
    running: list[tuple[float, int, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < width:
            place, name = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[name], place, name))
        now, _, done = heapq.heappop(running)
        for child in children[done]:
            waits[child] -= 1
            if not waits[child]:
                heapq.heappush(ready, (order[child], child))
    return now
