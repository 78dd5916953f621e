"""Slurm's own commands: sbatch, squeue, sacct, scancel and scontrol, and what they answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from alignlab.errors import AlignlabError, ConfigError
from alignlab.launch.scheduler import JobState, State

QUEUED = (
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
    "SPECIAL_EXIT", "SUSPENDED",
)  # fmt: skip
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "RESIZING")
NEVER = "DependencyNeverSatisfied"
FULL = re.compile(r"SubmitJobs?\w*Limit|queue full", re.I)  # of a user, an account, the controller
TRANSIENT = re.compile(
    r"Socket timed out|Unable to contact slurm controller|temporarily unable|"
    r"Transport endpoint is not connected|Zero Bytes were transmitted|Connection refused",
    re.I,
)
PATIENCE = (1.0, 3.0, 10.0, 30.0)  # seconds before a call is tried again
TIMEOUT = 300.0  # seconds for one call
LISTED = 500  # job ids given to one call; of more, everything is asked for
CANCELLED_AT_ONCE = 200
LATER = 300  # seconds until a job looks again whether there is room in the queue


class SlurmError(AlignlabError):
    """A command of Slurm failed; the message is Slurm's."""


class QueueFull(SlurmError):
    """Slurm takes no more jobs of this user now."""


@dataclass(frozen=True)
class Row:
    """One job or task of an array, as squeue shows it."""

    id: str
    name: str
    comment: str
    state: JobState


@dataclass(frozen=True)
class Limits:
    """What the cluster allows."""

    array: int  # indices of an array are smaller than this
    jobs: int  # jobs that the controller keeps at one time, of all users


class Client:
    """The commands, as a person would give them."""

    def submit(self, script: str, options: Sequence[str], arguments: Sequence[str]) -> str:
        """Give a batch script to Slurm; return the id of the job.

        Raises:
            QueueFull: no more jobs are taken now.
            ConfigError: Slurm refuses what is asked for.
        """
        try:
            out = _call(["sbatch", "--parsable", *options, script, *arguments], _outside())
        except QueueFull:
            raise
        except SlurmError as error:
            raise ConfigError(str(error)) from None
        return out.strip().partition(";")[0]  # with a cluster's name behind it in a federation

    def queue(self, jobs: Collection[str] | None = None) -> Iterator[Row]:
        """Jobs and tasks of arrays that stand in the queue, run, or have ended lately."""
        words = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%S|%r|%j|%k"]
        ids = sorted({job.partition("_")[0] for job in jobs or ()})
        if jobs is None:
            words.append("--me")
        elif len(ids) <= LISTED:
            words.append(f"--jobs={','.join(ids)}")
        try:
            out = _call(words)
        except SlurmError as error:
            if "Invalid job id" in str(error):  # said where all of them are forgotten
                return
            raise
        for line in out.splitlines():
            job, word, starts, reason, name, comment = line.split("|", 5)
            yield Row(job, name, comment, _state(word, reason, starts))

    def states(self, jobs: Collection[str]) -> dict[str, JobState]:
        """How these jobs stand; of those that the queue has forgotten, what accounting knows."""
        wanted = set(jobs)
        if not wanted:
            return {}
        found = {row.id: row.state for row in self.queue(wanted) if row.id in wanted}
        return found | self._ended(wanted - found.keys())

    def cancel(self, jobs: Collection[str]) -> None:
        """End these jobs, whether they wait or run."""
        names = sorted(jobs)
        for first in range(0, len(names), CANCELLED_AT_ONCE):
            _call(["scancel", *names[first : first + CANCELLED_AT_ONCE]])

    def release(self, job: str, dependency: str) -> None:
        """Let a job that was submitted on hold wait for others instead, or else for a while."""
        what = f"Dependency={dependency}" if dependency else f"StartTime=now+{LATER}"
        _call(["scontrol", "update", f"JobId={job}", what])
        _call(["scontrol", "release", job])

    def limits(self) -> Limits:
        """What the cluster's configuration allows."""
        out = _call(["scontrol", "show", "config"])
        found = dict(re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*(\d+)", out, re.M))
        return Limits(int(found.get("MaxArraySize", 1001)), int(found.get("MaxJobCount", 10000)))

    def partitions(self) -> list[str]:
        """Names of the cluster's partitions."""
        return sorted({name.rstrip("*") for name in _call(["sinfo", "-h", "-o", "%P"]).split()})

    def _ended(self, jobs: Collection[str]) -> dict[str, JobState]:
        if not jobs or shutil.which("sacct") is None:
            return {}
        ids = sorted({job.partition("_")[0] for job in jobs})
        words = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State"]
        found: dict[str, JobState] = {}
        for first in range(0, len(ids), LISTED):
            try:
                out = _call([*words, f"--jobs={','.join(ids[first : first + LISTED])}"])
            except SlurmError as error:
                if "accounting storage is disabled" in str(error):
                    return {}
                raise
            for line in out.splitlines():
                name, _, word = line.partition("|")
                state = _state(word, "", "")
                found |= {job: state for job in _tasks(name) if job in jobs}
        return found


def _tasks(job: str) -> Iterator[str]:
    """Ids of the tasks that accounting names together: ``4_[0-3,7%2]``, cancelled as a whole."""
    base, bracket, inside = job.partition("_[")
    if not bracket:
        yield job
        return
    for part in inside.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        yield from (f"{base}_{index}" for index in range(int(first), int(last or first) + 1))


def _state(word: str, reason: str, starts: str) -> JobState:
    word = word.split()[0] if word else ""  # "CANCELLED by 1000"
    why = "" if reason in ("None", "(null)", "") else reason
    if word in QUEUED:
        return JobState("queued", why or word.lower(), "" if starts == "N/A" else starts)
    if word in RUNNING:
        return JobState("running")
    ends: dict[str, State] = {"COMPLETED": "done", "CANCELLED": "cancelled"}
    return JobState(ends.get(word, "failed"), f"{word} {why}".strip())


def require() -> None:
    """Refuse at once where there is no Slurm.

    Raises:
        ConfigError: its commands are not on the PATH.
    """
    if missing := [n for n in ("sbatch", "squeue", "scancel", "scontrol") if not shutil.which(n)]:
        raise ConfigError(
            f"launch=slurm needs Slurm's commands on the PATH, and {', '.join(missing)} is not "
            "there. Start it on a login node of the cluster, or use launch=local."
        )


def _outside() -> dict[str, str] | None:
    """The environment without what says that we are inside a job: a new job would inherit it."""
    if "SLURM_JOB_ID" not in os.environ:
        return None
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SRUN_"))}
    return {**kept, **{k: os.environ[k] for k in ("SLURM_CONF",) if k in os.environ}}


def _call(words: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """Run one command; what passes by itself is tried again."""
    for wait in (*PATIENCE, None):
        try:
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT,
                env=variables,
            )
        except FileNotFoundError:
            raise SlurmError(f"{words[0]} is not on the PATH.") from None
        except subprocess.TimeoutExpired:
            raise SlurmError(f"{words[0]} gave no answer in {TIMEOUT:.0f} seconds.") from None
        if done.returncode == 0:
            return done.stdout
        said = " ".join(_messages(done.stderr.splitlines()))
        if FULL.search(said):
            raise QueueFull(f"{words[0]}: {said}")
        if wait is None or not TRANSIENT.search(said):
            break
        time.sleep(wait)
    raise SlurmError(f"{words[0]}: {said or f'exit code {done.returncode}'}")


def _messages(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield re.sub(r"^\w+: (error|fatal): ", "", line.strip())
