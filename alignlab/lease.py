"""One owner at a time for a folder, among processes and machines that share a file system.

A lease is a numbered file in a folder; the highest number owns. Taking over means making the next
number, which one process alone can do: the file is written under a name of its own and then linked
to the number, and a link to a name that exists fails on every file system that has links, also on
NFS (without links: O_EXCL). No number is used twice while the folder is there, not even one whose
owner is gone, so whoever acts on an old listing of the folder collides and looks again. Before an
owner says that its work is done it takes the next number itself: if another process has it, the
lease was lost. File locks are not used: some shared file systems have none, or none across
machines, and those of a lost machine stay.

An owner is dead when its process is gone, if it ran on this machine (process id, start time, boot
and pid namespace are compared), and otherwise when its heartbeat (the file's modification time,
renewed by a thread) stands still for ``stale`` seconds *of the observer's clock*: clocks of
different machines are never compared. The file is opened to see its time, since network file
systems may tell an old one until then.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignlab import files
from alignlab.processes import identity, runs

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
POLL_SECONDS = 1.0
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


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
        self._token = uuid.uuid4().hex  # tells our files from those of others
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
        if not self._create(number):
            return False  # another taker was faster, or the owner finished and cleared the folder
        if _highest(self.folder) > number:  # ours was an old number; it stays taken
            return False
        if current:
            self._supersede(current, number)
        self._number, self.lost = number, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return True

    def _create(self, number: int) -> bool:
        """Make the file of a number, with all that it says; False where it is taken."""
        file, own = self._file(number), self.folder / f".{uuid.uuid4().hex}.tmp"
        said = json.dumps({**identity(), "token": self._token})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            own.write_text(said, encoding="utf-8")
            try:
                os.link(own, file)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with file.open("x", encoding="utf-8") as stream:
                    stream.write(said)
        except FileExistsError:
            return self._is_ours(number)  # the server linked it and its answer was lost
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):  # the folder was cleared meanwhile
                return False
            raise
        finally:
            with contextlib.suppress(OSError):
                own.unlink(missing_ok=True)
        return True

    def _supersede(self, old: int, number: int) -> None:
        """Tell the owner of an old number, who may still be there, that it is none any more."""
        with contextlib.suppress(FileNotFoundError):
            files.replace(self._file(old), json.dumps({"superseded_by": number, "released": True}))

    def _is_ours(self, number: int) -> bool:
        return (_read(self._file(number)) or {}).get("token") == self._token

    def confirm(self) -> bool:
        """Whether the lease is certainly still ours, whatever this machine's cache believes.

        Takes the next number, which fails if another process has taken it.
        """
        if self._number is None or self.check_lost():
            return not self.lost and self._number is not None
        old = self._number
        if self._create(old + 1):
            self._number = old + 1
            self._supersede(old, old + 1)
        else:
            self.lost = True
        return not self.lost

    def release(self) -> None:
        """Give the run up, so that the next process can take it at once."""
        self._rest()
        if self._number is not None and not self.check_lost():
            # An empty mark, not a deletion: the number must stay taken (see the module docstring).
            told = {**identity(), "token": self._token, "released": True}
            try:
                files.replace(self._file(self._number), json.dumps(told))
            except OSError:  # a full disk: there is room for less where the lease stands
                self._write_over(self._file(self._number), '{"released": true}')
        self._number = None

    def _write_over(self, file: Path, text: str) -> None:
        """Write into a file as it lies there; where that fails too, the lease dies of age."""
        with contextlib.suppress(OSError), file.open("r+b") as stream:
            stream.write(text.encode("utf-8").ljust(os.fstat(stream.fileno()).st_size))

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
        number = self._number
        if number is not None and (_highest(self.folder) > number or not self._is_ours(number)):
            self.lost = number == self._number or self.lost  # else it was confirmed meanwhile
        return self.lost

    def owner(self) -> dict[str, Any] | None:
        """Return what the present owner wrote about itself; None without an owner.

        A number that was superseded, or released on a full disk, no longer says whose it was.
        """
        found = _read(self._file(_highest(self.folder)))
        return found if found is not None and "pid" in found else None

    def live(self) -> bool:
        """Whether some process owns the run now, judged at once.

        An owner on another machine counts as live for ten stale periods by the file system's clock,
        because one look cannot tell a heartbeat from its absence.
        """
        number = _highest(self.folder)
        if not number:
            return False
        known = self._known_alive(number)
        if known is not None:
            return known
        return files.now_of(self.folder) - self._beats(number)[1] < 10 * self.stale

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
        return runs(owner["pid"], owner["started"])

    def _beats(self, number: int) -> tuple[int, float]:
        def opened() -> float:
            with self._file(number).open("rb") as file:
                return os.fstat(file.fileno()).st_mtime

        try:
            return number, files.patient(opened)
        except FileNotFoundError:
            return number, 0.0

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            try:
                if self._number is None or self.check_lost():
                    return
                os.utime(self._file(self._number))
            except OSError:  # a server that does not answer now; a lost file is seen at the next
                continue

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


@contextmanager
def held(folder: Path, *, poll: float = 0.1) -> Iterator[None]:
    """Let one process at a time, on all machines, do what stands inside the ``with``.

    For work whose result is looked for first and put in place in one step, such as an entry of a
    cache: in the worst case (an owner that did not respond for minutes and returns) it is done
    twice, and never half.
    """
    mine = Lease(folder)
    while not mine.acquire():
        time.sleep(poll)
    try:
        yield
    finally:
        if mine.check_lost():
            mine.release()
        else:
            mine.discard()


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}"


def _numbers(folder: Path) -> list[int]:
    try:
        names = files.patient(lambda: [entry.name for entry in folder.iterdir()])
    except (FileNotFoundError, NotADirectoryError):
        return []
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return [int(stem) for stem in stems if stem.isdigit()]


def _highest(folder: Path) -> int:
    return max(_numbers(folder), default=0)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(files.patient(lambda: file.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found
