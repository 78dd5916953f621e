"""A study while it runs, from its files alone: the state of every stage and how far it has come.

Nothing talks to the process that runs the study, so this works from another terminal, on another
machine that sees the same folder, and after the study has ended or was killed. Of stages that were
handed to a scheduler, the scheduler is asked (`report/queue.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from alignlab import files
from alignlab.errors import DataError
from alignlab.lease import Lease
from alignlab.report.queue import Queue
from alignlab.run import Run, Store

Status = Literal["waiting", "queued", "running", "done", "cached", "failed", "blocked", "stopped"]
SETTLED = ("done", "cached", "failed", "blocked", "stopped")


@dataclass(frozen=True)
class LiveState:
    """How far a study has come: numbers of stages, for the page written while it runs."""

    done: int  # finished, by this study or an earlier one
    total: int
    running: int
    failed: int  # failed, or blocked by one that failed


@dataclass(frozen=True)
class StageState:
    """One stage of a study as its files show it now."""

    run: str
    name: str
    kind: str
    inputs: Mapping[str, str]  # role -> run
    seed: int | None
    estimate: float  # seconds, by the plan; 0 = unknown
    status: Status = "waiting"
    reason: str = ""  # why it failed, what blocks it, or why it is still queued
    spent: float = 0.0  # seconds since it started, or that it took
    finished: float = 0.0  # epoch of its end
    steps: int | None = None  # optimizer steps it will take; None where it takes none
    rows: tuple[Mapping[str, Any], ...] = ()  # of metrics.jsonl, split train, while it runs
    tolerant: bool = False  # may run although an input failed
    job: str = ""  # of a scheduler, that executes it
    log: str = ""  # file of what it printed, where it has one of its own

    @property
    def step(self) -> int:
        """Optimizer steps that are done."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def curve(self, metric: str) -> list[float]:
        """Values of a training metric, in the order of the steps."""
        return [float(row[metric]) for row in self.rows if metric in row]


@dataclass(frozen=True)
class Snapshot:
    """A study at one moment."""

    study: str
    command: str
    started: float  # epoch of the newest `alignlab run`; 0 = unknown
    now: float
    width: int  # stages at a time
    active: bool  # whether a command works on it, or a stage is being executed
    stages: tuple[StageState, ...]  # inputs before the stages that read them
    trouble: str = ""  # why less is known than could be

    def of(self, *statuses: Status) -> list[StageState]:
        """Stages in one of these states."""
        return [stage for stage in self.stages if stage.status in statuses]

    @property
    def elapsed(self) -> float:
        """Seconds from the start to now, or to the end of the last stage where nothing runs."""
        ends = [stage.finished for stage in self.of("done")]
        end = self.now if self.active else max(ends, default=self.started)
        return max(0.0, end - self.started) if self.started else 0.0

    def live(self) -> LiveState:
        """Counts for the page."""
        return LiveState(
            done=len(self.of("done", "cached")),
            total=len(self.stages),
            running=len(self.of("running")),
            failed=len(self.of("failed", "blocked")),
        )


def newest(store: Store) -> str | None:
    """Name of the study that was started last."""
    found = list(store.studies.glob("*/study.json"))
    return max(found, key=lambda file: file.stat().st_mtime).parent.name if found else None


def launcher_lease(folder: Path, name: str) -> Lease:
    """Sign of life of one command that works on the study in ``folder``."""
    return Lease(folder / "launchers" / name)


@dataclass
class Watcher:
    """Looks at one study again and again; what is settled for good is read once.

    Raises:
        DataError: the study file is missing or damaged.
    """

    study: str
    store: Store
    _planned: tuple[int, dict[str, Any], list[StageState]] | None = None  # of one version of it
    _finished: dict[str, StageState] = field(default_factory=dict)
    _tails: dict[str, Tail] = field(default_factory=dict)
    _queue: Queue | None = None

    def look(self) -> Snapshot:
        """Read the files as they are now."""
        folder = self.store.studies / self.study
        raw, planned = self._plan(folder / "study.json")
        started = float(raw.get("started") or 0.0)
        said = {row["run"]: row for row in _outcomes(folder, started)}
        here = {f.name for f in self.store.root.iterdir()} if self.store.root.is_dir() else set()
        seen = [self._state(stage, here, started) for stage in planned]
        self._queue = self._queue or Queue(self.store, self.study)
        seen, ended = self._queue.look(seen, started)
        said |= ended
        leases = [launcher_lease(folder, f.name) for f in folder.glob("launchers/*")]
        active = (
            any(lease.live() for lease in leases)
            or any(stage.status in ("queued", "running") for stage in seen)
            or self._queue.goes_on
        )
        return Snapshot(
            study=self.study,
            command=str(raw.get("command", "")),
            started=started,
            now=time.time(),
            width=int(raw.get("width") or 1),
            active=active,
            stages=_settle(seen, said, active),
            trouble=self._queue.trouble,
        )

    def _plan(self, file: Path) -> tuple[dict[str, Any], list[StageState]]:
        """The study file and its stages, read again when it was written again."""
        stamp = file.stat().st_mtime_ns if file.is_file() else 0
        if self._planned is None or self._planned[0] != stamp or "stages" not in self._planned[1]:
            raw = _study(file)
            self._planned = (stamp, raw, _graph(raw, self.store))
        return self._planned[1:]

    def _state(self, stage: StageState, here: set[str], started: float) -> StageState:
        if stage.run in self._finished:
            return self._finished[stage.run]
        if stage.run not in here:
            return stage
        run = Run(self.store.root / stage.run)
        record = run.record
        if run.done:
            done = files.read_json(run.path / "DONE") or {}
            at = float(done.get("finished") or 0.0)
            spent = float(record.get("seconds") or 0.0)
            status: Status = "cached" if at < started else "done"
            found = replace(stage, status=status, spent=spent, finished=at)
            self._finished[stage.run] = found
            self._tails.pop(stage.run, None)
            return found
        if not run.live:
            return replace(stage, status="stopped", reason=str(record.get("error") or ""))
        began = (files.read_json(run.path / "env.json") or {}).get("time")
        tail = self._tails.setdefault(stage.run, Tail(run.path / "metrics.jsonl"))
        return replace(
            stage,
            status="running",
            spent=max(0.0, time.time() - float(began)) if began else 0.0,
            steps=record.get("steps"),
            rows=tuple(row for row in tail.read() if row.get("split") == "train"),
        )


