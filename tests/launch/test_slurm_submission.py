"""Handing a study to Slurm: each stage once, whoever submits, however often, whatever was lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import toys
from slurm_lab import FakeSlurm, SlurmLab, chain
from toys import toy

from alignlab.commands.conclude import main as last_job
from alignlab.errors import ConfigError
from alignlab.launch.slurm.client import QueueFull


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmLab:
    toys.use_toys(monkeypatch.setattr)
    return SlurmLab(tmp_path / "store", FakeSlurm(tmp_path / "slurm", monkeypatch.setenv))


DIAMOND = {
    "a": toy(1),
    "b": toy(10, left="a"),
    "c": toy(100, left="a"),
    "d": toy(1000, left="b", right="c"),
}


def waits(lab: SlurmLab, name: str, plan) -> list[str]:
    """What the job of a stage waits for."""
    [job] = lab.by_name(plan)[name]
    return lab.slurm.jobs()[job.partition("_")[0]]["dependency"].split(",")


def test_a_study_becomes_jobs_and_edges_dependencies(lab: SlurmLab) -> None:
    plan = lab.plan(DIAMOND)
    outcomes = lab.execute(plan)
    assert {outcome.status for outcome in outcomes} == {"queued"}
    ids = {name: job for name, [job] in lab.by_name(plan).items()}
    base = ids["b"].partition("_")[0]
    assert {ids["b"], ids["c"]} == {f"{base}_0", f"{base}_1"}  # alike: one array
    assert waits(lab, "a", plan) == [""]
    assert waits(lab, "b", plan) == [f"afterok:{ids['a']}"]
    assert waits(lab, "d", plan) == [f"afterok:{base}"]
    jobs = lab.slurm.jobs()
    assert all("--kill-on-invalid-dep" in j["options"] for j in jobs.values() if j["dependency"])
    assert {job["comment"] for job in jobs.values()} == {str(lab.folder)}
    task = json.loads((lab.folder / "tasks" / f"{jobs[ids['a']]['arguments'][0]}.json").read_text())
    assert task["name"] == "a"
    assert task["place"]["store"] == str(lab.root)


def test_the_last_job_waits_for_the_leaves(lab: SlurmLab) -> None:
    plan = lab.plan(DIAMOND)
    lab.execute(plan)
    [last] = lab.slurm.jobs(last=True)
    [leaf] = lab.by_name(plan)["d"]
    assert lab.submission.last == last
    update, release = lab.slurm.calls("scontrol")[-2:]
    assert update == ["update", f"JobId={last}", f"Dependency=afterany:{leaf}"]
    assert release == ["release", last]


@pytest.mark.slow
def test_what_is_done_is_neither_submitted_nor_waited_for(lab: SlurmLab) -> None:
    plan = lab.plan(DIAMOND)
    lab.execute(plan, wait=False)
    lab.finish(plan, "a")
    for job in lab.slurm.jobs():
        lab.slurm.become(job, "CANCELLED|None")
    again = lab.plan(DIAMOND)
    lab.execute(again)
    assert waits(lab, "b", again) == [""]
    assert len(lab.slurm.calls("sbatch")) == 4 + 3  # a, b and c, d, last; then without a


@pytest.mark.slow
def test_submitting_again_attaches(lab: SlurmLab) -> None:
    plan = lab.plan(DIAMOND)
    lab.execute(plan)
    before, calls = lab.submission.jobs.keys(), len(lab.slurm.calls("sbatch"))
    lab.slurm.become(lab.by_name(plan)["a"][0], "RUNNING")
    outcomes = lab.execute(lab.plan(DIAMOND))
    assert {outcome.status for outcome in outcomes} == {"queued"}
    assert len(lab.slurm.calls("sbatch")) == calls
    assert lab.submission.jobs.keys() == before
    assert "4 were queued or running already" in lab.notes[-1]


@pytest.mark.slow
def test_what_failed_or_is_gone_is_submitted_again_with_all_that_reads_it(lab: SlurmLab) -> None:
    stages = {**DIAMOND, "e": toy(5), "f": toy(6, left="e"), "g": toy(7, left="e")}
    plan = lab.plan(stages)
    lab.execute(plan)
    old = {name: job for name, [job] in lab.by_name(plan).items()}
    lab.finish(plan, "a")
    lab.slurm.become(old["b"], "FAILED|NonZeroExitCode")
    lab.slurm.become(old["c"], "RUNNING")
    lab.slurm.become(old["e"], "GONE")  # d, f and g wait in vain now
    lab.execute(lab.plan(stages))
    new = {name: job for name, [job] in lab.by_name(plan).items()}
    assert new["c"] == old["c"]
    assert all(new[name] != old[name] for name in "bdefg")
    [strict] = waits(lab, "d", plan)
    assert set(strict.split(":")) == {"afterok", new["b"], new["c"]}
    assert waits(lab, "b", plan) == [""]  # a is done
    cancelled = {word for call in lab.slurm.calls("scancel") for word in call}
    assert {old["d"], old["f"], old["g"]} <= cancelled
    assert old["c"] not in cancelled


@pytest.mark.slow
def test_the_job_before_last_goes_when_a_new_one_comes(lab: SlurmLab) -> None:
    plan = lab.plan(DIAMOND)
    lab.execute(plan)
    first = lab.submission.last
    lab.slurm.become(lab.by_name(plan)["d"][0], "CANCELLED|None")
    lab.execute(lab.plan(DIAMOND))
    assert lab.submission.last != first
    assert [first] in lab.slurm.calls("scancel")


@pytest.mark.slow
def test_two_at_one_time_do_not_double_a_study(tmp_path: Path, lab: SlurmLab) -> None:
    script = tmp_path / "submit.py"
    script.write_text(
        "import sys, toys\n"
        "from pathlib import Path\n"
        "from unittest import mock\n"
        "from slurm_lab import SlurmLab, chain\n"
        "toys.use_toys(lambda name, value: mock.patch(name, value).start())\n"
        "lab = SlurmLab(Path(sys.argv[1]), None)\n"
        "lab.execute(lab.plan(*(chain(seed) for seed in range(5))))\n"
    )
    places = f"{Path(toys.__file__).parent}:{toys.ROOT}"
    command = ["env", f"PYTHONPATH={places}", sys.executable, str(script), str(lab.root)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    runs = [run for job in lab.slurm.jobs().values() for run in job["indices"]]
    assert len(runs) == 15  # three arrays of five, once
    assert len(lab.slurm.jobs(last=True)) == 1


@pytest.mark.slow
def test_a_study_finds_the_jobs_of_another_one(lab: SlurmLab) -> None:
    plan = lab.plan({"a": toy(1), "b": toy(2, left="a")})
    lab.execute(plan)
    [shared] = lab.by_name(plan)["a"]
    other = SlurmLab(lab.root, lab.slurm, study="t")
    second = other.plan({"a": toy(1), "c": toy(3, left="a")})
    other.execute(second)
    assert other.by_name(second)["a"] == [shared]
    assert waits(other, "c", second) == [f"afterok:{shared}"]
    assert other.submission.jobs[f"toy-{lab_key(second, 'a')}"].study == "s"
    assert len(lab.slurm.jobs()) == 3


def lab_key(plan, name: str) -> str:
    [found] = [node.key for node in plan.nodes.values() if node.name == name]
    return found


@pytest.mark.slow
def test_jobs_that_a_killed_submitter_did_not_write_down_are_found(lab: SlurmLab) -> None:
    jobs = [chain(seed) for seed in range(3)]
    lab.execute(lab.plan(*jobs, DIAMOND))
    known = {run: job.id for run, job in lab.submission.jobs.items()}
    (lab.folder / "submission.json").unlink()
    calls = len(lab.slurm.calls("sbatch"))
    lab.slurm.become(next(iter(lab.slurm.jobs(last=True))), "PENDING|JobHeldUser")
    lab.execute(lab.plan(*jobs, DIAMOND))
    assert len(lab.slurm.calls("sbatch")) == calls + 1  # a last job, for the held one is nobody's
    assert {run: job.id for run, job in lab.submission.jobs.items()} == known


@pytest.mark.slow
def test_what_slurm_does_not_take_follows_in_waves(lab: SlurmLab) -> None:
    """Room for ten jobs, one of which is the last one; 12 chains of three."""
    lab.slurm.limit(submit=10)
    jobs = [chain(seed) for seed in range(12)]
    plan = lab.plan(*jobs)
    lab.execute(plan)
    assert len(lab.submission.jobs) == 9
    assert "27 follow" in lab.notes[-1]
    for wave in range(20):
        done = {run for run in plan.nodes if lab.store.run("toy", run[4:]).done}
        live = [r for r in lab.submission.jobs if r not in done]
        if not live and wave:
            break
        for run in live:
            node = plan.nodes[run]
            lab.store.run(node.kind, node.key).update_record(seconds=1.0)
            lab.store.run(node.kind, node.key).finish()
            lab.slurm.become(lab.submission.jobs[run].id, "COMPLETED|None")
        lab.slurm.become(lab.submission.last, "COMPLETED|None")
        assert last_job([str(lab.root), "s", str(lab.folder / "jobs/last.sh")]) in (0, 2)
    submitted = [i for job in lab.slurm.jobs().values() for i in job["indices"] or [0]]
    assert len(submitted) == len(plan.nodes) == 36
    assert len(lab.submission.jobs) == 36


@pytest.mark.slow
def test_a_last_job_that_meets_a_full_queue_waits_for_room(
    lab: SlurmLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [chain(seed) for seed in range(4)]
    plan = lab.plan(*jobs)
    lab.execute(plan, max_queued=4)  # four times sft
    lab.finish(plan, "sft")
    lab.slurm.limit(submit=0)
    waited: list[float] = []

    class Clock:
        @staticmethod
        def sleep(seconds: float) -> None:
            waited.append(seconds)
            lab.slurm.limit()

    monkeypatch.setattr("alignlab.commands.conclude.time", Clock)
    assert last_job([str(lab.root), "s", str(lab.folder / "jobs/last.sh")]) == 0
    assert len(waited) == 1
    assert len(lab.submission.jobs) == 12


@pytest.mark.slow
def test_what_can_no_longer_run_is_not_submitted_later(lab: SlurmLab) -> None:
    jobs = [chain(seed) for seed in range(2)]
    plan = lab.plan(*jobs)
    lab.execute(plan, max_queued=2)
    runs = {(n.name, n.stage.seed): run for run, n in plan.nodes.items()}
    lab.fail(runs["sft", 1], "sft")
    node = plan.nodes[runs["sft", 0]]
    lab.store.run(node.kind, node.key).finish()
    lab.slurm.become(lab.submission.jobs[node.run].id, "COMPLETED|None")
    assert last_job([str(lab.root), "s", str(lab.folder / "jobs/last.sh")]) == 0
    submitted = {plan.nodes[run].name for run in lab.submission.jobs}
    assert submitted == {"sft", "dpo0", "eval0"}
    assert runs["dpo0", 1] not in lab.submission.jobs


def test_no_room_for_a_single_job_is_said(lab: SlurmLab) -> None:
    lab.slurm.limit(submit=0)
    with pytest.raises(QueueFull, match="AssocMaxSubmitJobLimit"):
        lab.execute(lab.plan(DIAMOND))


def test_no_more_are_queued_than_configured(lab: SlurmLab) -> None:
    lab.execute(lab.plan(*(chain(seed) for seed in range(4))), max_queued=5)
    assert len(lab.submission.jobs) == 5
    [update] = [call for call in lab.slurm.calls("scontrol") if call[0] == "update"]
    assert "afterany:" in update[2]


def test_arrays_are_as_long_as_the_cluster_allows(lab: SlurmLab) -> None:
    lab.slurm.limit(array=3)
    lab.execute(lab.plan(*({"a": toy(1, seed)} for seed in range(7))))
    sizes = sorted(len(job["indices"]) or 1 for job in lab.slurm.jobs().values())
    assert sizes == [1, 3, 3]


@pytest.mark.slow
def test_a_refusal_of_slurm_is_one_message_and_what_was_taken_stays(lab: SlurmLab) -> None:
    lab.slurm.limit(refuse="--account=nobody")
    plan = lab.plan({"a": toy(1), "b": toy(2, left="a")})
    with pytest.raises(ConfigError, match="Invalid account"):
        lab.execute(plan, b={"account": "nobody"})
    assert set(lab.by_name(plan)) == {"a"}
    lab.slurm.limit()
    lab.execute(lab.plan({"a": toy(1), "b": toy(2, left="a")}))
    assert len(lab.slurm.jobs()) == 2


def test_a_partition_that_the_cluster_does_not_have_is_refused_first(lab: SlurmLab) -> None:
    with pytest.raises(ConfigError, match=r"launch\.toy\.partition.*'hihg'.*mean 'high'"):
        lab.execute(lab.plan(DIAMOND), default={"partition": "hihg"})
    assert not lab.slurm.jobs()


def test_without_slurm_it_says_so(lab: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"needs Slurm's commands.*launch=local"):
        lab.execute(lab.plan(DIAMOND))


@pytest.mark.slow
def test_waiting_tells_what_becomes_of_every_stage(lab: SlurmLab) -> None:
    stages = {**DIAMOND, "e": toy(5), "f": toy(6, left="e"), "any": toy(7, any=["d", "f"])}
    plan = lab.plan(stages)
    found: list = []
    options = {"wait": True, "poll_seconds": 0.05}
    thread = threading.Thread(target=lambda: found.extend(lab.execute(plan, **options)))
    thread.start()

    def until(condition) -> None:
        for _ in range(600):
            if condition():
                return
            thread.join(0.05)
        raise AssertionError(lab.settled)

    until(lambda: (lab.folder / "submission.json").exists() and "any" in lab.by_name(plan))
    runs = {node.name: run for run, node in plan.nodes.items()}
    lab.finish(plan, "a")
    lab.fail(runs["e"], "e")
    until(lambda: len(lab.settled) == 3)
    assert {o.name: o.status for o in lab.settled} == {"a": "done", "e": "failed", "f": "blocked"}
    lab.finish(plan, "b")
    lab.slurm.become(lab.submission.jobs[runs["c"]].id, "TIMEOUT|TimeLimit")
    until(lambda: len(lab.settled) == 7)
    thread.join(20)
    by_name = {o.name: o for o in found}
    assert by_name["c"].reason.endswith("ended: TIMEOUT TimeLimit")
    assert by_name["d"].status == "blocked"
    assert by_name["any"].status == "blocked"  # all that it could read is lost
    assert by_name["a"].seconds == 2.5
    assert not lab.slurm.jobs(last=True)  # the command writes the report itself


@pytest.mark.slow
def test_ten_thousand_stages_are_submitted_in_seconds(lab: SlurmLab) -> None:
    lab.slurm.limit(jobs=20000)
    plan = lab.plan(*(chain(seed, methods=2) for seed in range(2000)))
    assert len(plan.nodes) == 10_000
    lab.execute(plan)
    assert len(lab.submission.jobs) == 10_000
    assert len(lab.slurm.calls("sbatch")) <= 30  # 2000 seeds: two or three arrays for each of five
