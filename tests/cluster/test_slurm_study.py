"""Whole studies on a real Slurm: jobs, arrays, dependencies, failures, attachment, two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_bench import Bench

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "tests" / "launch"
sys.path.append(str(LAUNCH))  # its toys: stages that add numbers, and end as one wants

import toys  # noqa: E402
from slurm_lab import SlurmLab  # noqa: E402
from toys import toy  # noqa: E402

from alignlab.cli import main  # noqa: E402
from alignlab.commands.study_file import StudyFile, asked  # noqa: E402
from alignlab.plan import Plan  # noqa: E402
from alignlab.report.live import Watcher  # noqa: E402

pytestmark = pytest.mark.scale


class Cluster(SlurmLab):
    """Toys on the bench."""

    bench: Bench
    python: str

    def submitted(self, *jobs: dict, **options) -> Plan:
        plan = self.plan(*jobs)
        words = asked(f"alignlab run study={self.study}", [], toys.ENGINE, {"kind": "slurm"})
        StudyFile(self.study, self.store, plan, words).open(1)
        self.execute(plan, python=self.python, signal_seconds=5, **options)
        return plan

    def until(self, there: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            logs = [f.read_text() for f in (self.folder / "logs").glob("*.log")]
            assert time.monotonic() < deadline, "\n".join([self.bench.run("squeue"), *logs])
            time.sleep(0.2)

    def ended(self) -> bool:
        return not self.bench.run("squeue", "-h", "-n", self.names())

    def names(self) -> str:
        rows = self.bench.run("squeue", "-h", "-o", "%j").split()
        return ",".join({name for name in rows if name.startswith(f"{self.study}.")} or {"none"})

    def seen(self) -> dict[tuple[str, int], tuple[str, str]]:
        found = Watcher(self.study, self.store).look()
        return {(s.name, s.seed or 0): (s.status, s.reason) for s in found.stages}


@pytest.fixture
def cluster(slurm: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "store"))
    toys.use_toys(monkeypatch.setattr)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {LAUNCH}/toy_program.py "$@"\n')
    python.chmod(0o755)
    made = Cluster(tmp_path / "store", None, study=f"s{tmp_path.stat().st_ino}")  # type: ignore[arg-type]
    made.bench, made.python = slurm, str(python)
    return made


def chain(seed: int, end: str = "well") -> dict:
    return {
        "a": toy(1, seed),
        "b": toy(10, seed, left="a", end=end),
        "c": toy(100, seed, left="b"),
        "any": toy(1000, seed, any=["a", "b"]),
    }


@pytest.mark.slow
def test_a_sweep_with_a_failure(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Three seeds of four stages; the second one's b fails, which blocks its c and no more."""
    ends = {0: "well", 1: "trouble", 2: "well"}
    plan = cluster.submitted(*(chain(seed, end) for seed, end in ends.items()))
    ids = {run: job.id for run, job in cluster.submission.jobs.items()}
    assert len({job.partition("_")[0] for job in ids.values()}) < len(ids)  # arrays
    again = cluster.submitted(*(chain(seed, end) for seed, end in ends.items()))
    assert {run: job.id for run, job in cluster.submission.jobs.items()} == ids
    assert "12 were queued or running already" in cluster.notes[-1] or any(
        cluster.store.run("toy", n.key).done for n in again.nodes.values()
    )
    cluster.until(cluster.ended)
    seen = cluster.seen()
    assert seen["b", 1] == ("failed", "the toy is broken.")
    assert seen["c", 1] == ("blocked", "b failed")
    fine = [key for key in seen if key not in {("b", 1), ("c", 1)}]
    assert {seen[key][0] for key in fine} == {"done"}, seen
    totals = {
        (node.name, node.stage.seed): cluster.store.run("toy", node.key).summary()["total"]
        for node in plan.nodes.values()
        if (node.name, node.stage.seed) in fine
    }
    assert totals["c", 2] == 111  # 1 + 10 + 100
    assert (totals["any", 0], totals["any", 1]) == (1012, 1001)  # 1000 + 1 + 11; b is missing
    for run in ids:
        if (cluster.store.root / run).exists():
            assert "[slurm] job" in (cluster.folder / "logs" / f"{run}.log").read_text()
    record = json.loads((cluster.folder / "record.json").read_text())  # by the last job
    assert sum(bool(stage["result"]) for stage in record["stages"].values()) == 10
    assert main(["status", cluster.study]) == 0
    text = capsys.readouterr().out
    assert "1 blocked: b failed" in text
    assert "the toy is broken." in text

    failed = next(n.run for n in plan.nodes.values() if n.name == "b" and n.stage.seed == 1)
    cluster.submitted(*(chain(seed, end) for seed, end in ends.items()))
    job = cluster.submission.jobs[failed]
    assert job.id != ids[failed]  # what failed is tried again, and what reads it
    assert "2 stages submitted" in cluster.notes[-1]
    cluster.until(cluster.ended)


@pytest.mark.slow
def test_a_warned_stage_is_requeued_and_a_cancelled_one_is_not(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {"a": toy(1, steps=60, pause=0.1), "b": toy(2, left="a"), "e": toy(3, 7, steps=600,
            pause=0.1)}  # fmt: skip
    plan = cluster.submitted(slow)
    runs = {node.name: cluster.store.run("toy", node.key) for node in plan.nodes.values()}
    jobs = {name: cluster.submission.jobs[run.name].id for name, run in runs.items()}
    cluster.until(lambda: all(len(runs[name].metrics()) >= 3 for name in "ae"))
    cluster.bench.run("scancel", "--signal=USR1", "--batch", jobs["a"])
    assert main(["cancel", cluster.study, "e"]) == 0
    assert "e  job" in capsys.readouterr().out
    cluster.until(lambda: runs["b"].done)
    first, second = [row["from"] for row in runs["a"].samples()]
    assert first == 0
    assert second >= 3  # it went on from where it was
    cluster.until(cluster.ended)
    seen = cluster.seen()
    assert seen["e", 7][0] == "stopped"
    assert not runs["e"].done
    assert (runs["e"].state_dir / "step.json").is_file()  # saved in the seconds that it was left
    assert cluster.bench.run("sacct", "-nXj", jobs["e"], "-o", "State").startswith("CANCELLED")


@pytest.mark.slow
def test_a_stage_on_two_nodes_and_the_report(cluster: Cluster, tmp_path: Path) -> None:
    """The real stages: SFT as one process on each of two nodes equals one process, and a report."""
    words = ["pipeline=sft", "experiment=smoke", "backbone=tiny", "tracking=disabled", "study=real",
             "engine.device=cpu", "engine.progress=false"]  # fmt: skip
    slurm = ["launch=slurm", "launch.default.cpus=1", "launch.default.memory=1G",
             "launch.sft.nodes=2", "launch.wait=true", "launch.poll_seconds=0.5"]  # fmt: skip
    for extra, store in ((slurm, "two"), ([], "one")):
        done = subprocess.run(
            [sys.executable, "-m", "alignlab", "run", *words, *extra, f"store={tmp_path / store}"],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / store / "studies/real/report/index.html").is_file()
    [two], [one] = (list((tmp_path / store).glob("sft-*")) for store in ("two", "one"))
    processes = json.loads((two / "record.json").read_text())["processes"]
    assert (processes["started"], processes["nodes"]) == (2, 2)
    assert two.name == one.name
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open() if '"train"' in line]
        for run in (two, one)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
