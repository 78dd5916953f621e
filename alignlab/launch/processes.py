"""One stage in several processes of this machine, started and ended together."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from alignlab.launch.outcomes import outcome_file, read_outcome, write_task
from alignlab.launch.task import Task

PROGRAM = (sys.executable, "-m", "alignlab.launch.program")
END_SECONDS = 45.0  # after the first of them has failed, in which the others end by themselves
_EVENT = tuple[str, Any, Any]


class Processes:
    """The processes of one stage as the launcher sees them: a worker that executes one stage.

    They find each other as torchrun's do, by RANK, WORLD_SIZE and the address of the first.
    """

    def __init__(
        self,
        count: int,
        variables: Mapping[str, str],
        logs: Path,
        events: queue.SimpleQueue[_EVENT],
    ) -> None:
        self.count = count
        self.task: Task | None = None
        self.began = 0.0
        self._variables, self._logs, self._events = variables, logs, events
        self._processes: list[subprocess.Popen[str]] = []

    def give(self, task: Task) -> None:
        """Start the processes with the stage that they are for."""
        self.task, self.began = task, time.monotonic()
        outcome_file(task.place, task.run).unlink(missing_ok=True)
        file = write_task(task)
        shared = {
            **os.environ,
            **self._variables,
            "WORLD_SIZE": str(self.count),
            "LOCAL_WORLD_SIZE": str(self.count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        self._processes = [
            subprocess.Popen(
                [*PROGRAM, str(file), "--here"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                start_new_session=True,  # a Ctrl-C reaches it through us, once
            )
            for rank in range(self.count)
        ]
        threading.Thread(target=self._follow, args=[task], daemon=True).start()

    def close(self) -> None:
        """They end by themselves, with their stage."""

    def signal(self, number: int) -> None:
        """Send a signal to all that still live."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def _follow(self, task: Task) -> None:
        readers = [
            threading.Thread(target=self._lines, args=[task, rank, process.stdout], daemon=True)
            for rank, process in enumerate(self._processes)
        ]
        for reader in readers:
            reader.start()
        codes = self._codes()
        for reader in readers:
            reader.join()  # every line of the logs is written before the end is known
        outcome = read_outcome(task.place, task.run)
        if outcome is not None and outcome.status != "interrupted":
            killed = [_end(rank, code) for rank, code in codes.items() if code < 0]
            reason = " ".join([outcome.reason, *(killed if outcome.status == "failed" else ())])
            self._events.put(("message", self, {**asdict(outcome), "reason": reason}))
        self._events.put(("ended", self, next(filter(None, codes.values()), 0)))

    def _codes(self) -> dict[int, int]:
        """Exit codes by rank, in the order of ending; what outlives a failure for long is ended."""
        codes: dict[int, int] = {}
        living = list(self._processes)
        failed: float | None = None
        asked = False
        while living:
            for process in [p for p in living if p.poll() is not None]:
                living.remove(process)
                codes[self._processes.index(process)] = process.returncode
                if process.returncode and failed is None:
                    failed = time.monotonic()
            if failed is not None and time.monotonic() - failed > END_SECONDS * (1 + asked):
                self.signal(signal.SIGKILL if asked else signal.SIGTERM)
                asked = True
            time.sleep(0.1)
        return codes

    def _lines(self, task: Task, rank: int, stream: IO[str]) -> None:
        """Write what a process prints to its log; the first one's lines are also shown."""
        file = self._logs / f"{task.run}{f'.rank{rank}' if rank else ''}.log"
        log: IO[str] | None = None
        for line in stream:
            log = log or file.open("a", encoding="utf-8")
            log.write(line)
            log.flush()
            if rank == 0:
                self._events.put(("line", self, (task.run, line.rstrip())))
        if log is not None:
            log.close()


def _end(rank: int, code: int) -> str:
    hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
    return f"Process {rank} ended with signal {signal.Signals(-code).name}{hint}."


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
