"""Measured processes: started one at a time, their answers read."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tuning

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SIDES = ("ours", "trl_tuned", "trl_default")


@dataclass(frozen=True)
class Lab:
    """Where this run works, and with how much."""

    scratch: Path
    threads: int
    trl19: str | None
    memory: int  # bytes that a process may allocate: a candidate that needs more fails by itself
    quiet: bool
    layout: str = "auto"  # of alignlab's backbone

    def run(
        self,
        folder: Path,
        side: str,
        options: tuning.Options,
        *,
        mode: str = "time",
        updates: int | None = None,
        dtype: str = "auto",
    ) -> dict[str, Any]:
        """One fresh process; its answer, with the seconds from start to exit."""
        job = {
            "case": str(folder),
            "side": side,
            "mode": mode,
            "options": options,
            "updates": updates,
            "dtype": dtype,
            "layout": self.layout,
            "threads": self.threads,
        }
        program = "ours.py" if side == "ours" else "peer.py"
        python = sys.executable
        if side != "ours" and folder.name.startswith("ppo-"):
            python = self.trl19 or python
        return self.process([python, str(HERE / program)], job, f"{folder.name} {side} {mode}")

    def process(self, command: Sequence[str], job: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Run ``command JOB ANSWER``; a failure is an answer with ``failed``."""
        jobs = self.scratch / "jobs"
        jobs.mkdir(parents=True, exist_ok=True)
        asked = jobs / f"{os.getpid()}-job.json"
        answer = jobs / f"{os.getpid()}-answer.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        answer.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "WANDB_MODE": "disabled",
            "TOKENIZERS_PARALLELISM": "false",
            "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu"),
        }
        began = time.perf_counter()
        done = subprocess.run(
            [*command, str(asked), str(answer)],
            env=environment,
            preexec_fn=self.limit,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - began
        log = jobs / f"{name.replace(' ', '-')}.log"
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode or not answer.is_file():
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            self.say(f"  {name}: FAILED ({last}); see {log}")
            return {"failed": last}
        found = {**json.loads(answer.read_text(encoding="utf-8")), "process_seconds": seconds}
        rate = found["items"] / found["seconds"] if found.get("seconds") else None
        self.say(
            f"  {name} {json.dumps(job.get('options', {}))}: {seconds:.1f} s"
            + (f", {rate:.3g} per second" if rate else "")
        )
        return found

    def limit(self) -> None:
        """Before a process starts: no more memory than there is, so that nothing else is killed."""
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_DATA, (self.memory, self.memory))

    def say(self, line: str) -> None:
        """Progress for a person."""
        if not self.quiet:
            print(line, flush=True)


def rate(answer: Mapping[str, Any]) -> float | None:
    """Items per second over the updates after the first."""
    if answer.get("failed") or not answer.get("seconds"):
        return None
    return answer["items"] / answer["seconds"]
