"""How long a study will still take: the plan's seconds, corrected by what its stages have taken."""

from __future__ import annotations

import heapq
import itertools
import statistics
from collections.abc import Mapping, Sequence

from alignlab.report.live import Snapshot, StageState

RECENT = 20  # steps whose pace counts


def remaining(snapshot: Snapshot) -> float | None:
    """Seconds until the last stage that can still run has ended; None where nothing is known."""
    todo = snapshot.of("running", "queued", "waiting")
    corrections = factors(snapshot)
    left = {stage.run: stage_left(stage, corrections) for stage in todo}
    if not todo:
        return 0.0
    taken = {kind: statistics.median(spent) for kind, spent in _taken(snapshot).items()}
    known = [*taken.values(), *(seconds for seconds in left.values() if seconds is not None)]
    if not known:
        return None
    typical = statistics.median(known)  # for a stage of which neither plan nor study knows
    seconds = {}
    for stage in todo:
        value = left[stage.run]
        whole = max(0.0, taken.get(stage.kind, typical) - stage.spent)
        seconds[stage.run] = whole if value is None else value
    return schedule(todo, seconds, max(snapshot.width, len(snapshot.of("running"))))


def stage_left(stage: StageState, corrections: Mapping[str, float]) -> float | None:
    """Seconds that a running or waiting stage still needs; None where nothing is known."""
    pace = step_seconds(stage)
    if stage.steps and pace is not None:
        return max(0.0, (stage.steps - stage.step) * pace)
    if stage.estimate <= 0:
        return None
    whole = stage.estimate * corrections.get(stage.kind, corrections.get("", 1.0))
    return max(0.0, whole - stage.spent)


def step_seconds(stage: StageState) -> float | None:
    """Median time of the newest steps: a pause of a resumed run does not count."""
    rows = stage.rows[-RECENT - 1 :]
    paces = [
        (after["time"] - before["time"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(rows)
        if after["step"] > before["step"]
    ]
    return statistics.median(paces) if paces else None


def factors(snapshot: Snapshot) -> dict[str, float]:
    """Seconds taken over seconds planned, by kind of stage; under ``""`` that of all stages."""
    taken: dict[str, list[tuple[float, float]]] = {}
    for stage in snapshot.of("done"):
        if stage.estimate > 0 and stage.spent > 0:
            for kind in (stage.kind, ""):
                taken.setdefault(kind, []).append((stage.spent, stage.estimate))
    return {
        kind: sum(spent for spent, _ in pairs) / sum(planned for _, planned in pairs)
        for kind, pairs in taken.items()
    }


def _taken(snapshot: Snapshot) -> dict[str, list[float]]:
    """Seconds that finished stages took, by kind."""
    found: dict[str, list[float]] = {}
    for stage in snapshot.of("done"):
        found.setdefault(stage.kind, []).append(stage.spent)
    return found


def schedule(stages: Sequence[StageState], seconds: Mapping[str, float], width: int) -> float:
    """Time until all have ended, when ``width`` at a time start in this order as inputs finish."""
    waiting = {s.run: {i for i in s.inputs.values() if i in seconds} for s in stages}
    readers: dict[str, list[str]] = {}
    for run, inputs in waiting.items():
        for source in inputs:
            readers.setdefault(source, []).append(run)
    rank = {s.run: (s.status != "running", i) for i, s in enumerate(stages)}
    ready = [(rank[run], run) for run, inputs in waiting.items() if not inputs]
    heapq.heapify(ready)
    busy: list[tuple[float, str]] = []
    now = 0.0
    while ready or busy:
        while ready and len(busy) < width:
            _, run = heapq.heappop(ready)
            heapq.heappush(busy, (now + seconds[run], run))
        now, ended = heapq.heappop(busy)
        for reader in readers.get(ended, []):
            waiting[reader].discard(ended)
            if not waiting[reader]:
                heapq.heappush(ready, (rank[reader], reader))
    return now
