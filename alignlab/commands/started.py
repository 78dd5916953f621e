"""How this process was started among others, as the words that start them again: torchrun's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

LAUNCHERS = re.compile(r"torchrun|torch[./]distributed[./](run|launch)|accelerate")


def launcher_words(environment: Mapping[str, str] | None = None) -> list[str]:
    """Words before ``alignlab`` that start the same processes again; none for one process.

    Those of the launcher itself where this system shows them, else what its environment says. Of
    several nodes, these are the words of this one.
    """
    told = os.environ if environment is None else environment
    if told.get("WORLD_SIZE", "1") == "1" or "TORCHELASTIC_RUN_ID" not in told:
        return []
    return _of(_parent()) or _from(told)


def _parent() -> list[str]:
    """Command line of the process that started this one."""
    try:
        said = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:  # another system than Linux
        return []
    return said.decode(errors="replace").split("\0")[:-1]


def _of(words: Sequence[str]) -> list[str]:
    """The launcher's own words of a command line; none where it is not known."""
    places = [i for i, word in enumerate(words) if re.fullmatch(r"(.*/)?alignlab", word)]
    first = [i for i, word in enumerate(words) if LAUNCHERS.search(word)]
    if not places or not first or first[0] > places[0]:
        return []
    name, end = first[0], places[0] - (words[places[0] - 1] == "-m")
    by_module = words[name - 1] == "-m" if name else False
    head = ["python", "-m", words[name]] if by_module else [Path(words[name]).name]
    return [*head, *words[name + 1 : end]]


def _from(told: Mapping[str, str]) -> list[str]:
    """Words of torchrun as the environment of its processes says."""
    nodes = told.get("GROUP_WORLD_SIZE", "1")
    words = ["torchrun", *(["--nnodes", nodes] if nodes != "1" else [])]
    words += ["--nproc_per_node", told.get("LOCAL_WORLD_SIZE", told["WORLD_SIZE"])]
    if nodes != "1" and "MASTER_ADDR" in told:
        words += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{told['MASTER_ADDR']}:29500"]
    return words
