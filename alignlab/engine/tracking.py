"""Weights & Biases mirrors every run; the run folder stays the source.

A :class:`Tracker` listens to one run. All calls to W&B happen on a thread of their own, behind a
bounded queue, so a server that is slow, silent or wrong costs training nothing: what fails becomes
one warning, printed once and kept in the record. Without a key the run is logged offline (``wandb
sync`` uploads it later) and nobody is asked for one.
"""

from __future__ import annotations

import netrc
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from alignlab.errors import ConfigError
from alignlab.files import read_json
from alignlab.run import Run

if TYPE_CHECKING:
    from alignlab.engine.mirror import Mirror

Mode = Literal["offline", "online", "disabled"]

QUEUE_LENGTH = 10_000  # calls waiting for W&B; further ones are counted and dropped
CLOSE_SECONDS = 30.0  # how long the end of a stage waits for what is still in the queue


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Whether and where W&B mirrors the runs; never part of a run's key."""

    mode: Literal["auto", "offline", "online", "disabled"]  # auto: online exactly with a key
    project: str
    entity: str | None  # team or user; null = the key's default
    group: str | None = None  # null = the name of the study
    dir: Path | None = None  # folder of the local logs; null = $WANDB_DIR, else <store>/wandb

    def resolve(self) -> Mode:
        """Return what ``auto`` means here: ``$WANDB_MODE`` where set, else whether there is a key.

        Raises ConfigError for ``online`` without a key, where W&B itself would ask for one.
        """
        if int(os.environ.get("RANK", "0")) > 0:
            return "disabled"  # one process of a distributed run speaks for all
        mode = os.environ.get("WANDB_MODE", "auto") if self.mode == "auto" else self.mode
        if mode in ("offline", "dryrun"):
            return "offline"
        if mode == "disabled":
            return "disabled"
        if has_key():
            return "online"
        if mode == "auto":
            return "offline"
        raise ConfigError(
            "tracking.mode=online needs a W&B key and found none: run `wandb login`, set "
            "WANDB_API_KEY, or use tracking=offline."
        )


def has_key() -> bool:
    """Whether W&B would find credentials by itself: environment, its settings, or netrc."""
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = wandb.setup().settings
    if settings.api_key:
        return True
    named = os.environ.get("NETRC")
    candidates = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    host = urlsplit(str(settings.base_url)).hostname or ""
    for file in candidates:
        try:
            if file.is_file() and netrc.netrc(file).authenticators(host):
                return True
        except netrc.NetrcParseError as error:
            print(f"W&B: {error}; continuing without that file", file=sys.stderr)
    return False


