"""A study's files as `alignlab run` leaves them while it works, written by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from alignlab.lease import Lease
from alignlab.run import Run, Store

STARTED = 1000.0  # epoch of the study's start


def stage(name: str, *inputs: str, seconds: float = 0.0, **more: Any) -> dict[str, Any]:
    """One stage of study.json; its run is ``toy-<name>``."""
    return {
        "name": name,
        "kind": "toy",
        "inputs": {str(i): f"toy-{source}" for i, source in enumerate(inputs)},
        "seed": 0,
        "label": None,
        "seconds": seconds,
        **more,
    }


class StudyFolder:
    """A store with one study of toys."""

    def __init__(self, root: Path, *stages: dict[str, Any], width: int = 1) -> None:
        self.store = Store(root)
        self.folder = self.store.studies / "s"
        self.folder.mkdir(parents=True)
        names = {f"toy-{s['name']}": s for s in stages}
        study = {
            "name": "s",
            "command": "alignlab run study=s",
            "started": STARTED,
            "width": width,
            "jobs": [{"seed": 0, "stages": {s["name"]: run for run, s in names.items()}}],
            "stages": names,
        }
        (self.folder / "study.json").write_text(json.dumps(study))
        self.leases: list[Lease] = []

    def run(self, name: str) -> Run:
        return self.store.run("toy", name)

    def done(self, name: str, *, at: float = STARTED + 50, seconds: float = 10.0) -> None:
        run = self.run(name)
        run.update_record(seconds=seconds)
        (run.path / "DONE").write_text(json.dumps({"finished": at, "files": {}}))

    def begin(self, name: str, *rows: dict[str, Any], steps: int | None = None) -> None:
        """Let this process work on a run; ``end`` gives it up."""
        run = self.run(name)
        run.update_record(**({"steps": steps} if steps else {}))
        (run.path / "env.json").write_text(json.dumps({"time": time.time() - 7}))
        self.lease(run.path / "lease")
        self.rows(name, *rows)

    def lease(self, folder: Path) -> None:
        lease = Lease(folder)
        assert lease.acquire()
        self.leases.append(lease)

    def rows(self, name: str, *rows: dict[str, Any]) -> None:
        with (self.run(name).path / "metrics.jsonl").open("a") as stream:
            stream.writelines(json.dumps({"split": "train", **row}) + "\n" for row in rows)

    def told(self, name: str, status: str, reason: str = "", at: float = STARTED + 20) -> None:
        row = {"time": at, "run": f"toy-{name}", "name": name, "status": status, "reason": reason}
        with (self.folder / "outcomes.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def end(self) -> None:
        while self.leases:
            self.leases.pop().release()
