"""One stage as a program: ``python -m alignlab.launch.program TASK.json``, alone or as one of many.

Which of how many processes this is, the environment says by torchrun's names (RANK, WORLD_SIZE,
LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT); without them it is alone. The first one
owns the run and writes what became of it to ``<store>/studies/<study>/outcomes/<run>.json``. Output
goes to ``logs/<run>.log`` there, that of the others to ``logs/<run>.rank<N>.log``; ``--here``
leaves it where it is.

Exit codes, the same from every process: 0 done, now or before; 1 failed; 2 refused (configuration
or data); 3 diverged; 85 interrupted, to be started again. Anything else is a crash.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from alignlab import interruption, typed
from alignlab.errors import AlignlabError, ConfigError, Interrupted, TrainingError
from alignlab.launch.inprocess import attempt
from alignlab.launch.outcomes import exit_code, outcome_file, told, write_outcome
from alignlab.launch.ranks import Group, Ranks
from alignlab.launch.task import Outcome, Place, Task
from alignlab.run import Store

MEETING = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells a process


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute the stage of a task file; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m alignlab.launch.program")
    parser.add_argument("task", type=Path, help="a task file, as a launcher writes it")
    parser.add_argument("--here", action="store_true", help="leave the output where it is")
    parsed = parser.parse_args(arguments)
    try:
        task = Task.from_json(json.loads(parsed.task.read_text(encoding="utf-8")))
    except (OSError, ValueError, ConfigError) as error:
        print(f"{parsed.task}: {error}", file=sys.stderr)
        return 2
    with _as_it_is() if parsed.here else _into_logs(task) as terminal:
        outcome = run(task)
        said = [f"{outcome.status} {task.run} ({task.name})", outcome.reason]
        print("\n".join(filter(None, said)), file=terminal, flush=True)
    return exit_code(outcome)


def run(task: Task) -> Outcome:
    """Execute the stage with the other processes of this job, and write what became of it."""
    is_main = _rank() == 0
    if is_main:
        outcome_file(task.place, task.run).unlink(missing_ok=True)  # that of an earlier attempt
    ranks = Ranks()
    try:
        with interruption.heeding():
            ranks = joined(task.place, partial(_give_up, task))
        outcome = attempt(task, _logs(task), _note, ranks)
    except AlignlabError as error:
        outcome = _outcome(task, error)
    if is_main or ranks.main_is_gone:
        write_outcome(task.place, outcome)
    ranks.leave()
    return outcome


def joined(place: Place, give_up: Callable[[Ranks, AlignlabError], None]) -> Ranks:
    """Meet the other processes of this job, if there are any; torch is imported only then.

    ``give_up`` is called on a thread before a process that waits in vain for another is ended.

    Raises:
        ConfigError: the environment does not say which of them this is, or where they meet.
        TrainingError: they do not come together.
    """
    if (world := os.environ.get("WORLD_SIZE", "1")) == "1":
        return Ranks()
    if missing := [name for name in MEETING if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE={world} says that this is one of {world} processes, and "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set. torchrun sets "
            "them; for one process, unset WORLD_SIZE."
        )
    from alignlab.engine.distributed import Engine

    engine = typed.build(Engine, place.engine, "engine")
    try:
        return Group(engine.workers(), give_up)
    except RuntimeError as error:
        where = ":".join(os.environ[name] for name in MEETING[-2:])
        raise TrainingError(
            f"the {world} processes of this job could not meet at {where}: {error}"
        ) from error


def _give_up(task: Task, ranks: Ranks, error: AlignlabError) -> None:
    """Leave word of a stage whose process will not come out of a collective."""
    if ranks.is_main:
        said = told(error)
        run = Store(Path(task.place.store)).run(task.kind, task.key)
        run.update_record(error=said["reason"], error_kind=said["kind"])
    if ranks.is_main or ranks.main_is_gone:
        write_outcome(task.place, _outcome(task, error))


def _outcome(task: Task, error: AlignlabError) -> Outcome:
    said = told(error)
    if isinstance(error, Interrupted):
        return Outcome(task.run, task.name, "interrupted", 0.0, said["reason"], error.exit_code)
    return Outcome(
        task.run, task.name, "failed", 0.0, said["reason"], error.exit_code, said["kind"]
    )


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _logs(task: Task) -> Path:
    return Store(Path(task.place.store)).studies / task.place.study / "logs"


@contextmanager
def _as_it_is() -> Iterator[TextIO]:
    yield sys.stderr


@contextmanager
def _into_logs(task: Task) -> Iterator[TextIO]:
    """Send whatever this process prints to its log; the terminal that it had is still there."""
    which = f".rank{_rank()}" if _rank() else ""
    log = _logs(task) / f"{task.run}{which}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    before = [os.dup(number) for number in (1, 2)]
    # The file itself, no pipe: what a crash has to say is there too.
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for number in (1, 2):
            os.dup2(target, number)
        with os.fdopen(os.dup(before[1]), "w", encoding="utf-8") as terminal:
            print(f"{task.run} ({task.name}): output in {log}", file=terminal, flush=True)
            yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), before, strict=True):
            os.dup2(old, number)
            os.close(old)
        os.close(target)
        if which and not log.stat().st_size:
            log.unlink()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
