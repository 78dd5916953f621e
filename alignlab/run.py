"""A run is a folder named by what it depends on; the store is the folder of all runs.

::

    <store>/<kind>-<key>/
      record.json    what was run and what came out; replaced atomically
      env.json       code, versions, hardware, command of every process that worked on it
      metrics.jsonl  {"step", "time", "split", metric: number, ...}
      samples.jsonl  rows of text and numbers
      model/         the result        state/   what resuming needs; gone when done
      lease/         who works on it   DONE     sha256 of every file, written last

A folder without DONE is resumed, never trusted. Numbers that are not finite are written as the
text "nan", "inf", "-inf" and read back as numbers. In samples.jsonl, where such text may be real,
the row also names the fields in "nonfinite".
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from alignlab import files, lease, seal, typed
from alignlab.environment import environment
from alignlab.errors import ConfigError, TrainingError, did_you_mean
from alignlab.files import write_atomically

_NAME = re.compile(r"(?P<kind>[a-z][a-z0-9_]*)-(?P<key>[0-9a-z]+)")


class Listener(Protocol):
    """Hears what a run writes, after it is on disk; must never raise."""

    def logged(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Metrics of one step were written."""
        ...

    def sampled(self, row: Mapping[str, Any]) -> None:
        """Sample row was written."""
        ...


def content_key(obj: Any) -> str:
    """Name content: 12 hex digits of the sha256 of its canonical JSON (see typed.to_mapping)."""
    plain = typed.to_mapping(obj)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Run:
    """One run folder. Making the object touches nothing; the first write makes the folder."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        match = _NAME.fullmatch(self.path.name)
        if match is None:
            raise ValueError(f"not a run folder: {self.path} (its name must be <kind>-<key>)")
        self.kind, self.key = match["kind"], match["key"]
        self.name = self.path.name
        self.model_dir = self.path / "model"
        self.state_dir = self.path / "state"
        self.listeners: list[Listener] = []
        self._lease: lease.Lease | None = None
        self._mended: set[str] = set()

    @property
    def done(self) -> bool:
        """Whether the run is finished; only then may its files be trusted."""
        return (self.path / "DONE").is_file()

    def log(self, step: int, metrics: Mapping[str, float], split: str = "train") -> None:
        """Append one line to metrics.jsonl, flushed, and tell the listeners.

        Raises TypeError for anything but Python numbers: a tensor here would be a hidden sync.
        """
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"metric {name!r} is a {type(value).__name__}, not a Python number")
            if name in ("step", "time", "split"):
                raise ValueError(f"a metric cannot be called {name!r}")
        row = {"step": int(step), "time": time.time(), "split": split, **metrics}
        self._append("metrics.jsonl", typed.to_mapping(row))
        for listener in self.listeners:
            listener.logged(step, split, metrics)

    def sample(self, row: Mapping[str, Any]) -> None:
        """Append one row to samples.jsonl and tell the listeners."""
        plain = typed.to_mapping(row)
        odd = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
        self._append("samples.jsonl", {**plain, "nonfinite": odd} if odd else plain)
        for listener in self.listeners:
            listener.sampled(row)

    def update_record(self, **fields: Any) -> None:
        """Set fields of record.json; the file is replaced in one step, never half written."""
        if self.done:
            raise RuntimeError(f"{self.name} is done; its record can no longer change")
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "record.json", {**self.record, **fields})

    def warn(self, message: str) -> None:
        """Add a warning to the record, once."""
        if message not in (warnings := self.record.get("warnings", [])):
            self.update_record(warnings=[*warnings, message])

    @property
    def record(self) -> dict[str, Any]:
        """record.json as it is on disk; empty before the first write."""
        return files.read_json(self.path / "record.json") or {}

    def summary(self) -> dict[str, float]:
        """Return the numbers that the stage reports, by name."""
        summary = self.record.get("summary", {})
        return {name: files.number(value) for name, value in summary.items()}

    def metrics(self, split: str | None = None) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl in the order of writing, of one split or of all."""
        rows = (
            {k: v if k == "split" else files.number(v) for k, v in row.items()}
            for row in files.rows(self.path / "metrics.jsonl")
        )
        return [row for row in rows if split is None or row["split"] == split]

    def samples(self) -> list[dict[str, Any]]:
        """Rows of samples.jsonl in the order of writing."""
        rows = ((row.pop("nonfinite", []), row) for row in files.rows(self.path / "samples.jsonl"))
        return [
            {k: files.NONFINITE[v] if k in odd else v for k, v in row.items()} for odd, row in rows
        ]

    @contextmanager
    def claim(
        self,
        note: Callable[[str], None] = print,
        *,
        poll: float = lease.POLL_SECONDS,
        heartbeat: float = lease.HEARTBEAT_SECONDS,
        stale: float = lease.STALE_SECONDS,
    ) -> Iterator[Run]:
        """Own the run inside the ``with``; look at ``run.done`` first.

        While another live process owns it this waits, and returns with ``done`` true when that one
        finished; a dead owner is taken over from. ``note`` receives a line about each. Raises
        RuntimeError when this thread already owns the run.
        """
        mine = lease.Lease(self.path / "lease", heartbeat=heartbeat, stale=stale)
        if not lease.wait(mine, lambda: seal.is_there_now(self.path), note, self.name, poll):
            yield self
            return
        self._lease = mine
        try:
            self._note_environment()
            yield self
        finally:
            self._lease = None
            if self.done:
                mine.discard()
            else:
                mine.release()

    @property
    def live(self) -> bool:
        """Whether a process owns the run now."""
        return lease.Lease(self.path / "lease").live()

    def rewind(self, step: int) -> None:
        """Drop metric and sample lines beyond ``step``, so that a resumed run writes each once.

        A line that was torn by a kill goes too; rows without a step stay.
        """
        for name in ("metrics.jsonl", "samples.jsonl"):
            file = self.path / name
            if file.is_file():
                kept = [row for row in files.rows(file) if row.get("step", step) <= step]
                files.write_lines(file, kept)

    def finish(self) -> None:
        """Hash all files, write DONE last and atomically, then remove the resume state.

        Raises TrainingError when another process has taken the run over.
        """
        self._check_owned(certainly=True)
        self.path.mkdir(parents=True, exist_ok=True)
        seal.put(self.path)
        shutil.rmtree(self.state_dir, ignore_errors=True)

    def verify(self) -> list[str]:
        """Compare the files with DONE; one line for each difference, none when intact."""
        return seal.differences(self.path) if self.done else [f"{self.name} is not finished"]

    def missing(self) -> list[str]:
        """Files of a finished run that are not here: left in the place that it was brought from.

        A run that was made here has all of its files.
        """
        said = seal.read(self.path)
        names = said["files"] if "upstream" in said else ()
        return [name for name in names if not (self.path / name).exists()]

    def _check_owned(self, *, certainly: bool = False) -> None:
        mine = self._lease
        lost = mine is not None and (not mine.confirm() if certainly else mine.check_lost())
        if lost or (certainly and seal.is_there_now(self.path)):
            raise TrainingError(
                f"{self.name} was taken over by another process while this one did not respond; "
                "this process stops, the other goes on."
            )

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if self._lease is not None and self._lease.lost:
            self._check_owned()
        file = self.path / name
        if name not in self._mended:
            self.path.mkdir(parents=True, exist_ok=True)
            files.cut_torn_line(file)
            self._mended.add(name)
        files.append(file, row)

    def _note_environment(self) -> None:
        """Write env.json: this process, and the ones that worked on the run before it."""
        file = self.path / "env.json"
        before = files.read_json(file)
        earlier = [*before.pop("earlier"), before] if before else []
        write_atomically(file, {**environment(), "time": time.time(), "earlier": earlier})


