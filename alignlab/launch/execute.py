"""Execute one planned stage in this process: claim its run, do the work, write the record, finish.

This is the one function behind every launcher. Nothing heavy is imported before a stage's own
``run`` does it, except by the tracker.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab import typed
from alignlab.errors import ConfigError, DataError, DivergenceError, Interrupted, TrainingError
from alignlab.files import write_atomically
from alignlab.launch.task import Outcome, Task
from alignlab.plan import build_stage
from alignlab.run import Run, Store
from alignlab.stages.stage import role_of

if TYPE_CHECKING:
    from alignlab.stages.stage import Stage

NUMBERS = (
    "updates",
    "prompts",
    "completions",
    "tokens_trained",
    "tokens_sampled",
    "flops",
    "params_total",
    "params_trained",
)  # every record has them, so that no reader meets a missing one
_WATERMARK = Path("/proc/self/clear_refs")


def execute(task: Task, note: Callable[[str], None]) -> Outcome:
    """Run one stage unless its run is done; ``note`` receives what a person should know meanwhile.

    Raises what the stage raises; the run folder then stays unfinished and the next call resumes it.

    Raises:
        Interrupted: SIGINT or SIGTERM came; a stage that trains has saved a checkpoint.
    """
    with interruptible():
        store = Store(Path(task.place.store))
        os.environ["ALIGNLAB_RUNS"] = str(store.root)  # where trained rewards keep their cache
        run = store.run(task.kind, task.key)
        stage = build_stage(task.config, f"stages.{task.name}")
        inputs = {
            role: _input(store, name, unfinished=stage.roles[role_of(role)].tolerant)
            for role, name in task.parents.items()
        }
        with run.claim(note):
            if run.done:
                return Outcome(run.name, task.name, "cached")
            began = time.monotonic()
            _work(task, stage, inputs, run)
            run.finish()
    return Outcome(run.name, task.name, "done", time.monotonic() - began)


def _input(store: Store, name: str, *, unfinished: bool) -> Run:
    run = store.run(*name.split("-", 1))
    if not run.done and not unfinished:
        raise TrainingError(f"the input {name} is not finished, so it cannot be read.")
    return run


def _work(task: Task, stage: Stage, inputs: dict[str, Run], run: Run) -> None:
    """Run the stage under its tracker and keep the record true, also when it fails."""
    from alignlab.engine.distributed import Engine

    engine = typed.build(Engine, task.place.engine, "engine")
    earlier = run.record
    spent = float(earlier.get("seconds", 0.0))
    began = time.monotonic()
    run.path.mkdir(parents=True, exist_ok=True)
    write_atomically(run.path / "config.json", task.config)
    now = {"engine": dict(task.place.engine), "tracking": dict(task.place.tracking)}
    fresh = {"error": None, "error_kind": None}
    run.update_record(**{**_opening(task, stage), **earlier, **now, **fresh})
    _reset_watermark()
    try:
        with _tracked(task, run):
            stage.run(inputs, run, engine)
            run.update_record(**_measured(run, spent, began))
    except BaseException as error:
        stopped = isinstance(error, Interrupted)  # as asked: no error of the stage
        reason = None if stopped else str(error) or type(error).__name__
        kind = None if stopped else error_kind(error)
        run.update_record(**_measured(run, spent, began), error=reason, error_kind=kind)
        raise
    finally:
        gc.collect()  # a worker goes on to the next stage: models in cycles must not stay


def _opening(task: Task, stage: Stage) -> dict[str, Any]:
    return {
        "name": task.name,
        "kind": task.kind,
        "key": task.key,
        "inputs": dict(task.parents),
        "study": task.place.study,
        "seed": stage.seed,
        "label": stage.label or task.name,
        "started": time.time(),
        "reference": None,
        **dict.fromkeys(NUMBERS, 0),
        "summary": {},
        "warnings": [],
    }


def _measured(run: Run, spent: float, began: float) -> dict[str, Any]:
    record = run.record
    torch = sys.modules.get("torch")
    measured: dict[str, Any] = {
        "seconds": spent + time.monotonic() - began,  # over all sessions of a resumed run
        "peak_memory_bytes": max(int(record.get("peak_memory_bytes") or 0), peak_memory()),
        "threads": torch.get_num_threads() if torch else None,
    }
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        measured["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return measured


@contextmanager
def _tracked(task: Task, run: Run) -> Iterator[None]:
    from alignlab.engine.tracking import Tracker, Tracking

    tracking = typed.build(Tracking, task.place.tracking, "tracking")
    with Tracker(tracking, run):
        yield


def _reset_watermark() -> None:
    # A worker executes one stage after another: without this the peak of a small stage would be
    # that of the largest one before it.
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        _WATERMARK.write_text("5")
    except OSError:
        return  # no procfs, or not allowed: the peak is then that of the whole process


def peak_memory() -> int:
    """Peak resident memory of this process in bytes, since the last reset where there is one."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into Interrupted wherever the training loop does not handle them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}.", number)

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def error_kind(error: BaseException) -> str:
    """What became of a stage: it diverged, what it was given was refused, or it failed."""
    if isinstance(error, DivergenceError):
        return "diverged"
    return "refused" if isinstance(error, (ConfigError, DataError)) else "failed"


def failure(task: Task, error: Exception, seconds: float) -> Outcome:
    """Describe an error that a stage raised, as the outcome of its node."""
    known = hasattr(error, "exit_code")
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    code = 2 if isinstance(error, ConfigError) else int(getattr(error, "exit_code", 1))
    return Outcome(task.run, task.name, "failed", seconds, reason, code, error_kind(error))
