"""What became of a stage: as an error, as a program's exit code, and as a file of its study."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignlab import files
from alignlab.errors import (
    AlignlabError,
    ConfigError,
    DataError,
    DivergenceError,
    Interrupted,
    TrainingError,
)
from alignlab.launch.task import Outcome, Place, Task
from alignlab.run import Store

# Of a program that executes one stage. 85 asks a scheduler to start the same again.
EXIT_CODES = {"done": 0, "failed": 1, "refused": 2, "diverged": 3, "interrupted": 85}
_ERRORS = {"failed": TrainingError, "refused": ConfigError, "diverged": DivergenceError}


def error_kind(error: BaseException) -> str:
    """What became of a stage: it diverged, what it was given was refused, or it failed."""
    if isinstance(error, DivergenceError):
        return "diverged"
    return "refused" if isinstance(error, (ConfigError, DataError)) else "failed"


def told(error: BaseException) -> dict[str, Any]:
    """An error as plain data, for another process."""
    known = isinstance(error, AlignlabError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    if isinstance(error, Interrupted):
        return {"kind": "interrupted", "reason": reason, "signal": error.signal_number}
    return {"kind": error_kind(error), "reason": reason}


def as_error(told: Mapping[str, Any], who: str) -> AlignlabError:
    """The error that ``who`` told of."""
    text = f"{who}: {told['reason']}"
    if told["kind"] == "interrupted":
        return Interrupted(text, told["signal"])
    return _ERRORS[told["kind"]](text)


def exit_code(outcome: Outcome) -> int:
    """Exit code of a program that executed one stage."""
    if outcome.status == "failed":
        return EXIT_CODES[outcome.error_kind or "failed"]
    return EXIT_CODES["interrupted" if outcome.status == "interrupted" else "done"]


def write_task(task: Task) -> Path:
    """Write the file that `alignlab.launch.program` executes; return it."""
    folder = Store(Path(task.place.store)).studies / task.place.study / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomically(folder / f"{task.run}.json", task.to_json())
    return folder / f"{task.run}.json"


def outcome_file(place: Place, run: str) -> Path:
    """Where the outcome of a stage is written for those who did not see it end."""
    return Store(Path(place.store)).studies / place.study / "outcomes" / f"{run}.json"


def write_outcome(place: Place, outcome: Outcome) -> None:
    """Write an outcome, with the time and the machine, in one step."""
    file = outcome_file(place, outcome.run)
    file.parent.mkdir(parents=True, exist_ok=True)
    extra = {"time": time.time(), "host": socket.gethostname()}
    files.write_atomically(file, {**dataclasses.asdict(outcome), **extra})


def read_outcome(place: Place, run: str) -> Outcome | None:
    """Outcome of a stage's last execution as a program; None before it has ended."""
    found = files.read_json(outcome_file(place, run))
    names = {field.name for field in dataclasses.fields(Outcome)}
    return Outcome(**{k: v for k, v in found.items() if k in names}) if found else None
