"""``alignlab plan`` and ``alignlab run``: from overrides to a plan, an execution and a report."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from alignlab import typed
from alignlab.commands.text import plan_table
from alignlab.compose import compose_all, expand
from alignlab.engine.distributed import Engine
from alignlab.engine.progress import clock
from alignlab.engine.tracking import Tracking
from alignlab.errors import ConfigError, Interrupted
from alignlab.files import write_atomically
from alignlab.launch.launcher import Launch
from alignlab.launch.task import Outcome, Place
from alignlab.plan import Plan
from alignlab.run import Store

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
    again = _command(overrides, multirun)
    _write_study(session, overrides, again)
    todo = session.plan.pending()
    total = len(session.plan.nodes)
    print(f"study {session.study}: {total} stages, {total - len(todo)} in the store", flush=True)
    for node in session.plan.nodes.values():
        if node.cached:
            _say(Outcome(node.run, node.name, "cached"))
    try:
        outcomes = session.settings.launch.execute(
            session.plan, session.place, note=_note, settled=_say
        )
    except Interrupted as error:
        raise Interrupted(f"{error}\ncontinue with: {again}", error.exit_code - 128) from None
    code = _exit_code(outcomes)
    if session.settings.report and any(o.status in ("cached", "done") for o in outcomes):
        path = _report(session)
        if path is not None:
            print(f"report: {path}", flush=True)
    if code:
        _note(f"after mending it, continue with: {again}")
    return code


def _refuse_many_processes() -> None:
    """Each process of a torchrun would claim the same run, and wait for the others for ever."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise ConfigError(
            f"WORLD_SIZE={world}: this command was started as one of several processes, as torchrun"
            " does, and it plans and runs a study by itself. Start it without; `launch=local` runs"
            " several stages side by side."
        )


def report(study: str, *, open_it: bool) -> int:
    """Write the report of a study that has been run, and print its path."""
    from alignlab.report.page import build_report

    path = build_report(study, Store(store_root()))
    print(f"report: {path}")
    if open_it:
        webbrowser.open(path.as_uri())
    return 0


def _report(session: Session) -> Path | None:
    evaluated = any(node.kind == "evaluate" for node in session.plan.nodes.values())
    if not evaluated:
        _note("no report: the study evaluates nothing")
        return None
    from alignlab.report.page import build_report
    from alignlab.report.summary import text_summary

    path = build_report(session.study, session.store)
    print(text_summary(session.study, session.store), flush=True)
    return path


def _exit_code(outcomes: Sequence[Outcome]) -> int:
    codes = {o.exit_code or 1 for o in outcomes if o.status == "failed"}
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


def _write_study(session: Session, overrides: Sequence[str], command: str) -> None:
    file = session.store.studies / session.study / "study.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    created = datetime.now().astimezone().isoformat(timespec="seconds")
    if file.is_file():
        created = json.loads(file.read_text(encoding="utf-8")).get("created", created)
    jobs = [
        {"overrides": list(job.overrides), "seed": job.seed, "stages": dict(job.stages)}
        for job in session.plan.jobs
    ]
    write_atomically(
        file,
        {
            "name": session.study,
            "created": created,
            "command": command,
            "overrides": list(overrides),
            "jobs": jobs,
        },
    )


def _say(outcome: Outcome) -> None:
    time_taken = f"  {clock(outcome.seconds)}" if outcome.status in ("done", "failed") else ""
    print(f"{outcome.status:<8} {outcome.run:<28} {outcome.name}{time_taken}", flush=True)
    if outcome.reason:
        _note(f"  {outcome.name}: {outcome.reason}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
