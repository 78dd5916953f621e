"""A PPO stage on the bench: started in a store of its own, disturbed, and compared."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm_bench import Bench, of_process

from alignlab.commands.study import prepare
from alignlab.files import sha256
from alignlab.launch.scheduler import Submission
from alignlab.launch.task import Outcome
from alignlab.run import Run, Store

ROOT = Path(__file__).resolve().parents[2]
STUDY = "disturbed"
OVERRIDES = (
    "pipeline=instructgpt", "experiment=smoke", "~stages.evaluate_sft", "~stages.evaluate",
    f"study={STUDY}", "report=false", "tracking=disabled", "engine.device=cpu", "engine.threads=1",
    "engine.progress=false", "engine.checkpoint_every_seconds=1e9", "size.ppo.iterations=20",
)  # fmt: skip
SLURM = (
    "launch=slurm", "launch.wait=true", "launch.poll_seconds=0.5", "launch.default.cpus=1",
    "launch.default.memory=1G",
)  # fmt: skip
SECONDS = 900  # a limit for the slowest machine; some 20 s are usual
COMPOSING = threading.Lock()  # Hydra keeps its state for the whole process


def undisturbed(store: Path) -> Run:
    """Run the study in one process; the run of its last stage."""
    done = subprocess.run(
        [sys.executable, "-m", "alignlab", "run", *OVERRIDES, f"store={store}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return policy_of(store)


def policy_of(store: Path) -> Run:
    """The run of the PPO stage in a store."""
    [run] = [run for run in Store(store).runs() if run.kind == "ppo"]
    return run


def model_of(run: Run) -> dict[str, str]:
    """Hashes of all files of a run's model."""
    assert run.done
    assert run.verify() == []
    return {f.name: sha256(f) for f in sorted(run.model_dir.iterdir())}


@dataclass
class Disturbed:
    """One store and one study in it, whose PPO stage is a job; the stages before it are done."""

    name: str
    bench: Bench
    store: Path
    options: tuple[str, ...] = ()
    outcomes: list[Mapping[str, Outcome]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)  # those that were looked up, the first one first
    error: BaseException | None = None

    @classmethod
    def beside(cls, finished: Path, name: str, bench: Bench, *options: str) -> Disturbed:
        """Take the finished stages of a store, but the last."""
        store = finished.parent / name
        left_out = shutil.ignore_patterns("ppo-*", "studies")
        shutil.copytree(finished, store, ignore=left_out)
        return cls(name, bench, store, options)

    @property
    def run(self) -> Run:
        """The run of the PPO stage."""
        return policy_of(self.store)

    @property
    def job(self) -> str:
        """Its job."""
        found = Submission.read(self.store / "studies" / STUDY)
        assert found is not None
        job = found.jobs[self.run.name].id
        if job not in self.jobs:
            self.jobs.append(job)
        return job

    @property
    def log(self) -> str:
        """What the job has said, over all of its starts."""
        return (self.store / "studies" / STUDY / "logs" / f"{self.run.name}.log").read_text()

    def go(self) -> None:
        """Submit the study and stay until it has ended, as ``alignlab run launch=slurm`` does."""
        with COMPOSING:
            session = prepare([*OVERRIDES, *SLURM, *self.options, f"store={self.store}"], False)
        found = session.settings.launch.execute(
            session.plan, session.place, note=lambda _: None, settled=lambda _: None
        )
        self.outcomes.append({outcome.name: outcome for outcome in found})

    def disturb(self, how: Callable[[Disturbed], Any]) -> threading.Thread:
        """Start it on a thread, and disturb it when two of its steps are done."""

        def both() -> None:
            watched = threading.Thread(target=self._guarded, args=(self.go,))
            watched.start()
            self._guarded(lambda: how(self))
            watched.join()

        thread = threading.Thread(target=both, name=self.name)
        thread.start()
        return thread

    def _guarded(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:  # said by the test, in its own thread
            self.error = self.error or error

    def hold(self, step: int = 2, *, until_signal: bool = True) -> Callable[[], None]:
        """Stop the training's clock after a step, until a signal waits for it, or for good.

        So a disturbance meets it in the middle, however fast or slow the machine is. Returns what
        lets it go.
        """
        self.until(lambda: self._steps() >= step, f"step {step}")
        job = self.bench.processes(SLURM_JOB_ID=self.job)
        held = [p for p in job if b"alignlab.launch.program" in of_process(p, "cmdline")]
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
            if until_signal:
                threading.Thread(target=self._let_go, args=(pid,), daemon=True).start()
        return lambda: [os.kill(pid, signal.SIGCONT) for pid in held] and None

    def _let_go(self, pid: int) -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            status = of_process(pid, "status").decode()
            pending = [line.split()[1] for line in status.splitlines() if line[:6] == "ShdPnd"]
            # Gone, or with something to wake up for: not the stop itself, which may still be due.
            if not pending or int(pending[0], 16) & ~(1 << (signal.SIGSTOP - 1)):
                break
            time.sleep(0.05)
        if of_process(pid, "status"):
            os.kill(pid, signal.SIGCONT)

    def until(self, there: Callable[[], bool], what: str) -> None:
        """Wait for something, as long as it can still come: not beyond the end of the study."""
        began = time.monotonic()
        while True:
            ended = bool(self.outcomes)  # before the look, which may be for this very end
            if there():
                return
            waited = time.monotonic() - began
            if ended or waited > SECONDS or self.error is not None:
                queue = self.bench.run("squeue", check=False)
                how = "the study has ended" if ended else f"after {waited:.0f} s"
                raise AssertionError(f"{self.name}: no {what}, {how}\n{queue}")
            time.sleep(0.1)

    def _steps(self) -> int:
        runs = [run for run in Store(self.store).runs() if run.kind == "ppo"]
        return max((row["step"] for run in runs for row in run.metrics()), default=0)