class Tracker:
    """Mirrors one run to W&B while the ``with`` lasts; no failure of W&B leaves it."""

    def __init__(
        self, tracking: Tracking, run: Run, *, close_seconds: float = CLOSE_SECONDS
    ) -> None:
        self.tracking = tracking
        self.run = run
        self.mode: Mode = "disabled"
        self._close_seconds = close_seconds
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_LENGTH)
        self._thread: threading.Thread | None = None
        self._mirror: Mirror | None = None
        self._abandoned = False
        self._dropped = 0
        self._trouble: str | None = None
        self._told = False  # whether the record has the trouble
        self._recorded: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Start mirroring; returns at once, W&B connects on its own thread.

        Raises ConfigError for a mode that cannot be had (see :meth:`Tracking.resolve`).
        """
        if self.tracking.mode == "disabled":
            return self
        # W&B's telemetry about itself makes the exit of a process wait for a silent server.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            # On this thread: two threads that import packages with cycles can see half of one.
            from alignlab.engine.mirror import Mirror, unreachable

            self.mode = self.tracking.resolve()
            if self.mode == "online" and unreachable.is_set():
                self.mode = "offline"
        except ConfigError:
            raise
        except Exception as error:
            self._fail("start", error)
            self._settle()
        if self.mode == "disabled":
            return self
        earlier = self.run.record.get("wandb") or {}
        identity = str(earlier.get("id") or f"{self.run.name}-{secrets.token_hex(3)}")
        place = {
            "id": identity,
            "mode": self.mode,
            "dir": None,
            "url": earlier.get("url"),
            "earlier_dirs": [*earlier.get("earlier_dirs", []), *filter(None, [earlier.get("dir")])],
        }
        self._record(place)
        self._mirror = Mirror(self._describe(identity), self.mode, self._warn)
        self.run.listeners.append(self)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()
        self._call(self._mirror.open)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the W&B run, waiting a limited time for what is still to be sent."""
        from alignlab.engine.mirror import unreachable

        if self._mirror is None or self._thread is None:
            return
        self.run.listeners.remove(self)
        mirror, summary, failed = self._mirror, self.run.summary(), error is not None
        deadline = time.monotonic() + self._close_seconds
        try:
            self._queue.put(lambda: mirror.close(summary, failed), timeout=self._close_seconds)
            self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:
            self._abandoned = True
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._abandoned = True
            unreachable.set()
            self._fail("finish", TimeoutError(f"no answer within {self._close_seconds:g} s"))
        if self._dropped:
            self._fail("keep up", RuntimeError(f"{self._dropped} calls were left out"))
        self._settle()

    def logged(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Mirror the metrics of one step."""
        assert self._mirror is not None
        mirror, values = self._mirror, dict(metrics)
        self._call(lambda: mirror.log(step, split, values))
        self._settle()

    def sampled(self, row: Mapping[str, Any]) -> None:
        """Keep a sample row for the table."""
        assert self._mirror is not None
        mirror, values = self._mirror, dict(row)
        self._call(lambda: mirror.sample(values))

    def _describe(self, identity: str) -> dict[str, Any]:
        """Arguments of ``wandb.init`` that say which run this is."""
        record = self.run.record
        config = read_json(self.run.path / "config.json") or {}
        environment = read_json(self.run.path / "env.json") or {}
        folder = self.tracking.dir or os.environ.get("WANDB_DIR") or self.run.path.parent
        return {
            "id": identity,
            "name": f"{record.get('label') or self.run.kind} s{record.get('seed', 0)}",
            "project": self.tracking.project,
            "entity": self.tracking.entity,
            "group": self.tracking.group or record.get("study"),
            "job_type": self.run.kind,
            "tags": [self.run.kind],
            "dir": str(folder),
            "config": {
                **config,
                "run": self.run.name,
                "run_folder": str(self.run.path),
                "run_inputs": record.get("inputs", {}),
                "git": environment.get("git"),
            },
        }

    def _call(self, job: Callable[[], None]) -> None:
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            self._dropped += 1

    def _work(self) -> None:
        """Make the calls, one after another; nothing that W&B raises ends more than its call."""
        while (job := self._queue.get()) is not None:
            if self._abandoned:
                return
            try:
                job()
            except (Exception, SystemExit) as error:
                self._fail("log", error)

    def _fail(self, what: str, error: BaseException) -> None:
        text = " ".join(str(error).split())[:300]
        self._warn(
            f"W&B could not {what} ({type(error).__name__}: {text}); training goes on, and "
            f"{self.run.path} has everything."
        )

    def _warn(self, message: str) -> None:
        """Keep and print the first trouble; the later ones are mostly its echo."""
        if self._trouble is None:
            self._trouble = message
            print(message, file=sys.stderr, flush=True)

    def _settle(self) -> None:
        """Write to the record what became known; on the thread that owns the run."""
        if self._mirror is not None and self._mirror.place:
            self._record({**self._recorded, **self._mirror.place})
        if self._trouble is not None and not self._told:
            self._told = True
            self.run.warn(self._trouble)

    def _record(self, place: dict[str, Any]) -> None:
        if place != self._recorded:
            self._recorded = place
            self.run.update_record(wandb=place)
