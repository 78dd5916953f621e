"""Runs a sweep with Optuna: batch by batch, each planned as one graph and executed as any study.

Stages that trials share are trained once, wherever they run, since a stage is named by what it
depends on. The study's files hold all trials, so its report does.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignlab.commands import forecast
from alignlab.commands.started import launcher_words
from alignlab.commands.study import (
    Session,
    carried_out,
    note,
    session_of,
    study_file,
    written_up,
)
from alignlab.commands.study_file import StudyFile
from alignlab.commands.study_name import command_line, is_elsewhere
from alignlab.commands.sweeper.ledger import Ledger, table
from alignlab.commands.sweeper.scores import score_name, scored, stages_of, verdict_of
from alignlab.commands.sweeper.settings import Settings, settings_of
from alignlab.commands.sweeper.space import Space, space_of
from alignlab.commands.sweeper.trials import Trial, Trials, Verdict, open_trials, optuna
from alignlab.commands.text import plan_table
from alignlab.compose import compose_all
from alignlab.errors import ConfigError
from alignlab.launch.task import Outcome
from alignlab.overrides import Sweep, key_of
from alignlab.plan import Plan
from alignlab.report.live import launcher_lease


def optimise(sweep: Sweep, overrides: Sequence[str]) -> int:
    """Run the trials that the study lacks, print what they came to, and write its report."""
    sweeper = Sweeper.of(sweep, overrides)
    probe = sweeper.probe()
    folder = probe.store.studies / probe.study
    owner = f"sweep-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    lease = launcher_lease(folder, owner)
    lease.acquire()

    def alive(other: str) -> bool:
        return bool(other) and launcher_lease(folder, other).live()

    try:
        trials = open_trials(sweeper.settings, sweeper.space, probe.study, folder, owner, alive)
        again = command_line(overrides, multirun=True, launcher=launcher_words())
        return _Run(sweeper, trials, probe, again).run()
    finally:
        lease.discard()


def foreseen(sweep: Sweep, overrides: Sequence[str], *, as_json: bool) -> int:
    """Print the plan of the first batch; what comes after it depends on results."""
    sweeper = Sweeper.of(sweep, overrides)
    session = sweeper.probe()
    needs = session.needs()
    trials = sweeper.settings.n_trials
    if as_json:
        print(json.dumps({**forecast.to_json(session.plan, needs), "trials": trials}, indent=1))
        return 0
    print(plan_table(session.plan, needs) + forecast.report(needs))
    shown = min(sweeper.settings.n_jobs, trials)
    print(f"{shown} of {trials} trials, as the sampler may begin; the next ones depend on results.")
    return 0


@dataclass(frozen=True)
class Sweeper:
    """What a sweep chooses from and how, and the overrides of the command that asked for it."""

    settings: Settings
    space: Space
    overrides: Sequence[str]

    @classmethod
    def of(cls, sweep: Sweep, overrides: Sequence[str]) -> Sweeper:
        """Check what was asked for.

        Raises:
            ConfigError: a search space or settings that cannot be, or Optuna is not installed.
        """
        settings = settings_of(sweep.sweeper or {})
        optuna()
        space = space_of(sweep.overrides)
        if settings.seeds is not None and "seed" in (*space.axes, *map(key_of, space.fixed)):
            raise ConfigError(
                "hydra.sweeper.seeds: the overrides give `seed` too; give one of both."
            )
        return cls(settings, space, overrides)

    def probe(self) -> Session:
        """Plan a first batch that is not stored: what refuses all of it is no matter of settings.

        Raises:
            ConfigError: a job that cannot be run, or an objective that no stage reports.
        """
        storage = optuna().storages.InMemoryStorage()
        trials = open_trials(
            self.settings, self.space, "probe", Path(), "", lambda _: False, storage
        )
        batch = trials.batch()
        session, _, _ = self.acceptable(batch)
        session = session or self.session(batch)  # which says what is wrong with it
        for job in session.plan.jobs:
            stages_of(job, self.settings)
        if not session.settings.launch.stays:
            raise ConfigError(
                "hydra/sweeper=optuna chooses by results, so the command has to stay until they "
                "are there: set launch.wait=true."
            )
        return session

    def jobs(self, trial: Trial) -> list[list[str]]:
        """Overrides of the jobs of a trial: one, or one for each seed."""
        base = self.space.overrides(trial.params)
        seeds = self.settings.seeds
        return [base] if seeds is None else [[*base, f"seed={seed}"] for seed in seeds]

    def session(self, trials: Sequence[Trial]) -> Session:
        """Plan some trials as one graph."""
        jobs = [job for trial in trials for job in self.jobs(trial)]
        configs = [scored(config, self.settings) for config in compose_all(jobs)]
        return session_of(configs, jobs, self.overrides)

    def command(self, params: Mapping[str, Any]) -> str:
        """Command that runs the job of some settings alone."""
        # A study of its own: in that of the sweep it would take the place of the trials.
        words = [word for word in self.space.overrides(params) if not is_elsewhere(word)]
        return command_line(words, multirun=False)

    def acceptable(
        self, trials: Sequence[Trial]
    ) -> tuple[Session | None, list[Trial], dict[int, str]]:
        """Plan the trials that can be; also which these are, and why the others cannot."""
        try:
            return (self.session(trials) if trials else None), list(trials), {}
        except ConfigError as error:
            if len(trials) == 1:
                return None, [], {trials[0].number: str(error)}
        parts = [self.acceptable([trial]) for trial in trials]
        kept = [trial for _, part, _ in parts for trial in part]
        refused = {n: why for _, _, part in parts for n, why in part.items()}
        return (self.session(kept) if kept else None), kept, refused


class _Run:
    """One command's work on a sweep."""

    def __init__(self, sweeper: Sweeper, trials: Trials, probe: Session, again: str) -> None:
        self.sweeper, self.trials, self.again = sweeper, trials, again
        self.probe = probe
        self.file = study_file(probe, sweeper.overrides, again)
        self.ledger = Ledger(self.file.folder, sweeper.settings, trials)
        self.began = time.time()
        self.outcomes: dict[str, Outcome] = {}

    def run(self) -> int:
        known = [Trial(row["number"], row["params"]) for row in self.trials.rows()]
        before, _, _ = self.sweeper.acceptable(known)
        whole = before.plan if before else Plan({}, ())
        stopped = ""
        while not stopped and (batch := self.trials.batch()):
            plan, verdicts = self._batch(batch, whole)
            whole = _merged(whole, plan)
            stopped = self._too_many(verdicts)
        session = replace(self.probe, plan=whole)
        written_up(session, self._file(whole), list(self.outcomes.values()))
        print(table(self.ledger.read(), self.sweeper), flush=True)
        if stopped:
            note(f"{stopped}; after mending it, continue with: {self.again}")
        return 0 if self.trials.best() and not stopped else 1

    def _batch(self, batch: Sequence[Trial], whole: Plan) -> tuple[Plan, list[Verdict]]:
        """Execute a batch of trials and tell the storage what became of them."""
        session, kept, refused = self.sweeper.acceptable(batch)
        verdicts = {number: Verdict("failed", (), why) for number, why in refused.items()}
        plan = Plan({}, ())
        self.ledger.write()
        if session is not None:
            plan = session.plan
            file = self._file(_merged(whole, plan))
            file.open(session.settings.launch.width(plan), self.began)
            numbers = ", ".join(str(trial.number) for trial in batch)
            todo = len(plan.pending())
            print(f"trials {numbers}: {len(plan.nodes)} stages, {todo} to do", flush=True)
            for outcome in carried_out(session, file, self.again):
                self.outcomes[outcome.run] = outcome
            each = len(plan.jobs) // len(kept)
            for i, trial in enumerate(kept):
                jobs = plan.jobs[i * each : (i + 1) * each]
                verdicts[trial.number] = verdict_of(
                    jobs, plan, self.outcomes, session.store, self.sweeper.settings
                )
        for number, verdict in sorted(verdicts.items()):
            self.trials.tell(number, verdict)
            self.ledger.reasons[number] = verdict.reason
            print(self.ledger.line(number), flush=True)
        self.ledger.write()
        return plan, list(verdicts.values())

    def _file(self, plan: Plan) -> StudyFile:
        """The study's files with all trials; scores for the sweeper are not what is reported."""
        apart = {score_name(o.stage) for o in self.sweeper.settings.objectives}
        jobs = tuple(
            replace(j, stages={n: r for n, r in j.stages.items() if n not in apart})
            for j in plan.jobs
        )
        return replace(self.file, plan=replace(plan, jobs=jobs))

    def _too_many(self, verdicts: Sequence[Verdict]) -> str:
        failed = [verdict for verdict in verdicts if verdict.state == "failed"]
        share = self.sweeper.settings.max_failure_rate
        if len(failed) <= share * len(verdicts):
            return ""
        return (
            f"stopped: {len(failed)} of {len(verdicts)} trials of a batch failed, which is more "
            f"than hydra.sweeper.max_failure_rate={share:g}. The first: {failed[0].reason}"
        )


def _merged(one: Plan, other: Plan) -> Plan:
    """Both plans as one; a job of both is one job."""
    known = {job.overrides for job in one.jobs}
    fresh = tuple(job for job in other.jobs if job.overrides not in known)
    return Plan({**one.nodes, **other.nodes}, (*one.jobs, *fresh))
