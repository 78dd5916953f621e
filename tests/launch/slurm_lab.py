"""A store, toys in it, and a Slurm that only writes down what it is told."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import toys
import yaml

from alignlab.launch.launcher import launch_of
from alignlab.launch.scheduler import Submission
from alignlab.launch.slurm.launcher import Slurm
from alignlab.launch.task import Outcome, Place
from alignlab.plan import Plan
from alignlab.run import Store

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo")
FAKE = Path(__file__).with_name("fake_slurm.py")
CONF = toys.ROOT / "conf" / "launch" / "slurm.yaml"


class FakeSlurm:
    """The commands on the PATH, and the folder behind them."""

    def __init__(self, folder: Path, setenv: Any) -> None:
        self.folder = folder
        commands = folder / "bin"
        commands.mkdir(parents=True)
        for name in COMMANDS:  # -S -E: a call costs a hundredth of a second
            text = FAKE.read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable} -SE", 1)
            (commands / name).write_text(text)
            (commands / name).chmod(0o755 | stat.S_IXUSR)
        setenv("PATH", f"{commands}:{os.environ['PATH']}")
        setenv("FAKE_SLURM", str(folder))
        self.limit()

    def limit(self, **limits: Any) -> None:
        """Set what the cluster allows: submit, array, jobs; or an account that it refuses."""
        (self.folder / "limits.json").write_text(json.dumps(limits))

    def rows(self, name: str) -> list[Any]:
        """Lines of one of the files."""
        file = self.folder / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def jobs(self, *, last: bool = False) -> dict[str, dict[str, Any]]:
        """What was submitted, by id, without the jobs that come last."""
        rows = {str(row["id"]): row for row in self.rows("jobs.jsonl")}
        return {i: row for i, row in rows.items() if row["name"].endswith(".report") == last}

    def calls(self, command: str) -> list[list[str]]:
        """Arguments of the calls of one command."""
        return [row[1:] for row in self.rows("calls") if row[0] == command]

    def become(self, job: str, state: str) -> None:
        """Let a job or task have a state: ``RUNNING``, ``FAILED|NonZeroExitCode``, ``GONE``."""
        with (self.folder / "states.jsonl").open("a") as stream:
            stream.write(json.dumps({"id": job, "state": state}) + "\n")


@dataclass
class SlurmLab:
    """Plans of toys, submitted to a fake Slurm."""

    root: Path
    slurm: FakeSlurm
    study: str = "s"
    notes: list[str] = field(default_factory=list)
    settled: list[Outcome] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.root)

    @property
    def folder(self) -> Path:
        return self.store.studies / self.study

    @property
    def submission(self) -> Submission:
        found = Submission.read(self.folder)
        assert found is not None
        return found

    def plan(self, *jobs: dict[str, Any]) -> Plan:
        return Plan.from_configs([{"seed": 0, "stages": job} for job in jobs], self.store)

    def execute(self, plan: Plan, **options: Any) -> list[Outcome]:
        """Hand a plan to Slurm as `alignlab run launch=slurm` does."""
        launch = slurm(**options)
        launch.check(plan)
        place = Place(
            store=str(self.root), study=self.study, engine=toys.ENGINE, tracking=toys.TRACKING
        )
        return launch.execute(plan, place, note=self.notes.append, settled=self.settled.append)

    def by_name(self, plan: Plan) -> dict[str, list[str]]:
        """Ids of the jobs of the stages of a plan, by the stage's name."""
        found: dict[str, list[str]] = {}
        for run, job in self.submission.jobs.items():
            found.setdefault(plan.nodes[run].name, []).append(job.id)
        return found

    def finish(self, plan: Plan, name: str) -> None:
        """Let the stages of that name be done, and their jobs with them."""
        for node in plan.nodes.values():
            if node.name == name:
                run = self.store.run(node.kind, node.key)
                run.update_record(seconds=2.5, summary={"total": 1})
                run.finish()
                if node.run in self.submission.jobs:
                    self.slurm.become(self.submission.jobs[node.run].id, "COMPLETED|None")

    def fail(self, run: str, name: str, reason: str = "the toy is broken.") -> None:
        """Let a stage fail as its program does: an outcome, and a job that ended with 1."""
        told = {"run": run, "name": name, "status": "failed", "seconds": 1.0, "reason": reason,
                "exit_code": 1, "error_kind": "failed", "time": 4e9}  # fmt: skip
        folder = self.folder / "outcomes"
        folder.mkdir(exist_ok=True)
        (folder / f"{run}.json").write_text(json.dumps(told))
        self.slurm.become(self.submission.jobs[run].id, "FAILED|NonZeroExitCode")


def slurm(**options: Any) -> Slurm:
    """The launch of conf/launch/slurm.yaml with some of its values changed."""
    stated = yaml.safe_load(CONF.read_text())
    found = launch_of({**stated, **options})
    assert isinstance(found, Slurm)
    return found


def chain(seed: int, methods: int = 1) -> dict[str, Any]:
    """One job of a sweep: sft, and for each method what reads it, and what scores both."""
    stages: dict[str, Any] = {"sft": toys.toy(1, seed)}
    for i in range(methods):
        stages[f"dpo{i}"] = toys.toy(10 + i, seed, left="sft")
        stages[f"eval{i}"] = toys.toy(100, seed, left=f"dpo{i}", right="sft")
    return stages