class Store:
    """The folder of all runs, with the cache and the studies that name them."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.cache = self.root / "cache"
        self.studies = self.root / "studies"

    def run(self, kind: str, key: str) -> Run:
        """Return the run of that kind and key, whether it exists or not."""
        return Run(self.root / f"{kind}-{key}")

    def runs(self) -> list[Run]:
        """All runs in the store, by name."""
        folders = sorted(self.root.iterdir()) if self.root.is_dir() else []
        return [Run(f) for f in folders if f.is_dir() and _NAME.fullmatch(f.name)]

    def find(self, prefix: str) -> Run:
        """Find the one run whose name or key starts with ``prefix``; ConfigError otherwise."""
        runs = self.runs()
        wanted = prefix.rstrip("/").rpartition("/")[2]
        exact = [run for run in runs if wanted in (run.name, run.key)]
        near = [run for run in runs if run.name.startswith(wanted) or run.key.startswith(wanted)]
        found = exact or near
        if not wanted or not found:
            suggestion = did_you_mean(wanted, [run.name for run in runs])
            raise ConfigError(f"no run '{prefix}' in {self.root}.{suggestion}")
        if len(found) > 1:
            names = ", ".join(run.name for run in found)
            raise ConfigError(f"'{prefix}' fits {len(found)} runs: {names}. Give more of the key.")
        return found[0]

    def gc(self) -> list[Run]:
        """List the runs that are neither done nor worked on: failed, killed or interrupted ones."""
        return [run for run in self.runs() if not run.done and not run.live]

    def prune(self) -> list[Run]:
        """List the runs that no study needs, neither as a stage nor as an input of one."""
        needed = {name for study in self.studies.glob("*/study.json") for name in _named_by(study)}
        runs, waiting = {run.name: run for run in self.runs()}, list(needed)
        while waiting:
            record = runs[name].record if (name := waiting.pop()) in runs else {}
            used = [*record.get("inputs", {}).values(), record.get("reference")]
            waiting += (new := set(filter(None, used)) - needed)
            needed |= new
        return [run for name, run in runs.items() if name not in needed and not run.live]

    def delete(self, run: Run) -> None:
        """Delete a run's folder; refused while a process works on it."""
        if run.live:
            raise ConfigError(f"{run.name} is being worked on; stop that process first.")
        doomed = self.root / f".deleted-{run.name}-{uuid.uuid4().hex[:8]}"
        run.path.rename(doomed)  # out of sight at once, so that nobody reads a half-deleted run
        shutil.rmtree(doomed, ignore_errors=True)  # NFS keeps what is open somewhere


def _named_by(study: Path) -> list[str]:
    jobs = (files.read_json(study) or {}).get("jobs", [])
    return [name for job in jobs for name in job.get("stages", {}).values()]
