"""How much memory a process may still take on its device, and the most that a computation took."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.errors import ConfigError

if TYPE_CHECKING:
    import torch

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_STATM_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def room(device: torch.device, limit: float | None) -> int:
    """Bytes that this process may take beside what it holds now.

    On a GPU what is free there; on the CPU the memory that is available, or what its cgroup leaves,
    divided among the processes of this machine. ``limit`` (bytes) bounds what the process holds in
    all.

    Raises:
        ConfigError: neither a GPU nor Linux' /proc, so that nothing can be measured.
    """
    if device.type == "cuda":
        import torch

        held = torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
    else:
        held = resident()
        free = min(_available(), _left_by_cgroup()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return free if limit is None else min(free, round(limit) - held)


def most_taken(device: torch.device, compute: Callable[[], None], above: int) -> int | None:
    """Most bytes that were held above the level ``above`` during ``compute``; None: too much."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        try:
            compute()
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None
        return torch.cuda.max_memory_allocated(device) - above
    try:
        (PROC / "self/clear_refs").write_text("5")  # the high-water mark starts again from here
    except OSError as error:
        raise _unmeasurable(error) from error
    compute()
    return max(0, _status("VmHWM") - above)


def held(device: torch.device) -> int:
    """Bytes that this process holds now on ``device``."""
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated(device)
    return resident()


def resident() -> int:
    """Resident memory of this process in bytes."""
    try:
        return int((PROC / "self/statm").read_text().split()[1]) * _STATM_PAGE
    except OSError as error:
        raise _unmeasurable(error) from error


def _unmeasurable(error: OSError) -> ConfigError:
    return ConfigError(
        f"engine.token_budget=auto: this system does not say what a process takes ({error}); state"
        " a number, for example engine.token_budget=4096."
    )


def highest_resident() -> int:
    """High-water mark of this process in bytes, since it was last set back."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in (PROC / "self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{PROC}/self/status has no {field}")


def _available() -> int:
    for line in (PROC / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{PROC}/meminfo has no MemAvailable")


def _left_by_cgroup() -> int:
    """What the control groups of this process leave, a large number where there is no limit."""
    left = [1 << 62]
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            base, names = CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = base / path.strip("/")
        for folder in (group, *group.parents):  # a limit binds all below it
            if folder == base.parent:
                break
            left += _left(folder, *names)
    return min(left)


def _left(folder: Path, limit: str, usage: str) -> list[int]:
    """Bytes that one control group leaves; nothing where it has no limit."""
    if not (folder / limit).is_file():
        return []
    stated = (folder / limit).read_text().strip()
    if stated == "max":
        return []
    caches = 0  # of files: given back when memory is short
    for line in (folder / "memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            caches = int(line.split()[1])
    return [int(stated) - int((folder / usage).read_text()) + caches]
