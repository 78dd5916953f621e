"""Execute one planned stage: claim its run, do the work, write the record, finish.

This is the one function behind every launcher, in one process or in each of many. Of many, the
first owns the run and writes; the others take part in what they can share, and wait otherwise.
Nothing heavy is imported before a stage's own ``run`` does it, except by the tracker.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab import interruption, seal, typed
from alignlab.disk import explained
from alignlab.errors import ConfigError, Interrupted, TrainingError
from alignlab.files import write_atomically
from alignlab.launch.outcomes import error_kind
from alignlab.launch.ranks import Ranks
from alignlab.launch.task import Outcome, Task
from alignlab.plan import build_stage
from alignlab.run import Run, Store
from alignlab.stages.stage import role_of

if TYPE_CHECKING:
    from alignlab.engine.distributed import Engine
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


def execute(task: Task, note: Callable[[str], None], ranks: Ranks | None = None) -> Outcome:
    """Run one stage unless its run is done; ``note`` receives what a person should know meanwhile.

    Raises what the stage raises; the run folder then stays unfinished and the next call resumes it.
    Of several processes (``ranks``) all call it, and all raise when one of them fails.

    Raises:
        Interrupted: a signal came (see `interruption`); a stage that trains has saved a checkpoint.
    """
    ranks = ranks or Ranks()
    store = Store(Path(task.place.store))
    with interruption.heeding(), ranks.executing(task.run), explained(store.root):
        os.environ["ALIGNLAB_RUNS"] = str(store.root)  # where trained rewards keep their cache
        run = store.run(task.kind, task.key)
        stage = build_stage(task.config, f"stages.{task.name}")
        if not ranks.is_main:  # the main process looks at the inputs: NFS may show them late here
            return _follow(task, stage, run, ranks)
        inputs = {
            role: _input(store, name, unfinished=stage.roles[role_of(role)].tolerant)
            for role, name in task.parents.items()
        }
        _require_one(stage, inputs)
        with run.claim(note):
            ranks.say({"cached": run.done})
            if run.done:
                return Outcome(run.name, task.name, "cached")
            began = time.monotonic()
            _work(task, stage, inputs, run, ranks)
            run.finish()
        ranks.say({"done": True})
    return Outcome(run.name, task.name, "done", time.monotonic() - began)


def _follow(task: Task, stage: Stage, run: Run, ranks: Ranks) -> Outcome:
    """Do this process's part of a stage whose run another process owns."""
    if ranks.hear()["cached"]:
        return Outcome(run.name, task.name, "cached")
    began = time.monotonic()
    _reset_watermark()
    try:
        if stage.together:
            store = Store(Path(task.place.store))
            inputs = {role: store.run(*name.split("-", 1)) for role, name in task.parents.items()}
            stage.run(inputs, run, _engine(task))
    finally:
        gc.collect()
    ranks.gather(_of_process())
    ranks.hear()  # that it is finished
    return Outcome(run.name, task.name, "done", time.monotonic() - began)


def _engine(task: Task) -> Engine:
    from alignlab.engine.distributed import Engine

    return typed.build(Engine, task.place.engine, "engine")


def _input(store: Store, name: str, *, unfinished: bool) -> Run:
    run = store.run(*name.split("-", 1))
    if not run.done and not unfinished:
        raise TrainingError(f"the input {name} is not finished, so it cannot be read.")
    if run.done and (missing := run.missing()):
        raise TrainingError(
            f"the input {name} was brought from {seal.read(run.path)['upstream']}, and its "
            f"{missing[0]} is not here. Is that place mounted? Give the command again to bring it."
        )
    return run


def _require_one(stage: Stage, inputs: Mapping[str, Run]) -> None:
    """Refuse a tolerant role of which nothing is done: a scheduler only knows what has ended."""
    for role in (name for name, rule in stage.roles.items() if rule.tolerant):
        behind = [run for name, run in inputs.items() if role_of(name) == role]
        if behind and not any(run.done for run in behind):
            raise TrainingError(
                f"none of the {len(behind)} runs behind its input '{role}' is done, so there is "
                "nothing to go on with."
            )


def _work(task: Task, stage: Stage, inputs: dict[str, Run], run: Run, ranks: Ranks) -> None:
    """Run the stage under its tracker and keep the record true, also when it fails."""
    from alignlab.engine.distributed import alone

    engine = _engine(task)
    earlier = run.record
    spent = float(earlier.get("seconds", 0.0))
    began = time.monotonic()
    run.path.mkdir(parents=True, exist_ok=True)
    write_atomically(run.path / "config.json", task.config)
    now = {
        "engine": dict(task.place.engine),
        "tracking": dict(task.place.tracking),
        "processes": {
            "started": ranks.world,
            "nodes": ranks.nodes,
            "at_work": ranks.world if stage.together else 1,
        },
    }
    fresh = {"error": None, "error_kind": None}
    run.update_record(**{**_opening(task, stage), **earlier, **now, **fresh})
    _reset_watermark()
    try:
        with _tracked(task, run):
            with explained(run.path), nullcontext() if stage.together else alone():
                stage.run(inputs, run, engine)
            everyone = ranks.gather(_of_process())
            run.update_record(**_measured(run, spent, began, everyone))
    except BaseException as raised:
        error = ranks.conclude(raised)
        stopped = isinstance(error, Interrupted)  # as asked: no error of the stage
        reason = None if stopped else str(error) or type(error).__name__
        kind = None if stopped else error_kind(error)
        measured = _measured(run, spent, began, [_of_process()])
        run.update_record(**measured, error=reason, error_kind=kind)
        if error is not raised:
            raise error from raised
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


def _measured(
    run: Run, spent: float, began: float, everyone: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the stage took: seconds over all sessions, memory of the process that had most."""
    record = run.record
    torch = sys.modules.get("torch")
    highest = max(int(facts["memory"]) for facts in everyone)
    measured: dict[str, Any] = {
        "seconds": spent + time.monotonic() - began,
        "peak_memory_bytes": max(int(record.get("peak_memory_bytes") or 0), highest),
        "threads": torch.get_num_threads() if torch else None,
    }
    if any(facts["gpu_memory"] is not None for facts in everyone):
        measured["peak_gpu_memory_bytes"] = max(int(facts["gpu_memory"] or 0) for facts in everyone)
    return measured


def _of_process() -> dict[str, Any]:
    """What the record wants to know of every process."""
    torch = sys.modules.get("torch")
    on_gpu = torch and torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "memory": peak_memory(),
        "gpu_memory": torch.cuda.max_memory_allocated() if torch and on_gpu else None,
    }


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


def failure(task: Task, error: Exception, seconds: float) -> Outcome:
    """Describe an error that a stage raised, as the outcome of its node."""
    known = hasattr(error, "exit_code")
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    code = 2 if isinstance(error, ConfigError) else int(getattr(error, "exit_code", 1))
    return Outcome(task.run, task.name, "failed", seconds, reason, code, error_kind(error))
