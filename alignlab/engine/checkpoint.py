"""Checkpoints that continue a run exactly: written beside, then renamed; torn ones are passed over.

``state_dir/step-00000012/`` holds ``shared.pt`` (what is the same everywhere: the main process),
``share-0.pt`` … (shares of weights, moments and averages, where a process keeps no more of them),
``worker-0.pt`` … (what each process has of its own: random states, work, unlogged metrics) and
``manifest.json`` (size and SHA-256 of each file). Tensors are named by their weight and put
together from all shares, so another number of processes, or another way of sharing, reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignlab.engine.distributed import Workers
from alignlab.engine.shares import Reader, Section
from alignlab.errors import TrainingError

MANIFEST = "manifest.json"
LAYOUT = 2  # of the files' contents


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint of ``world`` processes holds, of all of them and of each."""

    step: int
    world: int
    shared: dict[str, Any]
    tensors: Reader  # mapped from the files
    folder: Path

    def worker(self, rank: int) -> dict[str, Any]:
        """Read what was the own of the process ``rank``."""
        # Work and numpy states are not plain tensors; the file is the run's own, checked by hash.
        return torch.load(self.folder / f"worker-{rank}.pt", map_location="cpu", weights_only=False)


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
    whole: Mapping[str, Section],
    shares: Mapping[str, Section],
    workers: Workers,
    keep: int,
) -> None:
    """Write the checkpoint of ``step``; afterwards the newest ``keep`` are in ``folder``.

    All processes call it. A kill at any moment leaves the earlier checkpoints as they were.

    Args:
        shared: what is the same on every process.
        own: what is this process's alone.
        whole: tensors by kind and name, the same on every process.
        shares: this process's shares of tensors.
    """
    final = folder / f"step-{step:08d}"
    draft = folder / f".{final.name}.draft"
    if workers.is_main:
        for left in folder.glob(".step-*.draft"):  # of a process that was killed, or a full disk
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir(parents=True)
    workers.barrier()
    if workers.is_main:
        _write(draft / "shared.pt", {"step": step, "shared": shared, "tensors": dict(whole)})
    if any(shares.values()):
        _write(draft / f"share-{workers.rank}.pt", dict(shares))
    _write(draft / f"worker-{workers.rank}.pt", own)
    workers.barrier()
    if workers.is_main:
        files = {p.name: _facts(p) for p in sorted(draft.iterdir())}
        facts = {"layout": LAYOUT, "step": step, "world": workers.world, "files": files}
        manifest = json.dumps(facts, indent=1)
        with (draft / MANIFEST).open("w") as out:
            out.write(manifest)
            out.flush()
            os.fsync(out.fileno())
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        _sync(folder)
        for old in _found(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)  # NFS keeps what is mapped somewhere
    workers.barrier()


def load(folder: Path, workers: Workers) -> Loaded | None:
    """Read the newest whole checkpoint in ``folder``; torn ones are skipped with a warning.

    Raises:
        TrainingError: an earlier version wrote it.
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
    facts = json.loads((path / MANIFEST).read_text())
    if facts.get("layout") != LAYOUT:
        raise TrainingError(
            f"The checkpoint {path} was written by another version of alignlab, which laid it out "
            f"differently. Finish the run with that version, or delete {folder} to begin again."
        )

    def read(name: str) -> Any:
        return torch.load(path / name, map_location="cpu", mmap=True, weights_only=True)

    main, world = read("shared.pt"), facts["world"]
    shares = [f"share-{rank}.pt" for rank in range(world)]
    parts = [read(name) for name in shares if name in facts["files"]]
    return Loaded(main["step"], world, main["shared"], Reader(main["tensors"], parts), path)


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
