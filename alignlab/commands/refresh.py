"""Writes the page of a study again while its stages run, in a child process of low priority.

``python -m alignlab.commands.refresh STORE STUDY`` writes it once. The launcher's process only
waits for that child, in a thread: no stage is delayed by the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from alignlab.files import replace
from alignlab.launch.task import Outcome
from alignlab.run import Store

SHARE = 0.05  # most of the time that the page may take: its processor time over the wall time
FIRST = 5.0  # seconds; stages that settle together make one page
POLL = 0.2
NICE = 19
BEAT = 60.0  # seconds between two signs of life on the page, where it is not written anew
_BEAT = re.compile(r'(data-beat=")\d+(")')
_LIVE = re.compile(r'data-live="\d+"|<span class="running".*?</span>', re.DOTALL)


class Refresher:
    """Writes the page when an evaluation has settled, as often as its cost allows.

    Errors of the page become notes; they never stop a study.
    """

    def __init__(
        self,
        command: Sequence[str],
        evaluations: frozenset[str],
        note: Callable[[str], None],
        *,
        page: Path | None = None,
        share: float = SHARE,
        first: float = FIRST,
        beat: float = BEAT,
    ) -> None:
        self.written = 0
        self._page, self._beat = page, beat
        self._command, self._evaluations, self._note = list(command), evaluations, note
        self._share, self._first = share, first
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._said: set[str] = set()
        self._some = False  # an evaluation is done, so there is something to show
        self._thread = threading.Thread(target=self._work, name="page", daemon=True)

    @classmethod
    def of(
        cls, store: Path, study: str, evaluations: frozenset[str], note: Callable[[str], None]
    ) -> Self:
        """Make the one of a study; ``evaluations`` are the runs that a page needs one of."""
        command = [sys.executable, "-m", "alignlab.commands.refresh", str(store), study]
        page = Store(store).studies / study / "report" / "index.html"
        return cls(command, evaluations, note, page=page)

    def settled(self, outcome: Outcome) -> None:
        """Hear that a stage has an outcome; returns at once."""
        if outcome.run in self._evaluations and outcome.status in ("done", "cached"):
            self._some = True
        if self._some:
            self._changed.set()

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, and end a child that is still writing: the last page is written by the command."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        again = 0.0  # when the share of the time allows the next page
        wanted: float | None = None  # when the next page is to be written
        due = time.monotonic() + self._beat
        while not self._stop.wait(POLL):
            now = time.monotonic()
            if now > due:
                self._renew()
                due = now + self._beat
            if wanted is None and self._changed.is_set():
                wanted = max(now + self._first, again)
            if wanted is not None and now >= wanted:
                self._changed.clear()
                cost = self._write()
                again, wanted = time.monotonic() + cost * (1 / self._share - 1), None

    def _renew(self) -> None:
        """Show on the page that its command is still there."""
        try:
            if self._page is not None:
                renew(self._page)
        except OSError as error:
            self._say(str(error))

    def _write(self) -> float:
        """Write the page once; return the processor seconds that it took."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        began = os.times()
        try:
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **threads},
                start_new_session=True,  # a Ctrl-C is for the stages; this child is ended by us
            )
        except OSError as error:
            self._say(str(error))
            return 0.0
        said = self._wait(child)
        if child.returncode and not self._stop.is_set():
            self._say(said.strip().splitlines()[-1] if said.strip() else f"exit {child.returncode}")
        self.written += child.returncode == 0
        ended = os.times()
        # Other children of this process (workers) are counted only once they have ended.
        spent = (ended.children_user - began.children_user) + (
            ended.children_system - began.children_system
        )
        return min(spent, ended.elapsed - began.elapsed)

    def _wait(self, child: subprocess.Popen[str]) -> str:
        while True:
            try:
                return child.communicate(timeout=POLL)[1]
            except subprocess.TimeoutExpired:
                if self._stop.is_set():
                    child.terminate()
                    return child.communicate()[1]

    def _say(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            self._note(f"the page could not be written while the study runs: {reason}")


def write(store: Path, study: str) -> None:
    """Write the page of a running study once."""
    from alignlab.report.live import Watcher
    from alignlab.report.page import build_report

    found = Store(store)
    build_report(study, found, live=Watcher(study, found).look().live())


def renew(page: Path) -> None:
    """Put the present time where a page tells when its command was last seen."""
    if page.is_file():
        text = page.read_text(encoding="utf-8")
        beating = _BEAT.sub(rf"\g<1>{time.time():.0f}\g<2>", text)
        if beating != text:
            replace(page, beating)


def retire(page: Path) -> None:
    """Take back the word that a study is running from a page that no command writes any more."""
    if page.is_file():
        text = page.read_text(encoding="utf-8")
        settled = _LIVE.sub("", text)
        if settled != text:
            replace(page, settled)


if __name__ == "__main__":
    os.nice(NICE)
    write(Path(sys.argv[1]), sys.argv[2])
