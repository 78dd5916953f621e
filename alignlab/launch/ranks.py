"""What the processes of one job agree on beside the process group: begin, done, failed.

A collective operation says only that its partner is gone. Here every process reports how its part
of a stage ended and gives a sign of life every two seconds, so that the others can say which one
failed and why, and none waits for one that will not come, in a collective either.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

from alignlab import interruption
from alignlab.errors import AlignlabError, Interrupted
from alignlab.launch.ends import BEAT_SECONDS, MISSED_SECONDS, Ends, rank_of
from alignlab.launch.outcomes import EXIT_CODES, told
from alignlab.launch.wire import Wire

if TYPE_CHECKING:
    from alignlab.engine.distributed import Workers

SILENT_SECONDS = 120.0  # without one, though all connections stand: its machine is gone
REASON_SECONDS = MISSED_SECONDS + 2.0  # how long the reason of a broken connection is looked for
AGREE_SECONDS = 5.0  # within which processes that end a stage alike have all said so
STUCK_SECONDS = 15.0  # after the failure of another one, in which a process may end by itself
SAVING_SECONDS = 60.0  # and after it was asked to stop
LEAVE_SECONDS = 15.0  # how long the main process, with whom the store goes, stays for the others
POLL_SECONDS = 0.2

Facts = Mapping[str, Any]


@contextmanager
def leading(ranks: Ranks) -> Iterator[None]:
    """Let every stage that is executed inside be executed by all ``ranks``."""
    before = _led.set(ranks)
    try:
        yield
    finally:
        _led.reset(before)


def led() -> Ranks:
    """The processes that execute stages with this one."""
    return _led.get()


class Ranks:
    """A process by itself: it owns its runs and has nobody to agree with."""

    rank = 0
    world = 1
    nodes = 1
    sound = True  # whether the processes can begin another stage together
    name = ""  # of the run that is executed

    @property
    def is_main(self) -> bool:
        """Whether this process owns the runs."""
        return self.rank == 0

    @contextmanager
    def executing(self, name: str) -> Iterator[None]:
        """Execute the stage whose run is ``name``; what ends it on one process ends it on all."""
        yield

    def say(self, word: Facts) -> None:
        """Tell the others; only the main process does."""

    def hear(self) -> dict[str, Any]:
        """Wait for the next word of the main process, for as long as it takes."""
        raise AssertionError("a process by itself has nobody to listen to")

    def gather(self, facts: Facts) -> list[dict[str, Any]]:
        """Wait until all have done their part; what each says of it, by rank."""
        return [dict(facts)]

    def conclude(self, error: BaseException) -> BaseException:
        """What really ended the stage: ``error``, or what happened on another process."""
        return error

    @property
    def main_is_gone(self) -> bool:
        """Whether the process that owns the runs has left without a word."""
        return False

    def leave(self) -> None:
        """Say good-bye to the others."""


class Group(Ranks):
    """The processes of a job, as one of them sees the others.

    ``give_up`` is called on a thread, with the reason, before a process that waits in vain in a
    collective is ended.
    """

    def __init__(self, workers: Workers, give_up: Callable[[Ranks, AlignlabError], None]) -> None:
        self.rank, self.world = workers.rank, workers.world
        self._give_up = give_up
        hosts = workers.gather(socket.gethostname())
        self.nodes = sum(workers.gather(os.environ.get("LOCAL_RANK", "0") == "0"))
        hosted = Wire(self.world, host_it=True) if self.is_main else None
        port = workers.from_main(hosted.port if hosted else 0)
        self._wire = hosted or Wire(self.world, port=port)
        heard: dict[int, dict[str, Any]] = {}
        self._ends = Ends(self._wire, self.rank, hosts, heard)
        self._watched = Ends(Wire(self.world, port=port), self.rank, hosts, heard)  # the thread's
        self._words = 0  # said or heard, of this stage or of this pause
        self._cause: BaseException | None = None  # what ended this stage
        self._wire.beat(self.rank, 0)
        workers.barrier()  # all beats are there
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._thread.start()

    def say(self, word: Facts) -> None:
        """Tell the others; only the main process does."""
        self._words += 1
        self._wire.put(f"{self._place}/word/{self._words}", word)

    def hear(self) -> dict[str, Any]:
        """Wait for the next word of the main process, for as long as it takes.

        Raises:
            AlignlabError: the stage has ended on another process.
        """
        self._words += 1
        while (word := self._wire.get(f"{self._place}/word/{self._words}")) is None:
            self._pause()
        return word

    def gather(self, facts: Facts) -> list[dict[str, Any]]:
        """Wait until all are through; what each says, by rank (on the main process, else none)."""
        self._ends.put({"kind": "done", **facts})
        while self.is_main and len(ends := self._ends.all()) < self.world:
            self._pause()
        return [ends[rank] for rank in range(self.world)] if self.is_main else []

    @contextmanager
    def executing(self, name: str) -> Iterator[None]:
        """Execute the stage whose run is ``name``; what ends it on one process ends it on all."""
        self._ends.stage = self._watched.stage = self._ends.stage + 1
        self.name, self._words, self._cause = name, 0, None
        try:
            yield
        except BaseException as error:
            cause = self.conclude(error)
            if cause is error:
                raise
            raise cause from error
        finally:
            self.name, self._words = "", 0

    def conclude(self, error: BaseException) -> BaseException:
        """What really ended the stage: ``error``, or what happened on another process.

        Tells the others, and finds out whether all can go on together.
        """
        if self._cause is None:
            with _undisturbed():
                self._cause = self._find_cause(error)
                self._ends.put(told(self._cause))
                self.sound = self._all_ended_alike(self._cause)
        return self._cause

    @property
    def main_is_gone(self) -> bool:
        """Whether the process that owns the runs has left without a word."""
        return self._wire.lost is not None

    def leave(self) -> None:
        """Say good-bye; the main process waits for the others."""
        self._left.set()
        self._thread.join(LEAVE_SECONDS)
        self._wire.put(f"left/{self.rank}", {})
        deadline = time.monotonic() + LEAVE_SECONDS
        while self.is_main and time.monotonic() < deadline:
            since = self._wire.silences(range(self.world))
            silent = {rank for rank, seconds in since.items() if seconds > MISSED_SECONDS}
            if len(self._wire.get_all("left").keys() | silent) == self.world:
                return
            time.sleep(POLL_SECONDS)

    @property
    def _place(self) -> str:
        return f"{'stage' if self.name else 'after'}/{self._ends.stage}"

    def _pause(self) -> None:
        """Wait a moment for the others, unless one of them has ended the stage or is gone."""
        ended = self._ends.reported() if self.name else None
        if (error := ended or self._ends.unreachable()) is not None:
            raise error
        time.sleep(POLL_SECONDS)

    def _find_cause(self, error: BaseException) -> BaseException:
        if rank_of(error) is not None:
            return error
        asked, broken = isinstance(error, Interrupted), _of_communication(error)
        if asked:
            self._ends.report(error)  # before the others wonder who has left
        deadline = time.monotonic() + REASON_SECONDS
        while (asked or broken) and time.monotonic() < deadline:
            # What stops or cuts off this process may be the end of another one, which told why, or
            # was killed and gives no sign of life any more.
            if (found := self._ends.reported() or self._ends.missing()) is not None:
                return error if asked and isinstance(found, Interrupted) else found
            if asked and len(self._ends.all()) >= self.world - 1:
                return error
            time.sleep(POLL_SECONDS)
        if broken and (number := interruption.requested()):
            error = interruption.interrupted(number)
        self._ends.report(error)
        return error

    def _all_ended_alike(self, error: BaseException) -> bool:
        """Whether all have ended the stage on purpose and alike, and can begin another."""
        on_purpose = isinstance(error, AlignlabError) and rank_of(error) is None
        if isinstance(error, Interrupted) or (not on_purpose and not self.is_main):
            return False  # those who wait in a collective are free when this process is gone
        deadline = time.monotonic() + AGREE_SECONDS  # and so long the others can hear of it
        while len(ends := self._ends.all()) < self.world:
            if time.monotonic() > deadline or self._ends.missing() is not None:
                return False
            time.sleep(POLL_SECONDS)
        return on_purpose and len({end["kind"] for end in ends.values()}) == 1

    def _watch(self) -> None:
        """Give signs of life, look for those of the others, and end what waits in vain."""
        beat, stage, since = 0, 0, 0.0
        while not self._left.wait(BEAT_SECONDS):
            beat += 1
            self._watched.wire.beat(self.rank, beat)
            noted = interruption.requested()
            if self.name and (number := self._watched.signal(noted)) and not noted:
                os.kill(os.getpid(), number)  # it came to another process alone
            error = self._trouble()
            if error is None or not self.name or self._cause is not None:
                stage = 0
            elif stage != self._watched.stage:
                stage, since = self._watched.stage, time.monotonic()
                if isinstance(error, Interrupted) and not interruption.requested():
                    os.kill(os.getpid(), error.signal_number)
            elif time.monotonic() - since > _patience(error):
                self._end_here(error)

    def _trouble(self) -> AlignlabError | None:
        """What has happened on another process that this one should know of."""
        ends = self._watched
        if (error := ends.reported() or ends.unreachable()) is not None:
            return error
        others = range(1, self.world) if self.is_main else [0]
        if (error := ends.silent(others, SILENT_SECONDS)) is not None:
            ends.report(error, rank_of(error))
        return error

    def _end_here(self, error: AlignlabError) -> NoReturn:
        print(f"{self.name}: {error}\nThis process waits in vain; ending it.", file=sys.stderr)
        sys.stderr.flush()
        try:
            self._give_up(self, error)
        finally:
            os._exit(EXIT_CODES[told(error)["kind"]])


_led: ContextVar[Ranks] = ContextVar("led", default=Ranks())  # noqa: B039 (it has no state)


def _patience(error: BaseException) -> float:
    return SAVING_SECONDS if isinstance(error, Interrupted) else STUCK_SECONDS


def _of_communication(error: BaseException) -> bool:
    """Whether an error may be that of a collective: torch raises plain RuntimeErrors there."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or type(error) is RuntimeError


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal in: a launcher that sees one process end asks the others to stop, at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in interruption.SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
