"""``alignlab cancel``: ends the jobs of a study on a cluster, or those of some of its stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignlab.commands.study import store_root
from alignlab.commands.watch import study_named
from alignlab.errors import ConfigError, did_you_mean
from alignlab.launch.scheduler import Submission, scheduler_of
from alignlab.report.live import Snapshot, StageState, Watcher, launcher_lease
from alignlab.run import Store


def cancel(study: str, words: Sequence[str]) -> int:
    """Cancel what of a study is queued or running; ``words`` name stages, kinds or runs.

    A running stage saves a checkpoint, from which the next `alignlab run` goes on.

    Raises:
        DataError: there is no such study.
        ConfigError: no stage of it has that name; it runs in a process, not on a cluster.
    """
    store = Store(store_root())
    folder = store.studies / study_named(study, store)
    submission = Submission.read(folder)
    if submission is None:
        raise ConfigError(_not_on_a_cluster(store, study))
    seen = Watcher(study, store).look()
    chosen = _chosen(seen, words)
    live = [stage for stage in chosen if stage.job and stage.status in ("queued", "running")]
    ours = [s for s in live if submission.jobs[s.run].study == study]
    scheduler = scheduler_of(submission.cluster)
    jobs = [stage.job for stage in ours]
    if not words and submission.last:
        state = scheduler.states([submission.last]).get(submission.last)
        jobs += [submission.last] if state is not None and state.live else []
    if jobs:
        scheduler.cancel(jobs)
    for stage in ours:
        print(f"cancelled  {stage.run:<28} {stage.name}  job {stage.job}, was {stage.status}")
    for stage in live:
        if stage not in ours:
            other = submission.jobs[stage.run].study
            print(f"left alone {stage.run:<28} {stage.name}  job {stage.job} of study {other}")
    blocked = len(list(_readers(seen, {stage.run for stage in ours})))
    more = f"; {blocked} stages that read them will not run" if blocked else ""
    print(f"{len(ours)} stages cancelled{more}")
    if ours and seen.command:
        print(f"continue with: {seen.command}")
    return 0


def _chosen(seen: Snapshot, words: Sequence[str]) -> list[StageState]:
    if not words:
        return list(seen.stages)
    found: list[StageState] = []
    for word in words:
        named = [
            stage
            for stage in seen.stages
            if word in (stage.name, stage.kind, stage.run) or stage.run.startswith(f"{word}-")
        ]
        if not named:
            names = {stage.name for stage in seen.stages} | {stage.run for stage in seen.stages}
            raise ConfigError(
                f"study {seen.study} has no stage '{word}'.{did_you_mean(word, names)}"
            )
        found += [stage for stage in named if stage not in found]
    return found


def _readers(seen: Snapshot, runs: set[str]) -> Iterator[StageState]:
    """Stages that are not done, and that need one of ``runs`` or what needs it."""
    lost = set(runs)
    for stage in seen.stages:
        needs = any(source in lost for source in stage.inputs.values()) and not stage.tolerant
        if needs and stage.status in ("waiting", "queued", "blocked"):
            lost.add(stage.run)
            if stage.run not in runs:
                yield stage


def _not_on_a_cluster(store: Store, study: str) -> str:
    folder = store.studies / study
    for lease in (launcher_lease(folder, f.name) for f in folder.glob("launchers/*")):
        owner = lease.owner()
        if lease.live() and owner:
            return (
                f"study {study} was not submitted to a cluster: it runs in process {owner['pid']} "
                f"on {owner['host']}. Ctrl-C there, or `kill {owner['pid']}`, saves and ends it."
            )
    return f"study {study} was not submitted to a cluster, and nothing works on it."
