"""JSON files that survive a kill: replaced in one step, or appended line by line.

They may lie on a file system that several machines share. There, a file that another machine
replaced can become stale while it is read, names of temporary files must differ between machines
that have equal process ids, and only the file system's own clock is common to all.

JSON has no word for numbers that are not finite. ``typed.to_mapping`` writes them as the text
"nan", "inf" and "-inf"; :func:`number` reads them back where the schema says that a number stands.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from alignlab import typed

NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
PAUSES = (0.02, 0.2, 1.0)  # seconds before a stale file is looked at again

T = TypeVar("T")


def patient(read: Callable[[], T]) -> T:
    """Read a file again where it became stale meanwhile (ESTALE of a network file system)."""
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            time.sleep(pause)
    return read()


def beside(file: Path) -> Path:
    """A name in the folder of ``file`` that no other process on any machine uses."""
    return file.with_name(f".{file.name}.{uuid.uuid4().hex[:16]}.tmp")


def now_of(folder: Path) -> float:
    """The time by the clock of a folder's file system, which all machines that share it have.

    Where nothing can be written there, the clock of this machine.
    """
    probe = beside(folder / "clock")
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
    except OSError:
        return time.time()
    return now


def write_atomically(file: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step; a reader sees the old or the new one, also after a crash."""
    replace(file, json.dumps(typed.to_mapping(content), indent=1, ensure_ascii=False) + "\n")


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; None when there is no file."""
    try:
        text = patient(lambda: file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    found: dict[str, Any] = json.loads(text)
    return found


def replace(file: Path, text: str) -> None:
    """Replace a text file in one step; the old one stays where the new one cannot be written."""
    temporary = beside(file)
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):  # the reason why it could not be written counts
            temporary.unlink(missing_ok=True)
        raise


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Append one row to a JSON-lines file, all of it or nothing; it has left this process then."""
    data = _line(row).encode("utf-8")
    with file.open("ab", buffering=0) as stream:
        start, written = os.fstat(stream.fileno()).st_size, 0
        try:
            while written < len(data):
                written += stream.write(data[written:])
        except OSError:
            if written and os.fstat(stream.fileno()).st_size == start + written:
                stream.truncate(start)  # half a row would spoil the next one
            raise


def write_lines(file: Path, content: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file in one step."""
    replace(file, "".join(_line(row) for row in content))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file, none without one.

    A last line without its newline was torn by a kill, or is being written: it is no row yet.
    """
    if not file.is_file():
        return
    read = 0  # bytes, from where a stale file is read on
    for pause in (*PAUSES, None):
        try:
            with file.open("rb") as stream:
                stream.seek(read)
                for data in stream:
                    read += len(data)
                    if data.endswith(b"\n"):
                        yield json.loads(data.decode("utf-8", "replace"))
            return
        except OSError as error:
            if error.errno != errno.ESTALE or pause is None:
                raise
            time.sleep(pause)


def cut_torn_line(file: Path) -> None:
    """Remove a last line that was torn by a kill, so that the next one does not continue it."""
    if not file.is_file():
        return
    with file.open("rb+") as stream:
        content = stream.read()
        stream.truncate(content.rfind(b"\n") + 1)


def number(value: Any) -> Any:
    """Read a number back; anything else passes."""
    return NONFINITE.get(value, value) if isinstance(value, str) else value


def sha256(file: Path, *, sync: bool = False) -> str:
    """Hash a file of any size; ``sync``: after it has reached the disk."""

    def read() -> str:
        with file.open("rb") as stream:
            if sync:
                os.fsync(stream.fileno())
            return hashlib.file_digest(stream, "sha256").hexdigest()

    return patient(read)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk, where the file system can do that for folders."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)
