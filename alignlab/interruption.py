"""A signal that asks this process to stop: noted once, and heeded where work can be left."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from alignlab.errors import Interrupted

# TERM: kill, a scheduler that preempts or whose time limit has come; INT: Ctrl-C;
# USR1 and USR2: Slurm's --signal, some time before the limit.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
PATIENCE_SECONDS = 2.0  # what may still be finished after a signal, rather than be lost


@dataclass
class _Request:
    """What is known of the request to stop; the handlers write it, in the main thread."""

    number: int = 0  # the first signal; 0: none
    since: float = 0.0  # when it came
    listeners: int = 0
    notes: str | None = None  # inside ``noting``: what is done about a signal
    may_leave: bool = True  # whether ``check`` may raise here


_request = _Request()


def requested() -> int:
    """Number of the signal that asked this process to stop; 0 without one."""
    return _request.number


def check() -> None:
    """Leave work that is worth less than the seconds it would still take, if asked to stop.

    Called between two tokens and between two micro-batches. A piece that ends within
    ``PATIENCE_SECONDS`` of the signal is finished; its loop then sees the signal.

    Raises:
        Interrupted: a signal came, longer than that ago.
    """
    asked = _request.number and _request.may_leave
    if asked and time.monotonic() - _request.since > PATIENCE_SECONDS:
        raise interrupted(_request.number)


def interrupted(number: int) -> Interrupted:
    """Make the error that says which signal came."""
    return Interrupted(f"stopped by {signal.Signals(number).name}.", number)


@contextmanager
def heeding() -> Iterator[None]:
    """Turn a signal into Interrupted wherever the main thread is; in other threads do nothing.

    Only the first one: what is put in order on the way out is not disturbed again. A second Ctrl-C
    quits at once.
    """
    with _listening(notes=None, may_leave=True):
        yield


@contextmanager
def noting(doing: str, *, alone: bool) -> Iterator[None]:
    """Only note a signal, and say that ``doing`` is what is done about it.

    The code inside asks ``requested`` between its steps. ``check`` raises where this process is
    ``alone``; one of several leaves no work that the others wait for (but see ``leavable``).

    Raises:
        Interrupted: a signal came after the code inside had last asked.
    """
    with _listening(notes=doing, may_leave=alone):
        yield
        if _request.number and _request.listeners:
            raise interrupted(_request.number)


@contextmanager
def deferred() -> Iterator[None]:
    """Heed a signal at the next `check`, instead of wherever the main thread is.

    Raises:
        Interrupted: a signal came and no `check` met it, where it would have been heeded outside.
    """
    if threading.current_thread() is not threading.main_thread() or _request.notes is not None:
        yield
        return
    _request.notes = "stopping at the next safe place"
    try:
        yield
    finally:
        _request.notes = None
    if _request.number and _request.listeners:
        raise interrupted(_request.number)


@contextmanager
def leavable() -> Iterator[None]:
    """Let ``check`` raise inside: nothing there waits for another process."""
    before, _request.may_leave = _request.may_leave, True
    try:
        yield
    finally:
        _request.may_leave = before


@contextmanager
def _listening(*, notes: str | None, may_leave: bool) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread alone
        return
    handlers: dict[int, Any] = {}
    before = _request.notes, _request.may_leave
    _request.listeners += 1
    _request.notes, _request.may_leave = notes, may_leave
    try:
        for one in SIGNALS:
            handlers[one] = signal.signal(one, _heard)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _request.notes, _request.may_leave = before
        _request.listeners -= 1
        if not _request.listeners:
            _request.number = 0


def _heard(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGINT and _request.number == signal.SIGINT:
        raise KeyboardInterrupt
    if _request.number:
        return
    _request.number, _request.since = number, time.monotonic()
    if _request.notes is None:
        raise interrupted(_request.number)
    again = " (Ctrl-C again: quit now, unsaved)" if number == signal.SIGINT else ""
    print(f"\n{signal.Signals(number).name}: {_request.notes}{again}", file=sys.stderr)
