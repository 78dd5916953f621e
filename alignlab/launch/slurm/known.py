"""Which stages stand in the queue already, whoever submitted them: nothing is submitted twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from alignlab.launch.scheduler import Job, JobState, Submission
from alignlab.launch.slurm.arrays import Item
from alignlab.launch.slurm.client import NEVER, Client
from alignlab.run import Store

LAST = "report"  # what the last job is called
HELD = "JobHeldUser"


def live_jobs(
    store: Store, study: str, client: Client, items: Sequence[Item], done: Callable[[str], bool]
) -> dict[str, Job]:
    """Jobs that are queued or running, by run: the study's own, and what ``items`` wait for.

    A job of this study that waits in vain (an input of it is to be submitted again, or never came)
    is cancelled and left out.
    """
    wanted = {run for item in items for run in (item.run, *item.strict, *item.tolerant)}
    known = {
        run: job for run, job in _submitted(store, study) if run in wanted or job.study == study
    }
    states = client.states({job.id for job in known.values()})
    for run, job, state in _unrecorded(store.studies / study, client):
        if run in wanted and not (run in known and known[run].id in states):
            known[run], states[job.id] = job, state
    live = {run: job for run, job in known.items() if job.id in states and states[job.id].live}
    vain = set(_in_vain(items, live, states, done))
    if ours := [live[run].id for run in vain if live[run].study == study]:
        client.cancel(ours)
    return {run: job for run, job in live.items() if run not in vain}


def last_jobs(client: Client, folder: Path) -> list[str]:
    """Jobs that wait to write the report of the study in ``folder``, but those left on hold."""
    rows = [row for row in client.queue() if row.comment == str(folder)]
    named = [row for row in rows if row.name == job_name(folder.name, LAST)]
    waiting = [row for row in named if row.state.state == "queued"]
    if stale := [row.id for row in waiting if row.state.reason == HELD]:  # its submitter was killed
        client.cancel(stale)
    return [row.id for row in waiting if row.state.reason != HELD]


def list_file(folder: Path, batch: str) -> Path:
    """The file that says which run each index of an array is."""
    return folder / "jobs" / f"{batch}.list"


def job_name(study: str, batch: str) -> str:
    """What squeue shows of a job."""
    return f"{study}.{batch}"


def _submitted(store: Store, study: str) -> Iterator[tuple[str, Job]]:
    """Jobs by run as the studies of a store wrote them down; those of this study last."""
    folders = [file.parent for file in store.studies.glob("*/submission.json")]
    for folder in sorted(folders, key=lambda folder: (folder.name == study, folder.name)):
        found = Submission.read(folder)
        if found is not None and found.cluster == "slurm":
            yield from found.jobs.items()


def _unrecorded(folder: Path, client: Client) -> Iterator[tuple[str, Job, JobState]]:
    """Jobs of the study in the queue, also those that a killed submitter had not written down."""
    for row in client.queue():
        if row.comment != str(folder) or not row.state.live:
            continue
        batch = row.name.removeprefix(job_name(folder.name, ""))
        runs = {"": batch}
        if (file := list_file(folder, batch)).is_file():
            runs = dict(line.split() for line in file.read_text().splitlines())
        run = runs.get(row.id.partition("_")[2])
        if run is not None:
            yield run, Job(row.id, time.time(), folder.name), row.state


def _in_vain(
    items: Sequence[Item],
    live: Mapping[str, Job],
    states: Mapping[str, JobState],
    done: Callable[[str], bool],
) -> Iterator[str]:
    """Runs whose job waits for one that will not come: it must be submitted with new inputs."""
    vain: set[str] = set()
    for item in items:
        if item.run not in live or states[live[item.run].id].state != "queued":
            continue
        behind = (*item.strict, *item.tolerant)
        lost = any(run in vain or (run not in live and not done(run)) for run in behind)
        if lost or states[live[item.run].id].reason == NEVER:
            vain.add(item.run)
            yield item.run
