"""The batch scripts: what they ask Slurm for, and what a shell makes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignlab.launch.resources import Resources
from alignlab.launch.slurm.script import Setting, last_script, stage_script

RUN = "sft-0123456789ab"


class Job:
    """A script, executed by bash as Slurm would, with a stage and a scontrol of our own."""

    def __init__(self, folder: Path, stage: str, resources: Resources | None = None) -> None:
        self.folder = folder
        for name in ("logs", "tasks", "jobs", "bin"):
            (folder / name).mkdir()
        self._program("python", stage)
        self._program("scontrol", f'echo "$@" >> {folder}/scontrol; echo n1')
        self._program("srun", f'echo "$@" > {folder}/srun')
        self.setting = Setting(
            study=str(folder), directory="/work here", python=str(folder / "bin/python"),
            setup=("export GREETING=hello",), signal_seconds=90, max_requeues=2,
        )  # fmt: skip
        self.script = folder / "stage.sh"
        self.script.write_text(stage_script(self.setting, resources or Resources(), None))

    def _program(self, name: str, body: str) -> None:
        file = self.folder / "bin" / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)

    def start(self, argument: str = RUN, **variables: str) -> subprocess.Popen[bytes]:
        defaults = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n1", "SLURM_CPUS_ON_NODE": "6",
                    "SLURM_JOB_NAME": f"s.{RUN}"}  # fmt: skip
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        self.process = subprocess.Popen(
            ["bash", str(self.script), argument],
            env={**kept, **defaults, **variables, "PATH": path},
            start_new_session=True,
        )
        return self.process

    def run(self, argument: str = RUN, **variables: str) -> int:
        return self.start(argument, **variables).wait(timeout=20)

    def log(self, run: str = RUN) -> str:
        file = self.folder / "logs" / f"{run}.log"
        return file.read_text() if file.exists() else ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in self.log():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)


def test_what_slurm_is_asked_for(tmp_path: Path) -> None:
    resources = Resources(
        nodes=2, gpus=4, cpus=6, memory="64G", time="12:00:00", partition="gpu", account="lab",
        qos="long", constraint="a100", extra=("--exclusive", "--mail-type=FAIL"),
    )  # fmt: skip
    text = Job(tmp_path, "true", resources).script.read_text()
    asked = [line[8:] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert asked == [
        "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=6", "--gres=gpu:4", "--mem=64G",
        "--time=12:00:00", "--partition=gpu", "--account=lab", "--qos=long", "--constraint=a100",
        "--exclusive", "--mail-type=FAIL", "--signal=B:USR1@90", "--requeue",
        "--chdir='/work here'", "--open-mode=append",
    ]  # fmt: skip


def test_what_is_not_stated_is_not_asked_for(tmp_path: Path) -> None:
    text = Job(tmp_path, "true").script.read_text()
    for option in ("gres", "mem", "time", "partition", "account", "cpus"):
        assert f"#SBATCH --{option}" not in text


def test_a_stage_is_executed_with_its_task_and_the_lines_before_it(tmp_path: Path) -> None:
    job = Job(tmp_path, 'echo "$GREETING $OMP_NUM_THREADS $@"')
    assert job.run() == 0
    assert f"hello 6 -m alignlab.launch.program --here {tmp_path}/tasks/{RUN}.json" in job.log()
    assert "[slurm] job 12 on n1, start 1" in job.log()
    assert "[slurm] exit code 0" in job.log()


def test_a_task_of_an_array_finds_its_run(tmp_path: Path) -> None:
    job = Job(tmp_path, 'echo "$@"')
    listed = tmp_path / "jobs" / "a.list"
    listed.write_text("3 sft-333333333333\n33 sft-333333333300\n4 sft-444444444444\n")
    variables = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "7"}
    assert job.run(str(listed), **variables) == 0
    assert "tasks/sft-333333333333.json" in job.log("sft-333333333333")
    assert "[slurm] job 7_3" in job.log("sft-333333333333")
    assert not job.log("sft-333333333300")


def test_the_exit_code_of_the_stage_is_that_of_the_job(tmp_path: Path) -> None:
    assert Job(tmp_path, "exit 3").run() == 3
    assert not (tmp_path / "scontrol").exists()


# A shell gives up where a second signal meets its handler; stages heed the first one only.
WAITS = """
import signal, sys, time
def heard(number, _):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("saved", flush=True)
    sys.exit(85)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, heard)
