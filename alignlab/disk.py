"""What is said when a disk is full or cannot be written to: which one, and what to do."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignlab.errors import TrainingError

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSING = (*FULL, errno.EROFS)  # what trying again does not mend
_SAID = {  # libraries that write files themselves (torch, safetensors) tell it in words alone
    "No space left on device": errno.ENOSPC,
    "StorageFull": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
}


def trouble(error: BaseException) -> int:
    """Number of the disk's error behind an error, through its causes; 0 if there is none."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in REFUSING:
            return current.errno
        if not isinstance(current, OSError) or current.errno is None:
            for words, number in _SAID.items():
                if words in str(current):
                    return number
        current = current.__cause__ or current.__context__
    return 0


@contextmanager
def explained(place: Path) -> Iterator[None]:
    """Raise what a disk refuses inside the ``with`` as a message for a person; ``place`` is on it.

    Raises:
        TrainingError: the disk is full or cannot be written to, however deep the reason lies.
    """
    try:
        yield
    except Exception as error:
        number = trouble(error)
        if not number or str(error) == advice(number, place):
            raise
        raise TrainingError(advice(number, place)) from error


def say(error: Exception) -> int:
    """Print what an error of a disk means and return a command's exit code; raise any other."""
    if not (number := trouble(error)):
        raise error
    stated = getattr(error, "filename", None) or os.environ.get("ALIGNLAB_RUNS") or "runs"
    print(f"alignlab: {advice(number, Path(str(stated)).absolute())}", file=sys.stderr)
    return 1


def advice(number: int, place: Path) -> str:
    """Name the disk below ``place`` and what to do about it."""
    there = next((p for p in (place, *place.parents) if p.is_dir()), Path("/"))
    usage = shutil.disk_usage(there)
    left = f"{_size(usage.free)} of {_size(usage.total)} free"
    disk = mount_of(there)
    if number == errno.EROFS:
        return (
            f"{place} cannot be written to: the file system {disk} is mounted read-only. Name a "
            "folder that can be, with store=FOLDER or $ALIGNLAB_RUNS; finished runs are read from "
            f"where they are with store_upstream=[{place}]."
        )
    reason = "the quota of this user is used up" if number == errno.EDQUOT else f"{left}"
    return (
        f"the disk {disk} is full ({reason}), and {place} is on it. Nothing that was finished is "
        "hurt. Free some space (`alignlab runs gc` and `runs prune` list what can go) and give the "
        "same command again: it continues from the last checkpoint."
    )


def mount_of(folder: Path) -> Path:
    """Where the file system of a folder is mounted."""
    here = folder.resolve()
    while not here.is_mount() and here != here.parent:
        here = here.parent
    return here


def _size(number: int) -> str:
    for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B"
