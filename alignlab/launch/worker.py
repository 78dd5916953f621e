"""A worker process: executes the stages it is told to, one JSON line each, until its input ends.

``python -m alignlab.launch.worker``: tasks come in on stdin and outcomes go out on stdout. Whatever
a stage prints goes to stderr, where a control line says which run the lines after it belong to.
When the launcher is gone (its end of stdin closed while a stage is running), the worker stops as if
it had been sent SIGTERM: it saves a checkpoint and leaves, and never trains on unseen.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from alignlab.errors import Interrupted
from alignlab.launch.inprocess import attempt
from alignlab.launch.ranks import Ranks
from alignlab.launch.task import Task
from alignlab.run import Store

CONTROL = "\x1e"  # starts a control line on stderr: what follows belongs to the run it names


class Worker:
    """The worker's end of the two pipes."""

    def __init__(self, inputs: TextIO, outputs: TextIO) -> None:
        self._inputs, self._outputs = inputs, outputs
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._busy = threading.Event()
        threading.Thread(target=self._listen, name="tasks", daemon=True).start()

    def serve(self) -> int:
        """Execute tasks until the input ends; return the exit code."""
        while (task := self._tasks.get()) is not None:
            self._busy.set()
            print(f"{CONTROL}{task.run}", file=sys.stderr, flush=True)
            logs = Store(Path(task.place.store)).studies / task.place.study / "logs"
            try:
                outcome = attempt(task, logs, _note, Ranks())
            except Interrupted as error:
                self._send({"interrupted": task.run, "reason": str(error)})
                return error.exit_code
            self._busy.clear()
            self._send(dataclasses.asdict(outcome))
        return 0

    def _listen(self) -> None:
        for line in self._inputs:
            self._tasks.put(Task.from_json(json.loads(line)))
        self._tasks.put(None)
        if self._busy.is_set():
            _silence()
            os.kill(os.getpid(), signal.SIGTERM)

    def _send(self, message: dict[str, Any]) -> None:
        sys.stderr.flush()
        try:
            print(json.dumps(message), file=self._outputs, flush=True)
        except BrokenPipeError:
            return  # the launcher is gone; what matters is on disk


def _silence() -> None:
    """Write to nowhere: the pipes have lost their readers, and a print must not end the stage."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _own_streams() -> tuple[TextIO, TextIO]:
    """Keep the two pipes to ourselves: what a library reads or prints must not mix with them."""
    inputs, outputs = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return os.fdopen(inputs, encoding="utf-8"), os.fdopen(outputs, "w", encoding="utf-8")


def main() -> int:
    """Serve tasks; the entry point of the process."""
    try:
        return Worker(*_own_streams()).serve()
    except KeyboardInterrupt:  # between two stages there is nothing to save
        return 130


if __name__ == "__main__":
    sys.exit(main())
