"""One machine's share of a stage, as an actor of Ray: starts its processes and tells how they end.

The processes are those of `alignlab.launch.program`, which write what became of the stage into the
store; nothing of a result goes through Ray.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

PROGRAM = ("-m", "alignlab.launch.program")  # what the Python of a machine is told to run
INTERRUPTED = 85
END_SECONDS = 60.0  # after the first of them has failed, in which the others end by themselves
POLL_SECONDS = 0.2


class Host:
    """The processes of one stage on one machine."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopped = 0  # the signal that asked for it
        self._lock = threading.Lock()

    def address(self) -> tuple[str, int]:
        """Where the processes of a stage could meet: this machine's address, and a free port."""
        import ray

        address = str(ray.util.get_node_ip_address())
        with socket.socket() as free:
            free.bind(("", 0))
            return address, int(free.getsockname()[1])

    def run(
        self, program: Sequence[str], file: str, variables: Sequence[Mapping[str, str]]
    ) -> list[int]:
        """Execute the task of ``file``, one process for each mapping; exit codes when all ended."""
        with self._lock:
            if self._stopped:
                return [INTERRUPTED] * len(variables)
            for own in variables:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, *program, file],
                        env={**os.environ, **own},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,  # it writes a log in the folder of the study
                        stderr=subprocess.DEVNULL,
                    )
                )
        failed: float | None = None
        asked = False
        while any(process.poll() is None for process in self._processes):
            if failed is None and any(process.returncode for process in self._processes):
                failed = time.monotonic()
            if failed is not None and time.monotonic() - failed > END_SECONDS * (1 + asked):
                self._signal(signal.SIGKILL if asked else signal.SIGTERM)
                asked = True
            time.sleep(POLL_SECONDS)
        return [process.returncode for process in self._processes]

    def stop(self, number: int) -> None:
        """Pass a signal on to the processes; the second one ends them."""
        with self._lock:
            self._signal(signal.SIGKILL if self._stopped else number)
            self._stopped = number

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)