print("ready", flush=True)
time.sleep(30)
"""


def test_a_warned_stage_saves_and_is_requeued(tmp_path: Path) -> None:
    job = Job(tmp_path, f"exec {sys.executable} -c '{WAITS}'")
    process = job.start()
    job.wait_for("ready")
    process.send_signal(signal.SIGUSR1)  # to the shell alone, as --signal=B: does
    job.wait_for("requeued")
    deadline = time.monotonic() + 20
    while not (tmp_path / "scontrol").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.05)
    assert process.poll() is None  # it stays until Slurm ends it: an exit would count as its end
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=20)
    assert "saved" in job.log()
    assert (tmp_path / "scontrol").read_text() == "requeue 12\n"


def test_a_job_that_the_scheduler_ends_does_not_requeue_itself(tmp_path: Path) -> None:
    job = Job(tmp_path, f"exec {sys.executable} -c '{WAITS}'")
    process = job.start()
    job.wait_for("ready")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=20) == 85
    assert "saved" in job.log()
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize(("ended", "code"), [(True, 85), (False, 127)])
def test_a_code_that_bash_forgets_is_that_of_an_interruption(
    tmp_path: Path, ended: bool, code: int
) -> None:
    """Only where the stage was told to end: a missing Python gives 127, too."""
    forgets = tmp_path / "forgets.sh"
    forgets.write_text('wait() { builtin wait "$@"; kill -0 "$1" 2> /dev/null || return 127; }')
    waits = WAITS if ended else "raise SystemExit(85)"
    job = Job(tmp_path, f"exec {sys.executable} -c '{waits}'")
    process = job.start(BASH_ENV=str(forgets))
    if ended:
        job.wait_for("ready")
        os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=20) == code
    assert not (tmp_path / "scontrol").exists()


def test_a_stage_is_not_requeued_for_ever(tmp_path: Path) -> None:
    assert Job(tmp_path, "exit 85").run(SLURM_RESTART_COUNT="2") == 85
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize(("said", "kept"), [("", False), ("slurmstepd: error: x", True)])
def test_what_slurm_itself_said_is_kept_and_nothing_else(
    tmp_path: Path, said: str, kept: bool
) -> None:
    job = Job(tmp_path, "true")
    out = tmp_path / "jobs" / f"s.{RUN}.0.out"
    out.write_text(said)
    job.run()
    assert out.exists() == kept


def test_several_processes_are_started_by_srun_under_torchrun_s_names(tmp_path: Path) -> None:
    job = Job(tmp_path, "true", Resources(nodes=2, processes=3, cpus=2))
    assert job.run(SLURM_JOB_ID="44000") == 0
    called = (tmp_path / "srun").read_text()
    assert called.startswith("--kill-on-bad-exit=0 --wait=60 --cpus-per-task=2 bash -c")
    assert "RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS" in called
    assert "LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=3" in called
    assert "show hostnames n1" in (tmp_path / "scontrol").read_text()


@pytest.mark.parametrize(
    ("resources", "threads", "given", "expected"),
    [
        (Resources(), None, {}, "6"),  # all that the job has on the node
        (Resources(cpus=3), None, {"SLURM_CPUS_PER_TASK": "3"}, "3"),
        (Resources(cpus=3), 2, {"SLURM_CPUS_PER_TASK": "3"}, "2"),  # engine.threads wins
        (Resources(), None, {"SLURM_CPUS_ON_NODE": "0"}, "1"),
    ],
)
def test_threads(
    tmp_path: Path, resources: Resources, threads: int | None, given: dict, expected: str
) -> None:
    job = Job(tmp_path, 'echo "threads: $OMP_NUM_THREADS $MKL_NUM_THREADS"', resources)
    job.script.write_text(stage_script(job.setting, resources, threads))
    job.run(**given)
    assert f"threads: {expected} {expected}\n" in job.log()


def test_the_last_job_runs_a_command(tmp_path: Path) -> None:
    job = Job(tmp_path, 'echo "$GREETING $@" > "$study/said"; echo "$@"')
    text = last_script(job.setting, Resources(partition="low"), ["-m", "x", "a b"])
    assert "#SBATCH --partition=low" in text
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "-m x a b\n"
