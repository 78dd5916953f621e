"""``alignlab doctor``: what this machine, installation and store can do, and what is wrong."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignlab.commands.runs import size, state
from alignlab.commands.study import store_root
from alignlab.commands.text import count
from alignlab.compose import conf_dir
from alignlab.environment import hardware, versions
from alignlab.errors import AlignlabError, ConfigError
from alignlab.launch.task import usable_cores
from alignlab.run import Store
from alignlab.upstream import upstreams

NEEDED = "torch transformers peft accelerate trl datasets wandb hydra-core numpy safetensors"
SAMPLE = 3  # finished runs whose files are hashed again
LOW_DISK = 2 * 10**9  # bytes


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``good`` is None where there is nothing to judge."""

    good: bool | None
    topic: str
    text: str


def doctor() -> int:
    """Print what was found; return 1 if anything is wrong."""
    findings = [
        finding
        for examine in (_installation, _processor, _devices, _tracking, _store, _upstream)
        for finding in examine()
    ]
    marks = {True: "ok", False: "PROBLEM", None: ""}
    for finding in findings:
        print(f"{marks[finding.good]:<8} {finding.topic:<14} {finding.text}")
    problems = sum(finding.good is False for finding in findings)
    print(f"\n{problems or 'no'} problem{'s' * (problems != 1)}")
    return 1 if problems else 0


def _installation() -> Iterator[Finding]:
    import platform

    found = versions()
    yield Finding(None, "python", platform.python_version())
    for name in NEEDED.split():
        there = name in found
        text = found[name] if there else "not installed; run `make setup` or pip install alignlab"
        yield Finding(there, name, text)
    for name in ("deepspeed", "vllm"):
        yield Finding(None, name, found.get(name, "not installed (optional)"))
    try:
        yield Finding(True, "configuration", str(conf_dir()))
    except AlignlabError as error:
        yield Finding(False, "configuration", str(error))


def _processor() -> Iterator[Finding]:
    machine = hardware()
    flags = cpu_flags()
    yield Finding(None, "processor", f"{machine['cpu']}, {usable_cores()} usable cores")
    names = {"avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX bf16"}
    able = [text for flag, text in names.items() if flag in flags]
    wise = "bfloat16" if {"avx512_bf16", "amx_bf16"} & flags else "float32"
    text = f"{', '.join(able) or 'no wide vectors'}; dtype auto on the CPU = {wise}"
    yield Finding(None, "arithmetic", text)
    free = available_memory()
    total = machine["memory_bytes"]
    text = f"{count(free, 'B')} free of {count(total, 'B')}"
    yield Finding(free > 2 * 10**9, "memory", text)


def _devices() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        listed = hardware()["gpus"]
        if listed:
            yield Finding(False, "GPU", f"{listed[0]}, but torch {torch.__version__} cannot use it")
        else:
            yield Finding(None, "GPU", f"none (torch is built for {built or 'the CPU alone'})")
        return
    for index in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Finding(True, "GPU", f"{known.name}, {count(known.total_memory, 'B')}, {bf16}")


def _tracking() -> Iterator[Finding]:
    from alignlab.engine.tracking import has_key

    mode = os.environ.get("WANDB_MODE")
    if mode in ("disabled", "offline"):
        yield Finding(None, "W&B", f"{mode} (WANDB_MODE)")
    elif has_key():
        yield Finding(True, "W&B", "a key is there: tracking=auto is online")
    else:
        yield Finding(None, "W&B", "no key: tracking=auto is offline (`wandb login` for online)")


def _store() -> Iterator[Finding]:
    root = store_root()
    store = Store(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        yield Finding(False, "store", f"{root} cannot be written: {error.strerror}")
        return
    free = shutil.disk_usage(root).free
    yield Finding(free > LOW_DISK, "disk", f"{count(free, 'B')} free for {root}")
    runs = store.runs()
    states = [state(run) for run in runs]
    counted = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)) or "no runs"
    yield Finding(True, "store", f"{counted}; {count(size(root), 'B')}")
    done = [run for run in runs if run.done]
    # Hashing all would take minutes in a large store; a few, other ones each time, find decay too.
    for run in random.Random().sample(done, min(SAMPLE, len(done))):
        for problem in run.verify()[:3]:
            yield Finding(False, run.name, f"{problem}; `alignlab runs show {run.name}`")
    for run in [run for run, s in zip(runs, states, strict=True) if s == "failed"][:5]:
        reason = str(run.record.get("error")).splitlines()[0]
        yield Finding(None, run.name, f"failed: {reason}")


def _upstream() -> Iterator[Finding]:
    for place in upstreams():
        try:
            place.check()
        except ConfigError as error:
            yield Finding(False, "upstream", str(error))
        else:
            found = "no list" if place.listed is None else f"{len(place.listed)} runs"
            yield Finding(True, "upstream", f"{place.where}: {found}")


def cpu_flags() -> frozenset[str]:
    """Features of the processor, as Linux names them; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def available_memory() -> int:
    """Bytes that a new process could take without swapping."""
    file = Path("/proc/meminfo")
    if file.is_file():
        for line in file.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
