"""The bench itself: up within seconds, what a cluster has, and nothing left behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import slurm_bench
from slurm_bench import Bench

pytestmark = pytest.mark.scale


@pytest.mark.slow
def test_two_nodes_with_accounting_arrays_and_gpus(slurm: Bench, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text('#!/bin/bash\necho "$SLURM_ARRAY_TASK_ID $CUDA_VISIBLE_DEVICES"\n')
    out = tmp_path / "%a.out"
    options = ("--wait", "--array=0-2", "--gres=gpu:1", f"--output={out}")
    slurm.run("sbatch", *options, str(script))
    said = [(tmp_path / f"{i}.out").read_text().split() for i in range(3)]
    assert [words[0] for words in said] == ["0", "1", "2"]
    assert {words[1] for words in said} <= {"0", "1"}  # of the two that a node has
    known = ("sh", "-c", "getent hosts $SLURMD_NODENAME > /dev/null && echo known")
    # Jobs of several nodes meet under these names.
    assert slurm.run("srun", "--nodes=2", "--ntasks=2", *known).split() == ["known"] * 2
    states: list[str] = []
    for _ in range(60):  # the accounts are kept by another daemon, and later
        states = slurm.run("sacct", "-X", "-n", "-o", "State").split()
        if states.count("COMPLETED") >= 4:
            return
        time.sleep(0.5)
    pytest.fail(f"sacct knows of {states}, not of four jobs that are COMPLETED")


@pytest.mark.slow
def test_nothing_is_left_of_a_bench(slurm: Bench, tmp_path: Path) -> None:
    """A second one stands beside the first, and goes while a job of its own runs."""
    with slurm_bench.bench(tmp_path / "second") as second:
        assert set(second.ports).isdisjoint(slurm.ports)
        second.run("sbatch", "--output=/dev/null", "--wrap", "trap '' TERM; sleep 60 & wait")
        while second.run("squeue", "-h", "-t", "running", "-o", "%T") != "RUNNING":
            time.sleep(0.1)
        assert len(second.processes()) > len(second.daemons)
        assert slurm.run("squeue", "-h") == ""  # neither sees the other
    assert second.processes() == []
    assert not second.sockets.exists()
    assert "is UP" in slurm.run("scontrol", "ping")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_bench.os, "geteuid", lambda: 0)
    monkeypatch.setattr(slurm_bench.shutil, "which", lambda name: None if name[0] == "s" else name)
    with pytest.raises(slurm_bench.Unavailable, match="setpriv not found"):
        slurm_bench.require(install=False)
    monkeypatch.setattr(
        slurm_bench.shutil, "which", lambda name: None if name.startswith("slurm") else name
    )
    missing = "not installed: apt-get install slurmctld slurmd slurmdbd"
    with pytest.raises(slurm_bench.Unavailable, match=missing):
        slurm_bench.require(install=False)
    monkeypatch.setattr(slurm_bench.os, "geteuid", lambda: 1000)
    with pytest.raises(slurm_bench.Unavailable, match="needs root"):
        slurm_bench.require(install=True)
