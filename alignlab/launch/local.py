"""Execute a plan in several worker processes of this machine, its cores divided between them.

A stage that no other stage can ever run beside gets all cores.

Workers stay alive and take one stage after another, because importing torch and transformers costs
seconds that a small study would pay per stage.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from alignlab import interruption
from alignlab.errors import Interrupted
from alignlab.launch.board import Board
from alignlab.launch.processes import Processes
from alignlab.launch.task import Outcome, Task
from alignlab.launch.worker import CONTROL

if TYPE_CHECKING:
    from alignlab.plan import Node, Plan

COMMAND = (sys.executable, "-m", "alignlab.launch.worker")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_EVENT = tuple[str, Any, Any]  # what, from which worker, and its content


class Child:
    """One worker process as the launcher sees it."""

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        logs: Path,
        events: queue.SimpleQueue[_EVENT],
    ) -> None:
        self.task: Task | None = None
        self.began = 0.0
        self._logs, self._events = logs, events
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **variables},
            start_new_session=True,  # a Ctrl-C reaches it through us, once
        )
        self._readers = [
            threading.Thread(target=read, daemon=True) for read in (self._outcomes, self._lines)
        ]
        for reader in self._readers:
            reader.start()

    def give(self, task: Task) -> None:
        """Hand over one stage."""
        self.task, self.began = task, time.monotonic()
        self._stdin.write(json.dumps(task.to_json()) + "\n")
        self._stdin.flush()

    def close(self) -> None:
        """Let the worker end: at once when idle; a busy one saves a checkpoint first."""
        try:
            self._stdin.close()
        except BrokenPipeError:
            return  # it died; the end of its output says so

    def signal(self, number: int) -> None:
        """Send a signal, if the process still lives."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    @property
    def _stdin(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def _outcomes(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(("message", self, json.loads(line)))
        self._readers[1].join()  # every line of its log is written before its end is known
        self._events.put(("ended", self, self.process.wait()))

    def _lines(self) -> None:
        assert self.process.stderr is not None
        log: IO[str] | None = None
        run = ""
        for line in self.process.stderr:
            if line.startswith(CONTROL):
                run = line[1:].strip()
                if log is not None:
                    log.close()
                log = (self._logs / f"{run}.log").open("a", encoding="utf-8")
                continue
            if log is not None:
                log.write(line)
                log.flush()
            self._events.put(("line", self, (run, line.rstrip())))
        if log is not None:
            log.close()


class Pool:
    """The scheduler: hands ready stages to idle workers until every node has an outcome."""

    def __init__(
        self,
        plan: Plan,
        task_of: Callable[[Node], Task],
        jobs: int,
        variables: Callable[[int, int], Mapping[str, str]],  # of a slot, and of how many processes
        logs: Path,
        note: Callable[[str], None],
        settled: Callable[[Outcome], None],
        command: Sequence[str] = COMMAND,
        processes: Callable[[Node], int] = lambda node: 1,
    ) -> None:
        self.board = Board(plan)
        self.processes = processes
        self.task_of, self.logs, self.note, self.settled = task_of, logs, note, settled
        self.slots: list[Child | Processes | None] = [None] * jobs
        self._command, self._variables = command, variables
        self._events: queue.SimpleQueue[_EVENT] = queue.SimpleQueue()
        self._stopping: int | None = None

    def run(self) -> list[Outcome]:
        """Execute the plan.

        Raises:
            Interrupted: a signal came; every worker has saved what it had and left.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        with self._signals():
            try:
                while not self.board.finished and self._stopping is None:
                    self._fill()
                    self._handle(*self._events.get())
            finally:
                self._shut_down()
        if self._stopping is not None:
            name = signal.Signals(self._stopping).name
            raise Interrupted(f"stopped by {name}.", self._stopping)
        return self.board.results()

    def _fill(self) -> None:
        ready = self.board.ready()
        for slot, child in enumerate(self.slots):
            if not ready:
                return
            if child is None or child.task is None:
                node = ready.pop(0)
                child = self.slots[slot] = self._worker(slot, child, self.processes(node))
                self.board.start(node.run)
                try:
                    child.give(self.task_of(node))
                except BrokenPipeError:
                    continue  # it died while idle; its end is in the queue, as that of its task

    def _worker(self, slot: int, idle: Child | Processes | None, count: int) -> Child | Processes:
        """The idle worker of a slot if it will do, else a new one."""
        if count > 1:
            if idle is not None:
                idle.close()
            variables = self._variables(slot, count)
            return Processes(count, variables, self.logs, self._events)
        if isinstance(idle, Child):
            return idle
        return Child(self._command, self._variables(slot, 1), self.logs, self._events)

    def _handle(self, event: str, child: Child | Processes | None, content: Any) -> None:
        if event == "line":
            self._show(*content)
        elif event == "signal":
            self._stop(content)
        elif event == "message" and child is not None and "interrupted" not in content:
            child.task = None
            self._settle(Outcome(**content))
        elif event == "ended" and child is not None:
            self._ended(child, content)

    def _ended(self, child: Child | Processes, code: int) -> None:
        self.slots = [None if c is child else c for c in self.slots]
        task, child.task = child.task, None
        if task is None or self._stopping is not None:
            return
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
        reason = (
            f"the worker process ended with {how}{hint}; the next run continues from the last "
            f"checkpoint. Its output: {self.logs / f'{task.run}.log'}"
        )
        seconds = time.monotonic() - child.began
        self._settle(Outcome(task.run, task.name, "failed", seconds, reason, 1))

    def _settle(self, outcome: Outcome) -> None:
        for each in self.board.settle(outcome):
            self.settled(each)

    def _show(self, run: str, line: str) -> None:
        # The progress line of a stage already begins with the name of its run.
        text = re.sub(rf"^{re.escape(run)}\s+", "", line.rpartition("\r")[2].rstrip())
        if text:
            self.note(f"[{run}] {text}")

    def _stop(self, number: int) -> None:
        if self._stopping is None:
            self.note("stopping: every stage saves a checkpoint first; again to stop at once.")
        self._stopping = number

    def _shut_down(self) -> None:
        """End all workers: idle ones at once, busy ones after their checkpoint."""
        for live in self._living():
            if live.task is None:
                live.close()
            else:
                live.signal(self._stopping or signal.SIGTERM)
        while any(self.slots):
            event, child, content = self._events.get()
            if event == "signal":
                for other in self._living():
                    other.signal(signal.SIGKILL)
            else:
                self._handle(event, child, content)
                if event == "message" and child is not None:
                    child.close()  # it finished its stage all the same, and shall get no other

    def _living(self) -> list[Child | Processes]:
        return [worker for worker in self.slots if worker is not None]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Queue signals as events: they meet the pool between two of its steps."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def queued(number: int, _: object) -> None:
            self._events.put(("signal", None, number))

        before = {n: signal.signal(n, queued) for n in interruption.SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