@dataclass
class Tail:
    """Rows of a growing file of JSON lines; each line is read once."""

    file: Path
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _read: int = 0  # bytes

    def read(self) -> list[dict[str, Any]]:
        """Return all rows so far; a line that is still being written is left for later."""
        if not self.file.is_file():
            return []
        if self.file.stat().st_size < self._read:  # rewound: the run was resumed
            self._rows, self._read = [], 0
        with self.file.open("rb") as stream:
            stream.seek(self._read)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            row = json.loads(line)
            self._rows.append({k: v if k == "split" else files.number(v) for k, v in row.items()})
        return self._rows


def _study(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error


def _outcomes(folder: Path, since: float) -> list[dict[str, Any]]:
    """What the launcher said of the stages, by the newest command."""
    return [row for row in files.rows(folder / "outcomes.jsonl") if row["time"] >= since]


def _graph(raw: Mapping[str, Any], store: Store) -> list[StageState]:
    """Stages of the study file; of an older one, what its jobs and run records tell."""
    if "stages" in raw:
        return [
            StageState(
                run=run,
                name=stage["name"],
                kind=stage["kind"],
                inputs=stage["inputs"],
                seed=stage.get("seed"),
                estimate=float(stage.get("seconds") or 0.0),
                tolerant=bool(stage.get("tolerant")),
            )
            for run, stage in raw["stages"].items()
        ]
    named = {run: name for job in raw.get("jobs", []) for name, run in job["stages"].items()}
    found = []
    for run, name in named.items():
        record = files.read_json(store.root / run / "record.json") or {}
        inputs = {k: v for k, v in record.get("inputs", {}).items() if v in named}
        kind = run.partition("-")[0]
        found.append(StageState(run, name, kind, inputs, record.get("seed"), 0.0))
    return found


def _settle(
    seen: list[StageState], said: Mapping[str, Mapping[str, Any]], active: bool
) -> tuple[StageState, ...]:
    """Tell failed, blocked and stopped stages from those whose turn will come."""
    states: dict[str, StageState] = {}
    cancelled = {run for run, outcome in said.items() if outcome["status"] == "stopped"}
    for stage in seen:
        found = stage
        outcome = said.get(stage.run, {})
        if stage.status in ("waiting", "queued", "stopped"):
            inputs = [states[i] for i in stage.inputs.values() if i in states]
            broken = [why for i in inputs if (why := _why_blocked(i, i.run in cancelled))]
            if outcome.get("status") in ("failed", "counted"):
                found = replace(stage, status="failed", reason=outcome["reason"])
            elif stage.status == "stopped" and not active and stage.reason:
                found = replace(stage, status="failed")
            elif outcome.get("status") == "blocked":
                found = replace(stage, status="blocked", reason=outcome["reason"])
            elif broken and not stage.tolerant:
                found = replace(stage, status="blocked", reason=broken[0])
            elif stage.run in cancelled:
                found = replace(stage, status="stopped", reason=outcome["reason"])
            elif stage.status == "stopped" and active:  # of an earlier command; it will go on
                found = replace(stage, status="waiting", reason="")
        states[stage.run] = found
    return tuple(states.values())


def _why_blocked(source: StageState, cancelled: bool) -> str:
    """Why what reads a stage cannot run: the first cause, in few words; empty where it can."""
    if source.status == "blocked":
        return source.reason
    if source.status == "failed":
        return f"{source.name} failed"
    return f"{source.name} was cancelled" if cancelled and source.status == "stopped" else ""
