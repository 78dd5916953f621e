"""JSON files that survive a kill: replaced in one step, or appended line by line.

JSON has no word for numbers that are not finite. ``typed.to_mapping`` writes them as the text
"nan", "inf" and "-inf"; :func:`number` reads them back where the schema says that a number stands.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alignlab import typed

NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def write_atomically(file: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step; a reader sees the old or the new one, also after a crash."""
    replace(file, json.dumps(typed.to_mapping(content), indent=1, ensure_ascii=False) + "\n")


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; None when there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def replace(file: Path, text: str) -> None:
    """Replace a text file in one step."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Append one row to a JSON-lines file; it has left this process when the call returns."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(_line(row))


def write_lines(file: Path, content: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file in one step."""
    replace(file, "".join(_line(row) for row in content))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file, none without one.

    A last line without its newline was torn by a kill, or is being written: it is no row yet.
    """
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace", newline="\n") as stream:
        for text in stream:
            if text.endswith("\n"):
                yield json.loads(text)


def cut_torn_line(file: Path) -> None:
    """Remove a last line that was torn by a kill, so that the next one does not continue it."""
    if not file.is_file():
        return
    with file.open("rb+") as stream:
        content = stream.read()
        stream.truncate(content.rfind(b"\n") + 1)


def number(value: Any) -> Any:
    """Read a number back; anything else passes."""
    return NONFINITE.get(value, value) if isinstance(value, str) else value


def sha256(file: Path) -> str:
    """Hash a file of any size."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
