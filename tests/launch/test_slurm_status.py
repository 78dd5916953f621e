"""What is said of a study on a cluster: `alignlab status` and `cancel`, and what Slurm answers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import toys
from slurm_lab import FakeSlurm, SlurmLab
from toys import toy

from alignlab.cli import main
from alignlab.commands.conclude import main as last_job
from alignlab.commands.study_file import StudyFile, asked
from alignlab.errors import ConfigError
from alignlab.launch.scheduler import JobState
from alignlab.launch.slurm import client
from alignlab.launch.slurm.client import Client, QueueFull, SlurmError
from alignlab.plan import Plan
from alignlab.report.live import Watcher

STAGES = {"a": toy(1), "b": toy(2, left="a"), "c": toy(3, left="b"), "any": toy(4, any=["b", "e"]),
          "e": toy(5)}  # fmt: skip


class Study(SlurmLab):
    """A study that `alignlab run launch=slurm study=s` has submitted."""

    def submitted(self, **options) -> Plan:
        plan = self.plan(STAGES)
        words = asked("alignlab run study=s", ["study=s"], toys.ENGINE, {"kind": "slurm"})
        ending = {"report": True, "tracking": toys.TRACKING}
        StudyFile(self.study, self.store, plan, words, ending).open(1)
        self.execute(plan, **options)
        self.runs = {node.name: run for run, node in plan.nodes.items()}
        self.ids = {name: self.submission.jobs[run].id for name, run in self.runs.items()}
        return plan

    def seen(self) -> dict[str, tuple[str, str]]:
        """Status and reason of every stage."""
        found = Watcher(self.study, self.store).look()
        return {stage.name: (stage.status, stage.reason) for stage in found.stages}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    toys.use_toys(monkeypatch.setattr)
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "store"))
    return Study(tmp_path / "store", FakeSlurm(tmp_path / "slurm", monkeypatch.setenv))


@pytest.mark.slow
def test_stages_from_the_queue_to_their_end(study: Study) -> None:
    plan = study.submitted()
    inputs = "its inputs are not done (Dependency)"
    assert study.seen()["a"] == ("queued", "others come first (Priority)")
    assert study.seen()["c"] == ("queued", inputs)
    study.slurm.become(study.ids["a"], "RUNNING")
    assert study.seen()["a"] == ("running", "")
    study.finish(plan, "a")
    assert study.seen()["a"] == ("done", "")
    study.fail(study.runs["b"], "b")
    study.slurm.become(study.ids["c"], "CANCELLED|DependencyNeverSatisfied")
    seen = study.seen()
    assert seen["b"] == ("failed", "the toy is broken.")
    assert seen["c"] == ("blocked", "b failed")
    assert seen["any"] == ("queued", inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "status", "reason"),
    [
        ("TIMEOUT|TimeLimit", "failed", "its job {} ended: TIMEOUT TimeLimit"),
        ("OUT_OF_MEMORY|None", "failed", "its job {} ended: OUT_OF_MEMORY"),
        ("NODE_FAIL|None", "failed", "its job {} ended: NODE_FAIL"),
        ("CANCELLED|None", "stopped", "its job {} was cancelled"),
        ("GONE", "stopped", "its job {} is no longer in the queue"),
        ("PENDING|BeginTime", "queued", "requeued, starts again soon (BeginTime)"),
        ("PENDING|QOSMaxCpuPerUserLimit", "queued", "QOSMaxCpuPerUserLimit"),
        ("SUSPENDED", "queued", "suspended"),
    ],
)
def test_a_job_that_leaves_no_word(study: Study, state: str, status: str, reason: str) -> None:
    study.submitted()
    study.slurm.become(study.ids["a"], state)
    found = study.seen()["a"]
    assert found[0] == status
    assert found[1].startswith(reason.format(study.ids["a"]))
    if status == "failed":
        assert study.seen()["b"] == ("blocked", "a failed")
        assert study.seen()["c"] == ("blocked", "a failed")  # the first cause
    if status == "stopped":
        assert study.seen()["b"] == ("blocked", "a was cancelled")


@pytest.mark.slow
def test_accounting_knows_what_the_queue_forgot(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.submitted()
    study.slurm.become(study.ids["a"], "GONE")
    monkeypatch.setenv("FAKE_ACCOUNTING", json.dumps({study.ids["a"]: "CANCELLED by 1000"}))
    reason = f"its job {study.ids['a']} was cancelled (CANCELLED)"
    assert study.seen()["a"] == ("stopped", reason)


@pytest.mark.slow
def test_an_outcome_of_an_earlier_submission_says_nothing(study: Study) -> None:
    plan = study.submitted()
    study.finish(plan, "a")
    study.fail(study.runs["b"], "b")
    assert study.seen()["b"][0] == "failed"
    file = study.folder / "outcomes" / f"{study.runs['b']}.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "time": time.time() - 1}))
    study.execute(study.plan(STAGES))
    assert study.seen()["b"][0] == "queued"


@pytest.mark.slow
def test_status_for_people_and_programs(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    plan = study.submitted()
    study.finish(plan, "a")
    study.fail(study.runs["b"], "b", "out of luck")
    logs = study.folder / "logs"
    lines = [f"line {i}" for i in range(20)]
    (logs / f"{study.runs['b']}.log").write_text("\n".join(lines) + "\nstep 1\rstep 2\n")
    assert main(["status", "s"]) == 0
    text = capsys.readouterr().out
    assert "out of luck" in text
    assert "line 19" in text
    assert "line 11" not in text  # the last eight
    assert "step 2" in text
    assert "step 1" not in text  # drawn over
    assert "1 blocked: b failed" in text
    assert "1 queued: its inputs are not done (Dependency)" in text
    assert str(logs) in text
    assert main(["status", "s", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["study"], found["done"], found["total"], found["active"]) == ("s", 1, 5, True)
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert stages["b"]["status"] == "failed"
    assert stages["b"]["last_lines"][-1] == "step 2"
    assert stages["b"]["job"] == study.ids["b"]
    assert stages["b"]["log"] == str(logs / f"{study.runs['b']}.log")
    assert stages["c"]["reason"] == "b failed"
    assert stages["any"]["inputs"]["any/1"] == study.runs["b"]


@pytest.mark.slow
def test_a_run_names_its_job_and_its_log(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    plan = study.submitted()
    run = study.store.run("toy", plan.nodes[study.runs["a"]].key)
    run.update_record(study="s")
    log = study.folder / "logs" / f"{run.name}.log"
    log.write_text("x")
    assert main(["runs", "show", run.name]) == 0
    text = capsys.readouterr().out
    assert f"slurm {study.ids['a']}" in text
    assert str(log) in text


@pytest.mark.slow
def test_status_where_slurm_cannot_be_asked(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = study.submitted()
    study.finish(plan, "a")
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["status", "s"]) == 0
    text = capsys.readouterr().out
    assert "squeue is not on the PATH" in text
    assert "1 of 5 stages" in text


@pytest.mark.slow
def test_an_unknown_study_is_refused(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study.submitted()
    assert main(["status", "t"]) == 2
    assert "no study 't'" in capsys.readouterr().err
    assert main(["cancel", "t"]) == 2


@pytest.mark.slow
def test_between_two_waves_a_study_goes_on(study: Study) -> None:
    study.submitted()
    for job in study.ids.values():
        study.slurm.become(job, "GONE")
    assert Watcher("s", study.store).look().active  # its last job waits
    study.slurm.become(study.submission.last, "COMPLETED|None")
    assert not Watcher("s", study.store).look().active


def test_a_job_submitted_from_a_job_does_not_inherit_its_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert client._outside() is None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    found = client._outside()
    assert found is not None
    assert "SLURM_CPUS_PER_TASK" not in found
    assert (found["SLURM_CONF"], found["PATH"]) == ("/etc/slurm.conf", os.environ["PATH"])


@pytest.mark.slow
def test_cancel_ends_what_is_queued_or_runs(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = study.submitted()
    study.finish(plan, "e")
    study.slurm.become(study.ids["a"], "RUNNING")
    assert main(["cancel", "s"]) == 0
    text = capsys.readouterr().out
    assert "4 stages cancelled" in text
    assert f"job {study.ids['a']}, was running" in text
    assert "continue with: alignlab run study=s" in text
    [words] = study.slurm.calls("scancel")
    last = study.submission.last
    assert set(words) == {last, *(study.ids[name] for name in ("a", "b", "c", "any"))}
    assert main(["cancel", "s"]) == 0
    assert "0 stages cancelled" in capsys.readouterr().out


@pytest.mark.slow
def test_cancel_of_one_stage_says_what_that_blocks(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    study.submitted()
    assert main(["cancel", "s", "b"]) == 0
    assert "1 stages cancelled; 1 stages that read them will not run" in capsys.readouterr().out
    assert study.slurm.calls("scancel") == [[study.ids["b"]]]
    assert study.seen()["c"] == ("blocked", "b was cancelled")
    assert main(["cancel", "s", "bb"]) == 2
    assert "Did you mean 'b'?" in capsys.readouterr().err


@pytest.mark.slow
def test_the_jobs_of_another_study_are_left_alone(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    study.submitted()
    other = Study(study.root, study.slurm, study="t")
    other.submitted()
    assert main(["cancel", "t"]) == 0
    text = capsys.readouterr().out
    assert "0 stages cancelled" in text
    assert text.count("of study s") == 5


def test_a_study_of_this_machine_is_not_cancelled(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = study.plan(STAGES)
    words = asked("alignlab run", [], toys.ENGINE, {"kind": "local"})
    file = StudyFile("s", study.store, plan, words)
    file.open(1)
    with file.at_work():
        assert main(["cancel", "s"]) == 2
    assert f"runs in process {os.getpid()}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_last_job_brings_the_record_up_to_date(study: Study) -> None:
    plan = study.submitted()
    for name in STAGES:
        study.finish(plan, name)
    assert last_job([str(study.root), "s", str(study.folder / "jobs/last.sh")]) == 0
    record = json.loads((study.folder / "record.json").read_text())
    assert all(stage["result"] for stage in record["stages"].values())
    assert record["stages"][study.runs["a"]]["summary"] == {"total": 1}


RECORDED = """\
36_0|COMPLETED|2026-11-22T18:52:07|None|two.toy-array-e0|/store/studies/two
36_1|FAILED|2026-11-22T18:52:07|NonZeroExitCode|two.toy-array-e0|/store/studies/two
40|CANCELLED|N/A|DependencyNeverSatisfied|two.toy-0d|/store/studies/two
67|PENDING|2026-11-22T18:57:35|BeginTime|five.toy-d0|a comment|with a bar
68|PENDING|N/A|Dependency|five.toy-6a|(null)
69|RUNNING|2026-11-22T18:58:22|None|six.toy-3d|(null)
70|COMPLETING|2026-11-22T18:58:22|None|six.toy-4b|(null)
"""


def test_what_squeue_answers_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_call", lambda words: RECORDED)
    rows = {row.id: row for row in Client().queue()}
    assert rows["36_0"].state == JobState("done", "COMPLETED")
    assert rows["36_1"].state == JobState("failed", "FAILED NonZeroExitCode")
    assert rows["40"].state == JobState("cancelled", "CANCELLED DependencyNeverSatisfied")
    assert rows["67"].state == JobState("queued", "BeginTime", "2026-11-22T18:57:35")
    assert rows["67"].comment == "a comment|with a bar"
    assert rows["68"].state == JobState("queued", "Dependency")
    assert rows["69"].state.live
    assert rows["70"].state.state == "running"
    assert rows["36_1"].name == "two.toy-array-e0"


ACCOUNTED = """\
3_0|COMPLETED
3_1|CANCELLED by 0
4_[0-2,7%2]|CANCELLED
5|TIMEOUT
"""


def test_what_sacct_answers_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(words: list[str]) -> str:
        return "" if words[0] == "squeue" else ACCOUNTED

    monkeypatch.setattr(client, "_call", answer)
    monkeypatch.setattr(client.shutil, "which", lambda name: name)
    found = Client().states({"3_0", "3_1", "4_1", "4_7", "4_5", "5", "6"})
    assert found == {
        "3_0": JobState("done", "COMPLETED"),
        "3_1": JobState("cancelled", "CANCELLED"),
        "4_1": JobState("cancelled", "CANCELLED"),
        "4_7": JobState("cancelled", "CANCELLED"),
        "5": JobState("failed", "TIMEOUT"),
    }


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job "
         "violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
         QueueFull),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", QueueFull),
        ("sbatch: error: Slurm job queue full, sleeping and retrying", QueueFull),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed:"
         " Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
         SlurmError),
        ("sbatch: error: invalid partition specified: hig", SlurmError),
    ],
)  # fmt: skip
def test_a_full_queue_is_told_from_a_refusal(
    said: str, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "sbatch"
    program.write_text(f'#!/bin/sh\ncat >&2 <<"END"\n{said}\nEND\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SlurmError) as found:
        client._call(["sbatch"])
    assert type(found.value) is kind
    if kind is SlurmError:
        with pytest.raises(ConfigError):
            Client().submit("x", [], [])


def test_what_passes_by_itself_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "squeue"
    program.write_text(
        f"#!/bin/sh\necho x >> {tmp_path}/tries\n"
        f'[ "$(wc -l < {tmp_path}/tries)" -ge 3 ] && exit 0\n'
        'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2\n'
        "exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(client, "PATIENCE", (0.01, 0.01))
    assert client._call(["squeue"]) == ""
    assert (tmp_path / "tries").read_text().count("x") == 3
