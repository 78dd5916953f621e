"""Bounds of what is read as data: what lies beyond them is refused, never read into memory."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Far above any honest data set; every message says how to read a file that exceeds one."""

    line_bytes: int = 64 * MIB  # one line, one JSON row, one CSV record, one text file of a folder
    yaml_bytes: int = 16 * MIB  # a YAML file, which is parsed as a whole
    ratio: int = 250  # bytes out per byte in of a compressed file (text has 3 to 30) ...
    ratio_after: int = 8 * MIB  # ... once so many bytes came out
    depth: int = 64  # lists and objects inside one another
    fields: int = 1000  # of one row
    files: int = 10_000  # of one folder or glob


LIMITS = Limits()
