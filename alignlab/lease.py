"""One owner at a time for a run folder, among processes and machines that share a file system.

A lease is a numbered file in ``<run>/lease/``; the highest number owns the run. Taking over means
creating the next number with O_EXCL, which one process alone can do, so two takers of a dead lease
cannot both win. Numbers are never reused while a higher one exists, so a slow taker that still
believes in an old number finds a higher one afterwards and withdraws.

An owner is dead when its process is gone, if it ran on this machine (process id, start time, boot
and pid namespace are compared), and otherwise when its heartbeat (the file's modification time,
renewed by a thread) stands still for ``stale`` seconds *of the observer's clock*: clocks of
different machines are never compared.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from alignlab import files

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
POLL_SECONDS = 1.0
_PROCFS = Path("/proc/self/stat").exists()


class Lease:
    """The lease of one run folder, as seen by one process; ``acquire`` it, then ``release`` it."""

    def __init__(
        self, folder: Path, *, heartbeat: float = HEARTBEAT_SECONDS, stale: float = STALE_SECONDS
    ) -> None:
        self.folder = folder
        self.heartbeat = heartbeat
        self.stale = stale
        self.lost = False
        self._number: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched: tuple[int, float] | None = None  # heartbeat of another owner
        self._watched_since = 0.0

    def acquire(self) -> bool:
        """Try once to become the owner; True when this process now owns the run.

        Raises RuntimeError when this very thread already owns it: it would wait for itself.
        """
        current = _highest(self.folder)
        if current and self._alive(current):
            owner, mine = _read(self._file(current)) or {}, identity()
            if all(owner.get(name) == mine[name] for name in ("machine", "pid", "thread")):
                raise RuntimeError(f"this thread already owns the lease in {self.folder}")
            return False
        number = current + 1
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self._file(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except (FileExistsError, FileNotFoundError):
            return False  # another taker was faster, or the owner finished and cleared the folder
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(identity(), file)
        if _highest(self.folder) != number:
            self._file(number).unlink(missing_ok=True)
            return False
        for older in _numbers(self.folder):
            if older < number:
                self._file(older).unlink(missing_ok=True)
        self._number, self.lost = number, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Give the run up, so that the next process can take it at once."""
        self._rest()
        if self._number is not None and not self.check_lost():
            # An empty mark, not a deletion: the number must stay taken (see the module docstring).
            files.replace(self._file(self._number), json.dumps({**identity(), "released": True}))
        self._number = None

    def discard(self) -> None:
        """Remove all leases of a run that is done: nobody needs to own it any more."""
        self._rest()
        self._number = None
        shutil.rmtree(self.folder, ignore_errors=True)  # a waiter may be doing the same

    def _rest(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def check_lost(self) -> bool:
        """Whether another process has taken this lease over (this one seemed dead to it)."""
        if self._number is not None and _highest(self.folder) > self._number:
            self.lost = True
        return self.lost

    def owner(self) -> dict[str, Any] | None:
        """Return what the present owner wrote about itself; None without an owner."""
        return _read(self._file(_highest(self.folder)))

    def live(self) -> bool:
        """Whether some process owns the run now, judged at once.

        An owner on another machine counts as live for ten stale periods by the file's own time,
        because one look cannot tell a heartbeat from its absence.
        """
        number = _highest(self.folder)
        if not number:
            return False
        known = self._known_alive(number)
        return time.time() - self._beats(number)[1] < 10 * self.stale if known is None else known

    def _alive(self, number: int) -> bool:
        """Whether the owner of ``number`` is at work, from what was seen so far."""
        known = self._known_alive(number)
        if known is not None:
            return known
        beat = self._beats(number)
        if beat != self._watched:
            self._watched, self._watched_since = beat, time.monotonic()
        return time.monotonic() - self._watched_since < self.stale

    def _known_alive(self, number: int) -> bool | None:
        """Whether it is alive, if the process can be looked up; None where the heartbeat tells."""
        owner = _read(self._file(number))
        if owner is None:  # between its creation and its first write, or cut off there
            return None
        if owner.get("released"):
            return False
        mine = identity()
        if owner["machine"] != mine["machine"]:
            return None
        return _process_runs(owner["pid"], owner["started"])

    def _beats(self, number: int) -> tuple[int, float]:
        try:
            return number, self._file(number).stat().st_mtime
        except FileNotFoundError:
            return number, 0.0

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            if self._number is None or self.check_lost():
                return
            try:
                os.utime(self._file(self._number))
            except FileNotFoundError:  # the run was finished, or its folder deleted
                self.lost = True
                return

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def wait(
    lease: Lease, done: Callable[[], bool], note: Callable[[str], None], name: str, poll: float
) -> bool:
    """Wait until the lease is ours (True) or the work is done by another process (False)."""
    waited_for: dict[str, Any] | None = None
    while not done():
        if lease.acquire():
            if done():  # finished by its owner between the look and the taking
                lease.discard()
                break
            if waited_for is not None:
                note(f"{name}: {_who(waited_for)} stopped without finishing; taking over.")
            return True
        owner = lease.owner()
        if waited_for is None and owner is not None:
            waited_for = owner
            note(f"{name}: {_who(owner)} is working on it; waiting.")
        time.sleep(poll)
    if waited_for is not None:
        note(f"{name}: finished by {_who(waited_for)}.")
    return False


def identity() -> dict[str, Any]:
    """Return what tells this process and thread from every other, on every machine."""
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _process_started(os.getpid()) if _PROCFS else None,
        "thread": threading.get_ident(),
    }


@cache
def _machine() -> str:
    """Host name, boot and pid namespace: only where all agree does a process id mean the same."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]
    if boot.exists():
        parts.append(boot.read_text().strip())
    if namespace.is_symlink():
        parts.append(str(namespace.readlink()))
    return " ".join(parts)


def _process_runs(pid: int, started: str | None) -> bool | None:
    """Whether the process of that start time still runs; None where that cannot be seen."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        foreign = True  # another user's, and perhaps hidden from us in /proc
    else:
        foreign = False
    if not _PROCFS or started is None:
        return None
    now = _process_started(pid)
    return None if now is None and foreign else now == started


def _process_started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the process name before it may hold spaces
    state, started = fields[0], fields[19]
    return None if state in "ZX" else started


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}"


def _numbers(folder: Path) -> list[int]:
    return [int(file.stem) for file in folder.glob("*.json") if file.stem.isdigit()]


def _highest(folder: Path) -> int:
    return max(_numbers(folder), default=0)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
