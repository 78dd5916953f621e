"""What a study's folder says of it: its graph, what became of its stages, who works on it.

::

    studies/NAME/study.json       jobs, and every stage with its edges and estimated seconds
    studies/NAME/outcomes.jsonl   {"time", "run", "name", "status", "seconds", "reason"} as told
    studies/NAME/launchers/       a lease for every command that works on it now
    studies/NAME/record.json      what suffices to run it again elsewhere (study_record.py)
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from alignlab import files, typed
from alignlab.commands import study_record
from alignlab.launch.task import Outcome
from alignlab.plan import Plan
from alignlab.report.live import launcher_lease
from alignlab.run import Store
from alignlab.stages.stage import role_of

TOLD = ("run", "name", "status", "seconds", "reason")  # of an outcome


@dataclass(frozen=True)
class StudyFile:
    """The folder of one study, as the command writes it that runs the study."""

    name: str
    store: Store
    plan: Plan
    asked: Mapping[str, Any]  # command, overrides, engine, launch: what was asked for
    ending: Mapping[str, Any] = field(default_factory=dict)  # report, tracking: for a last job

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.store.studies / self.name

    def open(self, width: int, started: float | None = None) -> None:
        """Write the study's files before its first stage starts, ``width`` of them at a time.

        A command that plans several times ``started`` when it did so first.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "study.json"
        created = datetime.now().astimezone().isoformat(timespec="seconds")
        if (earlier := files.read_json(file)) is not None:
            created = earlier.get("created", created)
        content = {
            "name": self.name,
            "created": created,
            "command": self.asked["command"],
            "overrides": self.asked["overrides"],
            "jobs": study_record.jobs_of(self.plan),
            "started": time.time() if started is None else started,
            "width": width,
            "ending": dict(self.ending),
            "stages": {run: _stage(node) for run, node in self.plan.nodes.items()},
        }
        files.write_atomically(file, content)
        self.record()

    def record(self) -> None:
        """Write the study's record, with what its runs have come to."""
        file = self.folder / study_record.FILE
        created = (files.read_json(self.folder / "study.json") or {}).get("created")
        stated = {"name": self.name, "created": created, **self.asked}
        record = study_record.study_record(self.plan, self.store, stated, files.read_json(file))
        study_record.write(self.folder, record)

    def settled(self, outcome: Outcome) -> None:
        """Append what became of a stage."""
        told = {key: getattr(outcome, key) for key in TOLD}
        files.append(self.folder / "outcomes.jsonl", {"time": time.time(), **told})

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Show that a command works on the study, for as long as this process lives."""
        launchers = self.folder / "launchers"
        for old in launchers.glob("*"):
            if not launcher_lease(self.folder, old.name).live():
                shutil.rmtree(old, ignore_errors=True)  # of a command that was killed
        lease = launcher_lease(self.folder, f"{socket.gethostname()}-{os.getpid()}")
        lease.acquire()
        try:
            yield
        finally:
            lease.discard()


def _stage(node: Any) -> dict[str, Any]:
    roles = type(node.stage).roles
    tolerant = any(getattr(roles[role_of(r)], "tolerant", False) for r in node.parents)
    return {
        "name": node.name,
        "kind": node.kind,
        "inputs": dict(node.parents),
        "seed": node.stage.seed,
        "label": node.stage.label,
        "seconds": node.seconds,
        **({"tolerant": True} if tolerant else {}),
    }


def asked(
    command: str, overrides: Sequence[str], engine: Mapping[str, Any], launch: Any
) -> dict[str, Any]:
    """What was asked for, as the files of a study keep it."""
    return {
        "command": command,
        "overrides": list(overrides),
        "engine": dict(engine),
        "launch": typed.to_mapping(launch),
    }
