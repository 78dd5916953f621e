"""Which base model a configuration means: what a stage's key has to depend on beside the name."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from alignlab.models.load import ASSETS


def identity(path: str, revision: str | None) -> str:
    """Text that changes when the weights behind ``path`` change.

    A packaged model is named by the hash of its files. A local folder is named by the names, sizes
    and modification times of its files, since hashing a large model at every plan would take
    minutes. Anything else (a hub id, ``random:tiny``, ``wheel:smollm2``) is fixed by its name and
    revision.
    """
    scheme, _, name = path.partition(":")
    if scheme == "package":
        return _content(ASSETS / name)
    folder = Path(path).expanduser()
    if folder.is_dir():
        files = sorted(f for f in folder.iterdir() if f.is_file())
        facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()
    return f"{path}@{revision}"


@functools.lru_cache(maxsize=8)
def _content(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.suffix in {".json", ".safetensors", ".jinja"}:
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
