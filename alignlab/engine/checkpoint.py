"""Checkpoints that continue a run exactly: written beside, then renamed; torn ones are passed over.

``state_dir/step-00000012/`` holds ``shared.pt`` (weights, optimizer, average: the main process),
``worker-0.pt`` … (what each process has of its own: random states, work, unlogged metrics) and
``manifest.json`` (size and SHA-256 of each file).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignlab.engine.distributed import Workers
from alignlab.errors import TrainingError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds: the step, the shared state, and this process's own state."""

    step: int
    shared: dict[str, Any]
    own: dict[str, Any]


def rng_state() -> dict[str, Any]:
    """Random states of torch, CUDA, numpy and python."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": np.random.get_state(),  # noqa: NPY002 (the global stream must continue)
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Take back what ``rng_state`` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


def seed_all(seed: int, rank: int) -> None:
    """Seed torch, CUDA, numpy and python; another stream for every process."""
    words = np.random.SeedSequence([seed, rank]).generate_state(3)
    torch.manual_seed(int(words[0]))  # CUDA too
    np.random.seed(int(words[1]))  # noqa: NPY002
    random.seed(int(words[2]))


def save(
    folder: Path,
    step: int,
    shared: dict[str, Any],
    own: dict[str, Any],
    *,
    workers: Workers,
    keep: int,
) -> None:
    """Write the checkpoint of ``step``; afterwards the newest ``keep`` are in ``folder``.

    All processes call it. A kill at any moment leaves the earlier checkpoints as they were.
    """
    final = folder / f"step-{step:08d}"
    draft = folder / f".{final.name}.draft"
    if workers.is_main:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    workers.barrier()
    if workers.is_main:
        _write(draft / "shared.pt", {"step": step, **shared})
    _write(draft / f"worker-{workers.rank}.pt", own)
    workers.barrier()
    if workers.is_main:
        files = {p.name: _facts(p) for p in sorted(draft.iterdir())}
        manifest = json.dumps({"step": step, "world": workers.world, "files": files}, indent=1)
        with (draft / MANIFEST).open("w") as out:
            out.write(manifest)
            out.flush()
            os.fsync(out.fileno())
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        _sync(folder)
        for old in _found(folder)[:-keep]:
            shutil.rmtree(old)
    workers.barrier()


def load(folder: Path, workers: Workers) -> Loaded | None:
    """Read the newest whole checkpoint in ``folder``; torn ones are skipped with a warning.

    Raises:
        TrainingError: it was written by another number of processes.
    """
    chosen: str | None = None
    if workers.is_main:
        for path in reversed(_found(folder)):
            fault = _fault(path)
            if fault is None:
                chosen = path.name
                break
            warnings.warn(
                f"Checkpoint {path} is damaged ({fault}); trying the one before it.", stacklevel=2
            )
    chosen = workers.from_main(chosen)
    if chosen is None:
        return None
    path = folder / chosen
    world = json.loads((path / MANIFEST).read_text())["world"]
    if world != workers.world:
        raise TrainingError(
            f"The checkpoint {path} was written by {world} process(es) and this run has "
            f"{workers.world}, so it cannot continue exactly. Run it with {world}, or delete "
            f"{folder} to begin again."
        )
    shared = torch.load(path / "shared.pt", map_location="cpu", weights_only=True)
    # Work and numpy states are not plain tensors; the file is this run's own, checked by its hash.
    own = torch.load(path / f"worker-{workers.rank}.pt", map_location="cpu", weights_only=False)
    return Loaded(shared["step"], shared, own)


def _found(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob("step-*"))


def _write(path: Path, content: dict[str, Any]) -> None:
    with path.open("wb") as out:
        torch.save(content, out)
        out.flush()
        os.fsync(out.fileno())


def _sync(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _fault(path: Path) -> str | None:
    """Say what is wrong with the checkpoint at ``path``, or None."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"no readable {MANIFEST}: {error}"
    for name, facts in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _facts(path / name) != facts:
            return f"{name} has changed or is cut off"
    return None
