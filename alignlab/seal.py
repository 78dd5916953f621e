"""The seal of a finished folder: DONE, with the sha256 of every file, written last."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignlab import files

NAME = "DONE"
UNHASHED = ("state", "lease", "wandb", NAME)  # what may change after a run is done, or goes away


def members(folder: Path) -> list[str]:
    """Relative names of all files that belong to the result, sorted."""
    found = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    kept = (f for f in found if f.parts[0] not in UNHASHED and f.suffix != ".tmp")
    # What NFS keeps of a file that was removed while it was open goes away by itself.
    return sorted(f.as_posix() for f in kept if not f.name.startswith(".nfs"))


def put(folder: Path, more: Mapping[str, Any] | None = None) -> None:
    """Hash all files as they are on the disk, and write the seal; ``more`` stands beside them."""
    hashes = {name: files.sha256(folder / name, sync=True) for name in members(folder)}
    told = {"finished": time.time(), "files": hashes, **(more or {})}
    files.write_atomically(folder / NAME, told)
    files.sync_folder(folder)


def read(folder: Path) -> dict[str, Any]:
    """What the seal says; empty without one."""
    return files.read_json(folder / NAME) or {}


def is_there_now(folder: Path) -> bool:
    """Whether there is a seal, by a new listing of the folder.

    A network file system remembers for a while that a file was not there.
    """
    try:
        return any(file.name == NAME for file in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def differences(folder: Path) -> list[str]:
    """Compare the files with the seal; one line for each difference, none when intact."""
    said = read(folder)
    away = said.get("absent", [])
    expected = {name: digest for name, digest in said["files"].items() if name not in away}
    present = {name: files.sha256(folder / name) for name in members(folder)}
    both = [name for name in present if name in expected]
    return [
        *(f"{name} is missing" for name in expected if name not in present),
        *(f"{name} was added" for name in present if name not in said["files"]),
        *(f"{name} has changed" for name in both if present[name] != expected[name]),
    ]
