"""``alignlab plan`` and ``alignlab run``: from overrides to a plan, an execution and a report."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab import typed
from alignlab.commands.refresh import Refresher, retire
from alignlab.commands.study_file import StudyFile, asked, width_of
from alignlab.commands.text import plan_table
from alignlab.compose import compose_all, expand
from alignlab.engine.distributed import Engine
from alignlab.engine.progress import clock
from alignlab.engine.tracking import Tracking
from alignlab.errors import ConfigError, Interrupted
from alignlab.graph import counted
from alignlab.launch.launcher import Launch
from alignlab.launch.task import Outcome, Place
from alignlab.plan import Plan
from alignlab.run import Store

if TYPE_CHECKING:
    from alignlab.report.analysis import Analysis

COMMON = ("study", "store", "report", "engine", "launch", "tracking")
_STUDY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What of a configuration says where and how, the same for all jobs of a command."""

    study: str | None
    store: Path | None
    report: bool
    engine: Engine
    launch: Launch
    tracking: Tracking


@dataclass(frozen=True)
class Session:
    """One command's plan and settings."""

    plan: Plan
    settings: Settings
    store: Store
    study: str
    place: Place


def store_root(configured: Path | None = None) -> Path:
    """Folder of the runs: as configured, else ``$ALIGNLAB_RUNS``, else ``runs``."""
    return (configured or Path(os.environ.get("ALIGNLAB_RUNS") or "runs")).expanduser().resolve()


def prepare(overrides: Sequence[str], multirun: bool) -> Session:
    """Compose, check and plan every job of a command, without loading anything.

    Raises:
        ConfigError: anything in the configuration that cannot be run.
    """
    jobs = expand(overrides, multirun)
    configs = compose_all(jobs)
    common = _common(configs)
    settings = typed.build(Settings, common)
    store = Store(store_root(settings.store))
    plan = Plan.from_configs(configs, store, jobs)
    study = settings.study or _derived(overrides)
    if not _STUDY.fullmatch(study):
        raise ConfigError(f"study: {study!r} cannot name a folder; use letters, digits, '-', '_'.")
    place = Place(
        store=str(store.root), study=study, engine=common["engine"], tracking=common["tracking"]
    )
    return Session(plan, settings, store, study, place)


def plan(overrides: Sequence[str], *, multirun: bool, as_json: bool) -> int:
    """Print the plan; run nothing."""
    session = prepare(overrides, multirun)
    if as_json:
        print(json.dumps(session.plan.to_json(), indent=1))
    else:
        print(plan_table(session.plan))
    return 0


def run(overrides: Sequence[str], *, multirun: bool) -> int:
    """Execute what is not done; print a line per stage, and the report's path at the end."""
    _refuse_many_processes()
    session = prepare(overrides, multirun)
    return execute(session, overrides, _command(overrides, multirun))


def execute(session: Session, overrides: Sequence[str], again: str) -> int:
    """Execute a session's plan and write its report; ``again`` is the command that does it."""
    launch = session.settings.launch
    todo = session.plan.pending()
    total = len(session.plan.nodes)
    engine = session.place.engine
    file = StudyFile(session.study, session.store, session.plan,
                     asked(again, overrides, engine, launch))  # fmt: skip
    file.open(width_of(launch.jobs, launch.kind == "inprocess"))
    print(f"study {session.study}: {total} stages, {total - len(todo)} in the store", flush=True)
    for node in session.plan.nodes.values():
        if node.cached:
            _say(Outcome(node.run, node.name, "cached"))
    try:
        with file.at_work(), _pages(session) as page:

            def settled(outcome: Outcome) -> None:
                file.settled(outcome)
                _say(outcome)
                if page is not None:
                    page.settled(outcome)

            outcomes = launch.execute(session.plan, session.place, note=_note, settled=settled)
    except Interrupted as error:
        retire(file.folder / "report" / "index.html")
        raise Interrupted(f"{error}\ncontinue with: {again}", error.exit_code - 128) from None
    code = _exit_code(outcomes, session.plan)
    try:
        if session.settings.report and any(o.status in ("cached", "done") for o in outcomes):
            path = _report(session)
            if path is not None:
                print(f"report: {path}", flush=True)
    finally:
        file.record()
    if code:
        _note(f"after mending it, continue with: {again}")
    return code


