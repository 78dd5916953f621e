"""Which process this is, told from all others on all machines, and whether one still runs."""

from __future__ import annotations

import os
import socket
import threading
from functools import cache
from pathlib import Path
from typing import Any

_PROCFS = Path("/proc/self/stat").exists()


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


def runs(pid: int, started: str | None) -> bool | None:
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
