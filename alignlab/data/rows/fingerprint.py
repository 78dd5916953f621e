"""Hashes of what files hold, for the keys of stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignlab.data.rows.limits import MIB
from alignlab.data.rows.listing import DataFile
from alignlab.errors import DataError


def fingerprint_of(paths: Sequence[Path], fields: Any) -> str:
    """SHA-256 over the bytes of files and over plain values or dataclasses."""

    def plain(value: Any) -> Any:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)

    content = [_file_hash(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in paths]
    text = json.dumps([content, fields], sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()


def content_of(file: DataFile) -> str:
    """Hash of a file's bytes; for a remote one what its server says of them, if it says anything.

    Raises:
        DataError: the file cannot be read.
    """
    if file.remote is None:
        path = Path(file.where)
        try:
            status = path.stat()
            return _file_hash(file.where, status.st_mtime_ns, status.st_size)
        except OSError as error:
            raise DataError(f"{file.where} cannot be read: {error.strerror}.") from error
    if file.stamp:
        return hashlib.sha256(f"{file.where}:{file.stamp}".encode()).hexdigest()
    digest = hashlib.sha256()
    with file.open() as stream:
        while data := stream.read(MIB):
            digest.update(data)
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _file_hash(path: str, modified_ns: int, size: int) -> str:
    """Hash of a file's bytes; time and size are only the key of the cache."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
