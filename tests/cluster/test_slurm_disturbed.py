"""Whatever a cluster does to a PPO stage, it ends in the weights of an undisturbed one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from disturbed import SECONDS, Disturbed, model_of, undisturbed
from slurm_bench import Bench

pytestmark = pytest.mark.scale

WARNING = 29  # seconds before a time limit; Slurm warns up to 30 s earlier
ON_N1 = "launch.ppo.extra=['--nodelist=n1']"
BOTH_GPUS = "launch.ppo.extra=['--nodelist=n1','--gres=gpu:2']"
LIMITED = ("launch.ppo.time='00:30:00'", f"launch.signal_seconds={WARNING}")


def requeued(one: Disturbed) -> None:
    """An administrator takes the node back."""
    one.hold()
    one.bench.run("scontrol", "requeue", one.job)


def out_of_time(one: Disturbed) -> None:
    """Its time is over before its training is: in less than a minute and a half from here."""
    one.hold()
    used = one.bench.run("squeue", "-h", "-j", one.job, "-o", "%M").split(":")
    minutes = int(used[-2]) + (int(used[-1]) + WARNING + 5) // 60 + 1
    one.bench.run("scontrol", "update", f"JobId={one.job}", f"TimeLimit={minutes}")
    one.until(lambda: "requeued" in one.log, "requeue")
    one.bench.run("scontrol", "update", f"JobId={one.job}", "TimeLimit=30")  # it may start slowly


def preempted(one: Disturbed) -> None:
    """A job of a partition that goes first wants the same GPUs."""
    one.hold()
    first = ("--partition=high", "--nodelist=n1", "--gres=gpu:2", "--output=/dev/null")
    one.bench.run("sbatch", "--wait", *first, "--wrap=sleep 1")


def cancelled(one: Disturbed) -> None:
    """A person ends it, and gives the same command again later."""
    one.hold()
    one.bench.run("scancel", one.job)
    one.until(lambda: bool(one.outcomes), "end of the study")
    one.go()


def without_its_node(one: Disturbed) -> None:
    """The node goes as in a power cut, and is declared down."""
    one.hold(until_signal=False)
    BOTH_HELD.wait(SECONDS)
    one.bench.kill_daemon("n2")
    one.bench.kill_job("n2", one.job)
    one.bench.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")


def without_its_daemon(one: Disturbed) -> None:
    """Its node is declared down because the daemon is gone; the training does not know."""
    let_go = one.hold(until_signal=False)
    BOTH_HELD.wait(SECONDS)
    one.until(lambda: "is working on it; waiting" in one.log, "second start that waits")
    let_go()


BOTH_HELD = threading.Barrier(2)  # they share the node
SCENARIOS = {
    "requeue": (requeued, (ON_N1,)),
    "limit": (out_of_time, (ON_N1, *LIMITED)),
    "preemption": (preempted, (BOTH_GPUS,)),
    "scancel": (cancelled, (ON_N1,)),
    "node": (without_its_node, ("engine.checkpoint_every_seconds=0",)),
    "daemon": (without_its_daemon, ()),
}


@pytest.mark.slow
def test_a_disturbed_stage_ends_in_the_same_weights(
    slurm: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at one time, each in a store of its own: a cluster does not wait either."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    straight = undisturbed(tmp_path / "straight")
    expected = model_of(straight)
    assert len(expected) >= 2
    stores = {
        name: Disturbed.beside(tmp_path / "straight", name, slurm, *options)
        for name, (_, options) in SCENARIOS.items()
    }
    threads = [one.disturb(SCENARIOS[name][0]) for name, one in stores.items()]
    for thread in threads:
        thread.join()
    slurm.mend()

    for name, one in stores.items():
        assert one.error is None, f"{name}: {one.error!r}"
        assert one.outcomes[-1]["policy"].status == "done", f"{name}: {one.log}"
        assert model_of(one.run) == expected, name
        assert one.run.record["updates"] == straight.record["updates"]
        assert one.log.count("[slurm] job") >= 2, f"{name} was not disturbed: {one.log}"
    for name in ("requeue", "limit", "preemption", "scancel"):
        # Checkpoints are saved at a signal only here: it began where it was stopped.
        assert "after step" in stores[name].log, f"{name}: {stores[name].log}"
    assert stores["scancel"].outcomes[0]["policy"].status == "failed"
    assert "CANCELLED" in stores["scancel"].outcomes[0]["policy"].reason
    assert "n1, start 2" in stores["node"].log
    # It is trained once, by the one that was there first.
    assert "finished by process" in stores["daemon"].log
    assert len(stores["daemon"].run.metrics("train")) == len(straight.metrics("train"))
    for name, state in (
        ("requeue", "REQUEUED"),
        ("limit", "REQUEUED"),
        ("preemption", "PREEMPTED REQUEUED"),  # by Slurm, if the stage was not faster
        ("scancel", "CANCELLED"),
        ("node", "NODE_FAIL"),
        ("daemon", "NODE_FAIL"),
    ):
        job = stores[name].jobs[0]
        first = slurm.run("sacct", "-D", "-X", "-n", "-j", job, "-o", "State%20").split()[0]
        assert first in state.split(), f"{name}: {first}"
    for name in ("limit", "preemption"):  # warned before it was too late
        assert "Stopped by SIGUSR1 after step" in stores[name].log