@contextmanager
def _pages(session: Session) -> Iterator[Refresher | None]:
    """Write the page while the study runs, if there will be something to show on it."""
    runs = frozenset(n.run for n in session.plan.nodes.values() if n.kind == "evaluate")
    if not (session.settings.report and runs and session.plan.pending()):
        yield None
        return
    with Refresher.of(session.store.root, session.study, runs, _note) as page:
        for node in session.plan.nodes.values():
            if node.cached:
                page.settled(Outcome(node.run, node.name, "cached"))
        yield page


def _refuse_many_processes() -> None:
    """Each process of a torchrun would claim the same run, and wait for the others for ever."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise ConfigError(
            f"WORLD_SIZE={world}: this command was started as one of several processes, as torchrun"
            " does, and it plans and runs a study by itself. Start it without; `launch=local` runs"
            " several stages side by side."
        )


def report(study: str, *, open_it: bool, wandb: bool = False) -> int:
    """Write the report of a study that has been run, and print its path; ``wandb`` logs it too."""
    from alignlab.report.analysis import analyse
    from alignlab.report.page import write_report
    from alignlab.report.table import read_study
    from alignlab.report.tracking import tracking_of

    store = Store(store_root())
    analysis = analyse(read_study(study, store))
    path = write_report(analysis, store)
    print(f"report: {path}")
    if wandb:
        _publish(analysis, path, tracking_of(analysis.study))
    if open_it:
        webbrowser.open(path.as_uri())
    return 0


def _report(session: Session) -> Path | None:
    evaluated = any(node.kind == "evaluate" for node in session.plan.nodes.values())
    if not evaluated:
        _note("no report: the study evaluates nothing")
        return None
    from alignlab.report.analysis import analyse
    from alignlab.report.page import write_report
    from alignlab.report.summary import summary_of
    from alignlab.report.table import read_study

    analysis = analyse(read_study(session.study, session.store))
    path = write_report(analysis, session.store)
    print(summary_of(analysis), flush=True)
    _publish(analysis, path, session.settings.tracking)
    return path


def _publish(analysis: Analysis, page: Path, tracking: Tracking) -> None:
    from alignlab.report.tracking import publish

    where = publish(analysis, page.parent, tracking)
    if where is not None:
        _note(f"W&B report: {where}")


def _exit_code(outcomes: Sequence[Outcome], plan: Plan) -> int:
    done = {o.run for o in outcomes if o.status in ("cached", "done")}
    # A trial that diverged and was counted is a result of its search, and nothing to mend.
    result = {o.run for o in outcomes if o.error_kind == "diverged"} & counted(plan.nodes, done)
    codes = {o.exit_code or 1 for o in outcomes if o.status == "failed" and o.run not in result}
    if not codes:
        return 0
    return 2 if codes == {2} else 1


def _common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Take the settings that no job of a sweep may have for itself."""
    for key in COMMON:
        if any(config.get(key) != configs[0].get(key) for config in configs):
            raise ConfigError(
                f"{key}: differs between the jobs of the sweep. It says where and how a study is "
                "executed, which is no part of a result: sweep over the stages' fields, or give "
                "two commands."
            )
    return {key: configs[0][key] for key in COMMON if key in configs[0]}


def _derived(overrides: Sequence[str]) -> str:
    """Name a study by its experiment or pipeline and a hash of all that was overridden."""
    chosen = {o.partition("=")[0].lstrip("+"): o.partition("=")[2] for o in overrides}
    head = chosen.get("experiment") or chosen.get("pipeline") or "study"
    head = re.sub(r"[^A-Za-z0-9._-]+", "-", head).strip("-.") or "study"
    # Where and how do not make another study of it.
    counted = sorted(o for o in overrides if o.partition("=")[0].split(".")[0] not in COMMON)
    return f"{head}-{hashlib.sha256(chr(10).join(counted).encode()).hexdigest()[:6]}"


def _command(overrides: Sequence[str], multirun: bool) -> str:
    words = ["alignlab", "run", *(["-m"] if multirun else []), *overrides]
    return shlex.join(words)


def _say(outcome: Outcome) -> None:
    time_taken = f"  {clock(outcome.seconds)}" if outcome.status in ("done", "failed") else ""
    print(f"{outcome.status:<8} {outcome.run:<28} {outcome.name}{time_taken}", flush=True)
    if outcome.reason:
        _note(f"  {outcome.name}: {outcome.reason}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
