"""``alignlab plan`` and ``alignlab run``: from overrides to a plan, an execution and a report."""

from __future__ import annotations

import json
import os
import sys
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab import typed
from alignlab.capacity.device import Device
from alignlab.commands import forecast
from alignlab.commands.refresh import Refresher, retire
from alignlab.commands.started import launcher_words
from alignlab.commands.study_file import StudyFile, asked
from alignlab.commands.study_name import COMMON, command_line, name_of
from alignlab.commands.text import plan_table
from alignlab.commands.upstream import bring, with_upstream
from alignlab.compose import compose_all, expand, sweep
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
    from alignlab.capacity.forecast import Forecast
    from alignlab.report.analysis import Analysis


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What of a configuration says where and how, the same for all jobs of a command."""

    study: str | None
    store: Path | None
    store_upstream: tuple[str, ...] = ()
    report: bool
    engine: Engine
    launch: Launch
    tracking: Tracking
    device: Device | None = None  # what the plan is priced for


@dataclass(frozen=True)
class Session:
    """One command's plan and settings."""

    plan: Plan
    settings: Settings
    store: Store
    study: str
    place: Place

    def needs(self) -> Forecast:
        """What the stages need of the device, named or present."""
        s = self.settings
        return forecast.forecast_of(self.plan, s.engine, s.launch, s.device, self.store)


def store_root(configured: Path | None = None) -> Path:
    """Folder of the runs: as configured, else ``$ALIGNLAB_RUNS``, else ``runs``."""
    return (configured or Path(os.environ.get("ALIGNLAB_RUNS") or "runs")).expanduser().resolve()


def prepare(overrides: Sequence[str], multirun: bool) -> Session:
    """Compose, check and plan every job of a command, without loading anything.

    Raises:
        ConfigError: anything in the configuration that cannot be run.
    """
    jobs = expand(overrides, multirun)
    return session_of(compose_all(jobs), jobs, overrides)


def session_of(
    configs: Sequence[Mapping[str, Any]], jobs: Sequence[Sequence[str]], overrides: Sequence[str]
) -> Session:
    """Check and plan composed jobs; ``overrides`` are those of the command.

    Raises:
        ConfigError: as :func:`prepare`.
    """
    common = common_of(configs)
    settings = typed.build(Settings, common)
    store = Store(store_root(settings.store))
    plan = with_upstream(Plan.from_configs(configs, store, jobs), settings.store_upstream)
    settings.launch.check(plan)
    study = name_of(settings.study, overrides)
    place = Place(
        store=str(store.root), study=study, engine=common["engine"], tracking=common["tracking"]
    )
    return Session(plan, settings, store, study, place)


def plan(overrides: Sequence[str], *, multirun: bool, as_json: bool) -> int:
    """Print the plan; run nothing."""
    if multirun and (chosen := sweep(overrides)).sweeper is not None:
        from alignlab.commands.sweeper.drive import foreseen

        return foreseen(chosen, overrides, as_json=as_json)
    session = prepare(overrides, multirun)
    needs = session.needs()
    if as_json:
        print(json.dumps(forecast.to_json(session.plan, needs), indent=1))
    else:
        from alignlab.commands.plan_data import mixtures

        print(plan_table(session.plan, needs) + mixtures(session.plan) + forecast.report(needs))
    return 0


def run(overrides: Sequence[str], *, multirun: bool) -> int:
    """Execute what is not done; print a line per stage, and the report's path at the end."""
    again = command_line(overrides, multirun)
    if os.environ.get("WORLD_SIZE", "1") != "1":  # torchrun has started it in several processes
        from alignlab.commands.together import run_together

        started = command_line(overrides, multirun, launcher_words())
        here = partial(_run, overrides, multirun, started)
        return run_together(overrides, multirun=multirun, command=here, again=again)
    return _run(overrides, multirun, again)


def _run(overrides: Sequence[str], multirun: bool, again: str) -> int:
    if multirun and (chosen := sweep(overrides)).sweeper is not None:
        from alignlab.commands.sweeper.drive import optimise

        return optimise(chosen, overrides)
    return execute(prepare(overrides, multirun), overrides, again)


def execute(session: Session, overrides: Sequence[str], again: str) -> int:
    """Execute a session's plan and write its report; ``again`` is the command that does it."""
    todo = session.plan.pending()
    total = len(session.plan.nodes)
    file = study_file(session, overrides, again)
    file.open(session.settings.launch.width(session.plan))
    print(f"study {session.study}: {total} stages, {total - len(todo)} in the store", flush=True)
    outcomes = carried_out(session, file, again)
    if any(outcome.status == "queued" for outcome in outcomes):
        print(f"how it goes: alignlab status {session.study}", flush=True)
        return 0
    code = _exit_code(outcomes, session.plan)
    written_up(session, file, outcomes)
    if code:
        note(f"after mending it, continue with: {again}")
    return code


def study_file(session: Session, overrides: Sequence[str], again: str) -> StudyFile:
    """Make what writes the study's files, if its stages fit where they are to be executed."""
    forecast.require_room(session.needs())
    stated = asked(again, overrides, session.place.engine, session.settings.launch)
    ending = {"report": session.settings.report, "tracking": session.place.tracking}
    return StudyFile(session.study, session.store, session.plan, stated, ending)


def carried_out(session: Session, file: StudyFile, again: str) -> list[Outcome]:
    """Execute what is not done of a plan; files and terminal are told what becomes of each stage.

    Raises:
        Interrupted: a signal came; the message says how to continue.
    """
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

            bring(session.plan, session.store, note)
            launch = session.settings.launch
            return launch.execute(session.plan, session.place, note=note, settled=settled)
    except Interrupted as error:
        retire(file.folder / "report" / "index.html")
        raise Interrupted(f"{error}\ncontinue with: {again}", error.exit_code - 128) from None


def written_up(session: Session, file: StudyFile, outcomes: Sequence[Outcome]) -> None:
    """Write the report of a study that has ended, if there is something to show, and its record."""
    try:
        if session.settings.report and any(o.status in ("cached", "done") for o in outcomes):
            path = _report(session)
            if path is not None:
                print(f"report: {path}", flush=True)
    finally:
        file.record()


@contextmanager
def _pages(session: Session) -> Iterator[Refresher | None]:
    """Write the page while the study runs, if there will be something to show on it."""
    runs = frozenset(n.run for n in session.plan.nodes.values() if n.kind == "evaluate")
    here = session.settings.report and session.settings.launch.stays
    if not (here and runs and session.plan.pending()):
        yield None
        return
    with Refresher.of(session.store.root, session.study, runs, note) as page:
        for node in session.plan.nodes.values():
            if node.cached:
                page.settled(Outcome(node.run, node.name, "cached"))
        yield page


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
        note("no report: the study evaluates nothing")
        return None
    return write_report_of(session.study, session.store, session.settings.tracking)


def write_report_of(study: str, store: Store, tracking: Tracking) -> Path:
    """Write the report of a study and print its summary; return where the page is."""
    from alignlab.report.analysis import analyse
    from alignlab.report.page import write_report
    from alignlab.report.summary import summary_of
    from alignlab.report.table import read_study

    analysis = analyse(read_study(study, store))
    path = write_report(analysis, store)
    print(summary_of(analysis), flush=True)
    _publish(analysis, path, tracking)
    return path


def _publish(analysis: Analysis, page: Path, tracking: Tracking) -> None:
    from alignlab.report.tracking import publish

    where = publish(analysis, page.parent, tracking)
    if where is not None:
        note(f"W&B report: {where}")


def _exit_code(outcomes: Sequence[Outcome], plan: Plan) -> int:
    done = {o.run for o in outcomes if o.status in ("cached", "done")}
    # A trial that diverged and was counted is a result of its search, and nothing to mend.
    result = {o.run for o in outcomes if o.error_kind == "diverged"} & counted(plan.nodes, done)
    codes = {o.exit_code or 1 for o in outcomes if o.status == "failed" and o.run not in result}
    if not codes:
        return 0
    return 2 if codes == {2} else 1


def common_of(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Take the settings that no job of a sweep may have for itself."""
    for key in COMMON:
        if any(config.get(key) != configs[0].get(key) for config in configs):
            raise ConfigError(
                f"{key}: differs between the jobs of the sweep. It says where and how a study is "
                "executed, which is no part of a result: sweep over the stages' fields, or give "
                "two commands."
            )
    return {key: configs[0][key] for key in COMMON if key in configs[0]}


def _say(outcome: Outcome) -> None:
    time_taken = f"  {clock(outcome.seconds)}" if outcome.status in ("done", "failed") else ""
    print(f"{outcome.status:<8} {outcome.run:<28} {outcome.name}{time_taken}", flush=True)
    if outcome.reason:
        note(f"  {outcome.name}: {outcome.reason}")


def note(text: str) -> None:
    """Say what a person should know, beside the output."""
    print(text, file=sys.stderr, flush=True)
